"""Running compilers and linkers of others, and being stopped meanwhile."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import tvm

from tvmcompress import external
from tvmcompress.ir import graph


def test_output_and_status_come_back(tmp_path):
    done = external.run(["sh", "-c", "pwd; echo no >&2; exit 3"], tmp_path)
    assert (done.stdout.strip(), done.stderr, done.returncode) == (str(tmp_path.resolve()), "no\n", 3)


def test_temporary_files_go_to_the_folder(tmp_path):
    done = external.run(["sh", "-c", 'mktemp "${TMPDIR:-/tmp}/ccXXXXXX.s"'], tmp_path)
    assert Path(done.stdout.strip()).parent == tmp_path


def test_an_interrupt_stops_what_the_program_started(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    # The grandchild is what a compiler's driver starts: it would write its file after one second.
    script = "sh -c 'echo $$ > pid; sleep 1; echo > late' & wait"
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            external.run(["sh", "-c", script], tmp_path)
    finally:
        signal.signal(signal.SIGALRM, old)
    time.sleep(1)
    assert not (tmp_path / "late").exists()
    state = Path(f"/proc/{int((tmp_path / 'pid').read_text())}/stat")
    assert not state.exists() or state.read_text().split(") ")[1][0] == "Z"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_being_stopped_inside_a_callback_of_tvm_is_no_ordinary_error(error):
    assert graph  # which tells TVM

    def callback():
        raise error

    with pytest.raises(error):
        tvm.runtime.convert(callback)()
