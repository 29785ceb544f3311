"""A board's server and the tracker: what sheds whom, what is started again, who gets a session."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tvm
from tvm.rpc.tracker import Tracker as TvmTracker

from tests.boards import ROOT, answers, board, eventually, free_port, tracker
from tvmcompress import certificates, wire
from tvmcompress.device import Device, survey
from tvmcompress.errors import UsageError
from tvmcompress.serving import front
from tvmcompress.tunnels import Route
from tvmcompress.wire import BoardError, Control, Tracker

NONSENSE = [
    b"",
    b"\0" * 9,
    b"GET / HTTP/1.1\r\nHost: board\r\n\r\n",
    os.urandom(64),
    struct.pack("<i", wire.MAGIC),
    struct.pack("<ii", wire.MAGIC, -5),
    struct.pack("<ii", wire.MAGIC, 1 << 30) + b"x" * 4096,
    struct.pack("<ii", wire.MAGIC, 5) + b"\xff\xfe\xfd\xfc\xfb",
    wire.greeting("client:"),  # and then nothing: a session that is never used
    wire.greeting(f"client:{wire.CONTROL}") + b"\xff\xff\xff\x7f",
    wire.greeting(f"client:{wire.CONTROL}") + wire.frame([1, 2]),
    wire.greeting(f"client:{wire.CONTROL}") + wire.frame({"do": "lease"}),
    wire.greeting(f"client:{wire.CONTROL}") + struct.pack("<i", 200_000) + b"[" * 200_000,
    struct.pack("<i", wire.TRACKER_MAGIC) + struct.pack("<i", 200_000) + b"[" * 200_000,
    struct.pack("<i", wire.TRACKER_MAGIC) + wire.frame(["no", {"such": "thing"}]),
    struct.pack("<i", wire.TRACKER_MAGIC) + struct.pack("<i", 12) + b"not json at all",
]


def besiege(port: int) -> list[socket.socket]:
    """Every kind of nonsense, and a hundred connections on which nothing comes, all left open."""
    held = []
    for data in NONSENSE + [b"", b"q\xf2"] * 50:
        peer = socket.create_connection(("127.0.0.1", port))
        peer.sendall(data)
        held.append(peer)
    return held


def test_malformed_peers_are_shed() -> None:
    with board() as one:
        eventually(lambda: answers(one.port))
        held = besiege(one.port)
        begun = time.monotonic()
        with Device.open(one.address) as device:
            assert device.describe()["cpu"]["cores"] >= 1
        assert time.monotonic() - begun < 5
        assert len(one.tree()) <= 3 + len(NONSENSE)  # no process for any of the silent
        for peer in held:
            peer.close()


def test_the_tracker_sheds_them_too() -> None:
    with tracker() as one, board("--name", "pi", "--tracker", one.address) as pi:
        held = besiege(one.port)
        begun = time.monotonic()
        known = Tracker("127.0.0.1", one.port, 5)
        known.boards()
        assert time.monotonic() - begun < 5
        eventually(lambda: known.boards() == [("pi", "127.0.0.1", pi.port)])
        for peer in held:
            peer.close()
        known.close()


def test_tvms_own_clients_are_served() -> None:
    with tracker() as one, board("--name", "pi", "--tracker", one.address) as pi:
        session = tvm.rpc.connect("127.0.0.1", pi.port, "pi")
        assert session.get_function("runtime.RPCTimeEvaluator") is not None
        del session
        # By way of the tracker, more than once.
        for _ in range(2):
            eventually(lambda: tvm.rpc.connect_tracker("127.0.0.1", one.port).summary()["queue_info"]["pi"]["free"])
            session = tvm.rpc.connect_tracker("127.0.0.1", one.port).request("pi", session_timeout=10)
            session.upload(bytearray(b"abc"), "file")
            assert bytes(session.download("file")) == b"abc"
            del session


def test_our_boards_register_with_tvms_tracker() -> None:
    theirs = TvmTracker("127.0.0.1", free_port(), 65535, silent=True)
    try:
        with board("--name", "pi", "--tracker", f"127.0.0.1:{theirs.port}") as pi:
            eventually(lambda: len(survey([f"pi@127.0.0.1:{theirs.port}"])) == 1)
            (row,) = survey([f"pi@127.0.0.1:{theirs.port}"])
            assert row["address"] == f"pi@127.0.0.1:{pi.port}" and row["error"] == ""
    finally:
        theirs.terminate()


def test_the_tracker_may_be_away() -> None:
    """Longer than a board's patience with one attempt; the long form of it is in test_boards."""
    with board("--name", "pi", "--tracker", f"127.0.0.1:{(port := free_port())}") as pi:
        assert f"tracker 127.0.0.1:{port}: " in pi.process.stderr.readline()
        time.sleep(1.5)
        with tracker(port) as one:
            eventually(lambda: survey([f"pi@127.0.0.1:{one.port}"]))
        time.sleep(1)
        with tracker(port) as one:
            eventually(lambda: survey([f"pi@127.0.0.1:{one.port}"]))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_a_listener_that_dies_or_hangs_is_replaced(how: signal.Signals) -> None:
    with board() as one:
        eventually(lambda: answers(one.port))
        first = Control("127.0.0.1", one.port, 5)
        old = one.listener()
        old.send_signal(how)
        eventually(lambda: answers(one.port) and one.listener().pid != old.pid, 30, "another listener")
        second = Control("127.0.0.1", one.port, 5)
        assert first.status["instance"] != second.status["instance"]
        first.close()
        second.close()


