"""A crew of boards: killed, frozen and cut off in the middle, with kernels that crash and hang.

The boards are servers on this machine. Their kernels are small libraries; crashes and hangs are written in C.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import psutil
import pytest

import tvmcompress as tc
from tests import networks
from tests.arm_board import arm_board  # noqa: F401  a fixture
from tests.boards import Cable, Served, answers, board, eventually, free_port, tracker
from tvmcompress import cpu, linking
from tvmcompress.errors import MissingDependencyError, TargetError, TvmcompressError, UsageError
from tvmcompress.kernels.choices import versions
from tvmcompress.target import Target
from tvmcompress.trials import board_key, target_key
from tvmcompress.tuning import bench, crew, tune
from tvmcompress.tuning import board as boards
from tvmcompress.tuning.bench import Job
from tvmcompress.tuning.crew import Crew
from tvmcompress.tuning.workshop import Workshop
from tvmcompress.tuning_log import TuningLog
from tvmcompress.wire import BoardError

CRASHES = "__attribute__((constructor)) static void go(void) { *(volatile int *)8 = 1; }"
HANGS = "__attribute__((constructor)) static void go(void) { for (;;) { } }"
# Takes the listener down, as a kernel would that hangs the whole board: the session's parent dies.
KILLS = (
    "#include <signal.h>\n#include <unistd.h>\n"
    "__attribute__((constructor)) static void go(void) { kill(getppid(), SIGKILL); for (;;) { } }"
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch) -> None:
    """The known kernel's time is not looked at here but where a test says so: this machine has other work."""
    monkeypatch.setattr(boards, "TOLERANCE", 1000.0)
    monkeypatch.setattr(bench, "RUN_S", 10.0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(Target.load("native"), tmp_path_factory.mktemp("shop"), 2)


@contextmanager
def crew_of(shop: Workshop, log: Path, *served: Served | str) -> Iterator[tuple[Crew, list]]:
    events: list[tuple[str, dict]] = []
    addresses = [one if isinstance(one, str) else one.address for one in served]
    with TuningLog.open(log) as opened:
        made = Crew(addresses, None, shop, opened, lambda name, facts: events.append((name, dict(facts))))
        try:
            yield made, events
        finally:
            made.close()


def spoiled(job: Job, code: str, folder: Path) -> Job:
    """A job whose library does something else when it is loaded."""
    shutil.copytree(job.built[0].folder, folder)
    (folder / "code.c").write_text(code)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "library.so", folder / "code.c"], check=True)
    return replace(job, built=[replace(job.built[0], folder=folder)])


def statuses(made: Crew, jobs: list[Job]) -> list[str]:
    found = dict(made.measure(jobs))
    return [found[i].status for i in range(len(jobs))]


def test_results_come_back_from_several_boards(shop, tmp_path) -> None:
    with board() as one, board() as two, crew_of(shop, tmp_path / "log", one, two) as (made, events):
        assert made.at_once == 2 and made.board == board_key(cpu.describe())
        outcomes = dict(made.measure([made.health] * 6))
        assert sorted(outcomes) == list(range(6))
        assert all(o.status == "ok" and min(o.value[0]) > 0 for o in outcomes.values())
        wrong = replace(made.health, reference=[made.health.reference[0] + 1])
        assert statuses(made, [wrong, made.health]) == ["wrong", "ok"]
        assert [name for name, _ in events].count("board") == 2


def test_crashing_and_hanging_kernels(shop, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "RUN_S", 3.0)
    with board() as one, crew_of(shop, tmp_path / "log", one) as (made, _):
        good = made.health
        bad = [spoiled(good, CRASHES, tmp_path / "a"), spoiled(good, HANGS, tmp_path / "b")]
        outcomes = dict(made.measure([good, *bad, good]))
        assert [outcomes[i].status for i in range(4)] == ["ok", "crash", "timeout", "ok"]
        assert "SIGSEGV" in outcomes[1].error
        listener = one.listener()
        eventually(lambda: not listener.children(), 10, "an end of its sessions")


def test_the_small_process_may_die_too(shop, tmp_path) -> None:
    with board() as one, crew_of(shop, tmp_path / "log", one) as (made, _):
        assert statuses(made, [made.health]) == ["ok"]
        made.nursery.process.kill()
        made.nursery.process.wait()
        assert statuses(made, [made.health] * 2) == ["ok"] * 2


def test_a_child_has_the_next_job_too_when_one_went_well(shop, tmp_path) -> None:
    with board() as one, crew_of(shop, tmp_path / "log", one) as (made, _):
        assert statuses(made, [made.health] * 2) == ["ok"] * 2
        (child,) = made.nursery.idle
        assert statuses(made, [made.health]) == ["ok"] and made.nursery.idle == [child]
        wrong = replace(made.health, reference=[made.health.reference[0][:1]])
        assert statuses(made, [wrong]) == ["wrong"] and not made.nursery.idle
        eventually(lambda: not psutil.pid_exists(child.pid))
        assert statuses(made, [made.health]) == ["ok"] and made.nursery.idle != [child]


