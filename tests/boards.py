"""Boards for tests: servers on this machine, each in processes of its own, that can be killed, frozen and cut off."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tvmcompress import wire

ROOT = Path(__file__).parents[1]


class Served:
    """A `tvmcompress device serve` or `device tracker` that runs; `port` stays the same when it is started again."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self.options, self.port = options, port
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tvmcompress.serving", "--port", str(self.port or free_port()), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line + self.process.stderr.read()
        self.port = int(line.rpartition(":")[2])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def listener(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def send(self, number: signal.Signals) -> None:
        """To all of its processes: what a board feels that loses its power, or hangs."""
        for one in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    def lose_power(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait(10)
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def board(*options: str, port: int = 0) -> Iterator[Served]:
    one = Served(*options, port=port)
    try:
        yield one
    finally:
        one.stop()


@contextlib.contextmanager
def tracker(port: int = 0) -> Iterator[Served]:
    with board("--track", port=port) as one:
        yield one


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def eventually(true, seconds: float = 20.0, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        time.sleep(0.05)


def answers(port: int) -> bool:
    with contextlib.suppress(wire.BoardError):
        wire.Control("127.0.0.1", port, 2).close()
        return True
    return False


class Cable:
    """A way to a port that can be cut: then nothing passes and nobody is told, as when a cable is pulled."""

    def __init__(self, port: int) -> None:
        self.target, self.cut = port, False
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                here, _ = self.listening.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.target))
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self.pump, args=(one, other), daemon=True).start()

    def pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                while self.cut:
                    time.sleep(0.05)
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.listening.close()


def processes_of(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True) if child.is_running()]


def own_children() -> set[int]:
    return set(processes_of(os.getpid()))