def test_sessions_end_with_the_server() -> None:
    with board() as one:
        eventually(lambda: answers(one.port))
        with Device.open(one.address):
            processes = one.tree()
            assert len(processes) == 3  # watchdog, listener, session
            one.process.terminate()
            one.process.wait(10)
            eventually(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes))


def test_a_lease_keeps_others_out_and_ends_with_its_connection() -> None:
    with board() as one:
        eventually(lambda: answers(one.port))
        with Device.open(one.address):
            with pytest.raises(BoardError, match=rf"in use by .*process {os.getpid()}"):
                Device.open(one.address, timeout=0.5)
            with pytest.raises(Exception, match=r"key|match"):
                tvm.rpc.connect("127.0.0.1", one.port, "")
            assert survey([one.address])[0]["owner"]
        with Device.open(one.address):
            pass


def test_a_lease_expires() -> None:
    with board() as one:
        eventually(lambda: answers(one.port))
        first, second = (Control("127.0.0.1", one.port, 5) for _ in range(2))
        assert first.request("lease", holder="a", owner="A", seconds=1)["key"]
        assert second.request("lease", holder="b", owner="B", seconds=1)["held_by"] == "A"
        key = second.request("lease", holder="a", owner="A", seconds=1)["key"]  # the same holder, connected anew
        assert key
        first.close()
        third = Control("127.0.0.1", one.port, 5)
        assert third.request("lease", holder="b", owner="B", seconds=1)["held_by"] == "A"
        eventually(lambda: "key" in third.request("lease", holder="b", owner="B", seconds=5), 5)
        second.close()
        third.close()


def test_nothing_listens_beyond_this_machine() -> None:
    with board() as one, tracker() as other:
        eventually(lambda: answers(one.port))
        pids = {p.pid for p in one.tree() + other.tree()}
        open_at = [
            c.laddr.ip for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN
        ]
        assert open_at and set(open_at) == {"127.0.0.1"}


