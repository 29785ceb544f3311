import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.arm_board import served
from tests.small_net import expected, small_net
from tvmcompress import cpu, linking, wire
from tvmcompress.device import Device
from tvmcompress.errors import TvmcompressError, UsageError
from tvmcompress.target import Target
from tvmcompress.wire import BoardError


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "net.so"
    target = Target.load("native")
    tvm.compile(small_net()[0], target=target.to_tvm()).export_library(str(path), fcompile=linking.linker(target))
    return path


def run(device: Device, library: Path) -> np.ndarray:
    machine = relax.VirtualMachine(device.load_module(device.upload(library)), device.tvm_device())
    machine.set_input("main", tvm.runtime.tensor(small_net()[1], device.tvm_device()))
    machine.invoke_stateful("main")
    outputs = machine.get_outputs("main")
    return outputs[0].numpy()


def test_local(library: Path):
    with Device.open("local") as device:
        assert device == Device.local()
        assert device.describe() == {"address": "local", "cpu": cpu.describe(), "emulated": False}
        np.testing.assert_allclose(run(device, library), expected(small_net()[1]), rtol=1e-4, atol=1e-5)


def test_over_rpc(library: Path):
    command = [sys.executable, "-m", "tvmcompress.serving", "--port", "19190"]
    with served(command) as address, Device.open(address) as device:
        assert device.describe()["cpu"]["features"] == cpu.describe()["features"]
        np.testing.assert_allclose(run(device, library), expected(small_net()[1]), rtol=1e-4, atol=1e-5)
        device.close()
        with pytest.raises(UsageError, match="closed"):
            device.describe()


@pytest.mark.parametrize("text", ["", "here", "rpc://host", "host:99999", "a@b@c:9090", "http://host:80"])
def test_wrong_addresses(text: str):
    with pytest.raises(UsageError, match="wanted local, HOST:PORT"):
        Device.open(text)


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(TvmcompressError, match="cannot connect: Connection refused"):
        Device.open(f"127.0.0.1:{port}")


def test_somebody_listens_but_says_nothing():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(4)
        with pytest.raises(TvmcompressError, match=r"no answer within 0\.5 s"):
            Device.open(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)


def served_by(answer: Callable[[socket.socket], None]) -> tuple[socket.socket, str]:
    """A server of one connection; `answer` gets it behind the handshake and the first request."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(4)

    def serve() -> None:
        with contextlib.suppress(OSError):
            peer, _ = listening.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(struct.pack("<ii", wire.SUCCESS, 7) + b"server:")
                peer.recv(4096)
                answer(peer)

    threading.Thread(target=serve, daemon=True).start()
    return listening, f"127.0.0.1:{listening.getsockname()[1]}"


def test_somebody_answers_byte_by_byte():
    def drip(peer: socket.socket) -> None:
        peer.sendall(struct.pack("<i", 100_000))
        for _ in range(1000):
            peer.sendall(b" ")
            time.sleep(0.05)

    listening, address = served_by(drip)
    begun = time.monotonic()
    with listening, pytest.raises(BoardError, match=r"no answer within 0\.5 s"):
        Device.open(address, timeout=0.5)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"protocol": wire.PROTOCOL}, "its answer has no name"),
        ({}, "it names no protocol"),
        ([], "."),
        ("[" * 200_000, "no JSON"),
    ],
)
def test_somebody_answers_something_else(status, said: str):
    text = status if isinstance(status, str) else json.dumps(status)
    listening, address = served_by(lambda peer: peer.sendall(struct.pack("<i", len(text)) + text.encode()))
    with listening, pytest.raises(BoardError, match=said):
        Device.open(address, timeout=5)


def test_upload_of_nothing(tmp_path: Path):
    with Device.local() as device, pytest.raises(UsageError, match="no file"):
        device.upload(tmp_path / "missing.so")