def test_a_candidate_that_takes_the_board_down_twice_is_left_alone(shop, tmp_path) -> None:
    with board() as one, crew_of(shop, tmp_path / "log", one) as (made, _):
        outcomes = dict(made.measure([spoiled(made.health, KILLS, tmp_path / "a"), made.health]))
        assert outcomes[1].status == "ok"
        assert outcomes[0].status == "crash" and "2 times" in outcomes[0].error


def disturbed(made: Crew, events: list, disturb, restore) -> float:
    """Work goes on while the board is taken away and comes back; seconds from its return to the next result."""
    jobs, done, began, back = [made.health] * 40, [], time.monotonic(), threading.Event()
    returned: list[float] = []

    def interfere() -> None:
        while len(done) < 3 and time.monotonic() - began < 30:
            time.sleep(0.02)
        disturb()
        time.sleep(2.0)
        restore()
        returned.append(time.monotonic())
        back.set()

    thread = threading.Thread(target=interfere)
    thread.start()
    after = 0.0
    for _, outcome in made.measure(jobs):
        assert outcome.status == "ok", outcome.error  # nothing is charged to a candidate
        done.append(time.monotonic())
        if returned and not after:
            after = done[-1] - returned[0]
    thread.join()
    assert len(done) == len(jobs)
    return after


@pytest.mark.parametrize("how", ["killed", "frozen", "cut off"])
def test_a_board_that_goes_away_and_returns(how: str, shop, tmp_path) -> None:
    with board() as one:
        cable = Cable(one.port)
        actions = {
            "killed": (one.lose_power, one.start),
            "frozen": (lambda: one.send(signal.SIGSTOP), lambda: one.send(signal.SIGCONT)),
            "cut off": (lambda: setattr(cable, "cut", True), lambda: setattr(cable, "cut", False)),
        }
        before = set(psutil.Process().children())
        with crew_of(shop, tmp_path / "log", f"127.0.0.1:{cable.port}" if how == "cut off" else one) as (made, events):
            assert disturbed(made, events, *actions[how]) < 60
            if how == "killed":
                assert [n for n, _ in events if n in ("paused", "resumed")] == ["paused", "resumed"]
                assert made.paused_s > 1
        cable.close()
        left = set(psutil.Process().children()) - before - {psutil.Process(one.process.pid)}
        assert not left  # no process of ours