@pytest.mark.parametrize("command", ["serve", "tracker"])
def test_beyond_this_machine_only_when_told_so(command: str) -> None:
    order = [sys.executable, "-m", "tvmcompress", "device", command, "--host", "0.0.0.0", "--port", str(free_port())]
    done = subprocess.run(order, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "--tls" in done.stderr and "--anyone-may-run-code" in done.stderr and "--ssh" in done.stderr
    process = subprocess.Popen([*order, "--anyone-may-run-code"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline().startswith("listening on 0.0.0.0:")
    process.terminate()
    assert process.wait(10) == 143
    process.stdout.close()


# -- TLS and SSH ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "keys"
    certificates.make(folder)
    assert (folder / "board.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists"):
        certificates.make(folder)
    return folder


def test_only_who_has_a_certificate_gets_through_tls(keys: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "others")
    with tracker() as known, board("--name", "pi", "--tls", str(keys)) as one:
        with Device.open(f"pi@{one.address}", route=Route(tls=str(keys))) as device:
            session = device.session
            session.upload(bytearray(b"abc" * 100000), "file")
            assert bytes(session.download("file")) == b"abc" * 100000
        with pytest.raises(BoardError):
            Device.open(one.address, timeout=5, route=Route(tls=str(tmp_path / "others")))
        with pytest.raises(BoardError):
            Device.open(one.address, timeout=5)
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", one.port)) as raw, pytest.raises(OSError):
            peer = bare.wrap_socket(raw)
            peer.sendall(wire.greeting(f"client:{wire.CONTROL}"))
            assert peer.recv(1) == b""
            raise ConnectionResetError
        held = besiege(one.port)
        begun = time.monotonic()
        with Device.open(one.address, route=Route(tls=str(keys))):
            assert time.monotonic() - begun < 5
        for peer in held:
            peer.close()
        assert known.port


def test_a_tracker_behind_tls(keys: Path) -> None:
    route, secure = Route(tls=str(keys)), ("--tls", str(keys))
    with board("--track", *secure) as known, board("--name", "pi", *secure, "--tracker", known.address):
        eventually(lambda: [r for r in survey([f"pi@{known.address}"], route) if not r["error"]])
        with Device.open(f"pi@{known.address}", route=route) as device:
            assert device.describe()["cpu"]["cores"]


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device keys"):
        front.context(tmp_path, "host", server=False)
    with pytest.raises(UsageError, match="one of --ssh and --tls"):
        Route("pi@board", "keys")


@pytest.fixture
def ssh_server(tmp_path: Path, monkeypatch):
    """An SSH server on this machine with a key for one user."""
    asyncssh = pytest.importorskip("asyncssh")
    import asyncio
    import threading

    own, host = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    own.write_private_key(str(home / ".ssh" / "id_ed25519"))
    authorized = asyncssh.import_authorized_keys(own.export_public_key().decode())

    class Server(asyncssh.SSHServer):
        def connection_requested(self, dest_host, dest_port, orig_host, orig_port):
            return True

    loop, ready = asyncio.new_event_loop(), threading.Event()
    found: list[int] = []

    async def serve() -> None:
        server = await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[host], authorized_client_keys=authorized, server_factory=Server
        )
        found.append(server.get_port())
        ready.set()

    loop.create_task(serve())
    threading.Thread(target=loop.run_forever, daemon=True).start()
    assert ready.wait(10)
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{found[0]} {host.export_public_key().decode()}")
    monkeypatch.setenv("HOME", str(home))
    yield f"tester@127.0.0.1:{found[0]}"
    loop.call_soon_threadsafe(loop.stop)


def test_through_ssh(ssh_server: str, monkeypatch, tmp_path: Path) -> None:
    with board("--name", "pi") as one:
        eventually(lambda: answers(one.port))
        with Device.open(f"pi@{one.address}", route=Route(ssh=ssh_server)) as device:
            device.session.upload(bytearray(b"abc" * 100000), "file")
            assert bytes(device.session.download("file")) == b"abc" * 100000
        with pytest.raises(BoardError, match=r"from there: .*failed"):
            Device.open(f"127.0.0.1:{free_port()}", timeout=3, route=Route(ssh=ssh_server))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    with pytest.raises(BoardError, match=r"host key is not known|not let in"):
        Device.open(one.address, timeout=5, route=Route(ssh=ssh_server))
