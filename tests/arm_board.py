"""The emulated ARM board for tests: the fixture `arm_board` runs code there, or skips."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "arm-board"


@dataclass(frozen=True)
class ArmBoard:
    """Python and packages under QEMU. `cpu` is QEMU's name of a processor (cortex-a53); empty: all that QEMU knows."""

    folder: Path
    cpu: str = ""

    def python(
        self, arguments: Sequence[str | os.PathLike], timeout: float = 300, check: bool = True
    ) -> subprocess.CompletedProcess:
        """Runs the board's Python; our package can be imported there."""
        command = [str(SCRIPT), "run", *(["--cpu", self.cpu] if self.cpu else []), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0 or not check, f"on the board: {done.stderr[-2000:]}"
        return done

    def run_package(self, package: str | os.PathLike, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a saved package, through `tvmcompress run` on the board."""
        given, got = self.folder / "inputs.npz", self.folder / "outputs.npz"
        np.savez(given, **inputs)
        self.python(["-m", "tvmcompress", "run", package, "--inputs", given, "--outputs", got])
        with np.load(got) as outputs:
            return {name: outputs[name] for name in outputs.files}

    def with_cpu(self, cpu: str) -> ArmBoard:
        return ArmBoard(self.folder, cpu)

    def server(self):
        """A context with the address of an RPC server on the board."""
        return served([str(SCRIPT), "serve", "19090"])


@contextmanager
def served(command: Sequence[str]) -> Iterator[str]:
    """The address at which a command serves that runs `tvmcompress.serving`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield "rpc://" + process.stdout.readline().removeprefix("listening on ").strip()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def board_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvmcompress" / "arm-board"
    return Path(os.environ.get("TVMCOMPRESS_BOARD") or default)


@pytest.fixture
def arm_board(tmp_path: Path) -> ArmBoard:
    if not (board_folder() / "complete").is_file():
        pytest.skip("no emulated ARM board: scripts/arm-board setup")
    return ArmBoard(tmp_path)