def test_a_board_in_a_network_that_is_cut(shop, tmp_path) -> None:
    """The real thing, where namespaces may be made: packets go nowhere, and nobody is told."""
    name, port = f"tvmc{os.getpid() % 10000}", free_port()
    run = lambda *words: subprocess.run(words, check=True, capture_output=True)  # noqa: E731
    try:
        run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespaces here")
    inside = ["ip", "netns", "exec", name]
    try:
        run("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        run("ip", "addr", "add", "10.77.0.1/24", "dev", f"{name}a")
        run("ip", "link", "set", f"{name}a", "up")
        run(*inside, "ip", "addr", "add", "10.77.0.2/24", "dev", f"{name}b")
        for device in (f"{name}b", "lo"):
            run(*inside, "ip", "link", "set", device, "up")
        options = ["--host", "10.77.0.2", "--port", str(port), "--anyone-may-run-code"]
        command = [*inside, os.sys.executable, "-m", "tvmcompress.serving", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        try:
            assert process.stdout.readline().startswith("listening")
            with crew_of(shop, tmp_path / "log", f"10.77.0.2:{port}") as (made, events):
                link = lambda state: run("ip", "link", "set", f"{name}a", state)  # noqa: E731
                assert disturbed(made, events, lambda: link("down"), lambda: link("up")) < 60
        finally:
            process.terminate()
            process.wait(10)
            process.stdout.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)


def test_boards_are_found_by_name_and_later_ones_join(shop, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(crew, "SCOUT_S", 0.5)
    with tracker() as known, board("--name", "pi", "--tracker", known.address) as one:
        eventually(lambda: answers(one.port))
        time.sleep(1)
        with crew_of(shop, tmp_path / "log", f"pi@{known.address}") as (made, _):
            assert made.at_once == 1
            with board("--name", "pi", "--tracker", known.address):
                eventually(lambda: made.at_once == 2)
                assert statuses(made, [made.health] * 4) == ["ok"] * 4
            known.lose_power()
            assert statuses(made, [made.health] * 2) == ["ok"] * 2  # those who know each other need no tracker
        with pytest.raises(BoardError, match="cannot connect"), crew_of(shop, tmp_path / "log", f"pi@{known.address}"):
            pass


@pytest.mark.long
def test_a_tracker_that_was_away_for_90_seconds(shop, tmp_path) -> None:
    port = free_port()
    with board("--name", "pi", "--tracker", f"127.0.0.1:{port}") as one:
        with tracker(port):
            time.sleep(3)
        time.sleep(90)
        begun = time.monotonic()
        with tracker(port), crew_of(shop, tmp_path / "log", one) as (made, _):
            assert statuses(made, [made.health]) == ["ok"]
            eventually(lambda: boards_at(port), 60)
            assert time.monotonic() - begun < 60


def boards_at(port: int) -> list[dict]:
    from tvmcompress.device import survey

    return survey([f"pi@127.0.0.1:{port}"])


def test_a_slow_board_is_not_believed(shop, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(boards, "TOLERANCE", 0.15)
    monkeypatch.setattr(boards, "TRIES", 1)
    with board() as one:
        with TuningLog.open(tmp_path / "log") as log:
            log.note_number(f"health {one.address} {target_key(shop.target)}", 1e-6)
        with pytest.raises(BoardError, match="times as long as it did"), crew_of(shop, tmp_path / "log", one):
            pass


def test_a_board_with_another_version_of_the_project(shop, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(boards, "PROTOCOL", 99)
    refused = pytest.raises(TargetError, match="its server is older")
    with board() as one, refused, crew_of(shop, tmp_path / "log", one):
        pass


def test_boards_that_do_not_fit(shop, tmp_path) -> None:
    other, log = Workshop(Target.load("rpi4"), tmp_path, 1), tmp_path / "log"
    said = r"x86_64, and rpi4 is for aarch64|apt-get install"
    with board("--name", "pi") as one:
        eventually(lambda: answers(one.port))
        with pytest.raises(TvmcompressError, match=said), crew_of(other, log, one):
            pass
        with pytest.raises(BoardError, match="the board there is 'pi'"), crew_of(shop, log, f"x@{one.address}"):
            pass
    with pytest.raises(BoardError, match="cannot connect"), crew_of(shop, log, f"127.0.0.1:{free_port()}"):
        pass


def test_tuning_on_boards_that_come_and_go(tmp_path, monkeypatch) -> None:
    """End to end: the same trials as without the disturbance, and none is charged to the board's absence."""
    monkeypatch.setattr(bench, "RUN_S", 60.0)  # nothing hangs here
    monkeypatch.setattr(crew, "DEATHS", 3)  # both may lose their power while they are at the same candidate
    onnx.save(networks.small(32), tmp_path / "net.onnx")
    model, events = tc.load(tmp_path / "net.onnx"), []
    with board() as one, board() as two:

        def tell(name: str, facts) -> None:
            events.append((name, dict(facts)))
            if name == "trial" and facts["count"] in (6, 12):
                (one if facts["count"] == 6 else two).lose_power()
            if name == "trial" and facts["count"] == 10:
                one.start()

        tune(
            model, "native", devices=[one.address, two.address], log=tmp_path / "log.db", trials=14, events=tell
        ).close()
    trials = [facts for name, facts in events if name == "trial"]
    assert len(trials) == 14 and [facts for facts in trials if facts["status"] != "ok"] == []
    assert any(name == "board" and facts["state"] == "away" for name, facts in events)
    with TuningLog.open(tmp_path / "log.db") as log:
        rows = log.trials()
        assert len({(t.workload, t.digest) for t in rows}) == len(rows) == 14
        assert {t.board for t in rows} == {board_key(cpu.describe())}


def test_a_device_that_is_not_there(tmp_path) -> None:
    onnx.save(networks.small(32), tmp_path / "net.onnx")
    with pytest.raises(BoardError, match="cannot connect"):
        tune(tc.load(tmp_path / "net.onnx"), "native", devices=[f"pi@127.0.0.1:{free_port()}"], log=tmp_path / "log.db")
    with pytest.raises(UsageError, match="two runs"):
        tune(tc.load(tmp_path / "net.onnx"), "native", devices=["local", "pi:1"], log=tmp_path / "log.db")
    with pytest.raises(TargetError, match="for a GPU"):
        tune(tc.load(tmp_path / "net.onnx"), "cuda-sm80", log=tmp_path / "log.db")
    with pytest.raises(TargetError, match="--device"):
        tune(tc.load(tmp_path / "net.onnx"), "riscv64", log=tmp_path / "log.db")


def test_an_emulated_board_checks_but_does_not_time(arm_board, tmp_path) -> None:  # noqa: F811
    """Its trials are kept apart, and `compile` does not go by them."""
    pytest.importorskip("xgboost")
    target = Target.load("rpi5")
    try:
        linking.linker(target)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    onnx.save(networks.small(32), tmp_path / "net.onnx")
    model, events = tc.load(tmp_path / "net.onnx"), []
    with arm_board.server() as address:
        tell = lambda name, facts: events.append((name, dict(facts)))  # noqa: E731
        only = "conv2d float32 1x16x16x16 to 24*"
        tune(model, target, devices=[address], log=tmp_path / "log", trials=3, only=only, events=tell).close()
    assert [facts["status"] for name, facts in events if name == "trial"] == ["ok"] * 3
    with TuningLog.open(tmp_path / "log") as log:
        (board,) = {trial.board for trial in log.trials()}
        assert board.endswith("emulated")
        assert log.decisions(target_key(target), versions()) == {}
        assert log.decisions(target_key(target), versions(), board)
