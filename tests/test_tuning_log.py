"""The tuning log: what was measured stays, belongs to one target, and survives whatever happens to who writes it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.postgresql import postgresql  # noqa: F401  a fixture
from tvmcompress.cli.log import _table
from tvmcompress.errors import MissingDependencyError, UsageError
from tvmcompress.target import Target
from tvmcompress.trials import STATUSES, Trial, board_key, fastest, from_record, record, target_key
from tvmcompress.tuning_log import TuningLog, TuningLogError
from tvmcompress.tuning_log_database import OPTIONS
from tvmcompress.tuning_log_repair import repaired

ROOT = Path(__file__).parents[1]


def trial(number: int = 0, **changes) -> Trial:
    values = {
        "target": "native:1", "workload": "matmul float32 1x1x8 to 8", "board": "a board", "versions": "v",
        "decisions": {"tile": {"pixels": number}}, "times_ms": (1.0 + number, 1.1 + number),
    }  # fmt: skip
    return Trial(**{**values, **changes})


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new log may be: a file, and a server's database."""
    if request.param == "sqlite":
        return tmp_path / "deep" / "log.db"
    return request.getfixturevalue("postgresql").database()


def test_what_is_added_is_found(where) -> None:
    with TuningLog.open(where) as log:
        assert log.add(trial(2)) and log.add(trial(1)) and not log.add(trial(1, times_ms=(0.1,)))
        assert log.add(trial(0, status="run_crash", times_ms=(), error="SIGSEGV", conditions={"mhz": 1500}))
    with TuningLog.open(where) as log:
        assert log.best("native:1", trial().workload).decisions == {"tile": {"pixels": 1}}
        found = log.trials()
        assert [t.ms for t in found] == [3.05, 2.05, float("inf")]
        assert found[2].error == "SIGSEGV" and found[2].conditions == {"mhz": 1500} and found[2].at
        assert log.remove(found[:2]) == 2 and len(log.trials()) == 1


@pytest.mark.parametrize("name", ["target", "board", "versions", "workload"])
def test_never_found_for_another(name: str, where) -> None:
    with TuningLog.open(where) as log:
        log.add(trial())
        log.confirm(trial())
        place = {"target": "native:1", "workload": trial().workload, "board": "a board", "versions": "v"}
        assert log.best(**place) and not log.best(**{**place, name: "another"})
        if name != "workload":
            del place["workload"]
            assert log.decisions(**place) and not log.decisions(**{**place, name: "another"})


def test_a_target_is_more_than_its_name() -> None:
    one, other = Target.load("rpi4"), Target.load("rpi5")
    text = json.dumps({**one.describe(), "l2": 123})
    assert len({target_key(one), target_key(other), target_key(Target.load(text))}) == 3
    assert target_key(one) == target_key(Target.load(json.dumps({**one.describe(), "description": "other words"})))


def test_boards_differ_by_what_they_are() -> None:
    cpu = {"model": "Cortex-A72", "architecture": "aarch64", "cores": 4, "features": ["fp", "asimd"]}
    assert board_key(cpu) == board_key(dict(cpu)) != board_key({**cpu, "features": ["fp"]})
    assert board_key(cpu) != board_key({**cpu, "cores": 2})


@pytest.mark.parametrize("status", STATUSES)
def test_only_what_failed_for_no_fault_of_its_own_is_measured_again(status: str, where) -> None:
    with TuningLog.open(where) as log:
        times = (1.0,) if status == "ok" else ()
        log.add(trial(status=status, times_ms=times))
        assert log.add(trial(times_ms=(0.5,))) == (status in ("infra_error", "cancelled"))
        assert len(log.trials()) == 1


def test_show_counts_what_was_cancelled_by_itself() -> None:
    trials = [trial(0), trial(1), trial(2, status="cancelled", times_ms=())]
    table = _table(fastest(trials), trials, False)
    assert next(iter(table.columns[4].cells)).plain == "2" and table.caption.startswith("and 1 cancelled")
    assert not _table(fastest(trials), trials[:2], False).caption
    assert list(_table(trials, trials, True).columns[4].cells)[2].plain == "cancelled"


def test_confirmed_decisions_come_first(where) -> None:
    with TuningLog.open(where) as log:
        for number in range(3):
            log.add(trial(number))
        log.add(trial(7, workload="another", status="wrong_result", times_ms=()))
        assert log.decisions("native:1", "v") == {trial().workload: {"tile": {"pixels": 0}}}
        log.confirm(trial(2))
        log.confirm(trial(1))
        assert log.decisions("native:1", "v") == {trial().workload: {"tile": {"pixels": 1}}}


def test_what_nobody_confirmed_is_compared_with_the_untuned_form(where) -> None:
    """Alone a kernel takes longer than in the model, so that times as they are say nothing."""
    beside = {"untuned_ms": 0.1}
    with TuningLog.open(where) as log:
        log.add(trial(0, times_ms=(1.0,)))  # the untuned form, alone
        log.add(trial(1, times_ms=(0.11,), conditions=beside))
        log.add(trial(2, times_ms=(0.0995,), conditions=beside))  # not clearly faster
        assert log.decisions("native:1", "v") == {trial().workload: trial(0).decisions}
        assert log.best("native:1", trial().workload).decisions == trial(0).decisions
        log.add(trial(3, times_ms=(0.08,), conditions=beside))
        assert log.decisions("native:1", "v") == {trial().workload: trial(3).decisions}
        assert [t.decisions for t in log.chosen(log.trials())] == [trial(3).decisions]
        log.confirm(trial(0))
        assert [t.decisions for t in log.chosen(log.trials())] == [trial(0).decisions]


def test_of_trials_without_the_untuned_form_the_fastest_is_taken(where) -> None:
    """As in an export of the best alone."""
    with TuningLog.open(where) as log:
        log.add(trial(1, times_ms=(0.2,), conditions={"untuned_ms": 0.25}))
        assert log.decisions("native:1", "v") == {trial().workload: trial(1).decisions}
        log.add(trial(2, times_ms=(0.3,), conditions={"untuned_ms": 0.5}))
        assert log.decisions("native:1", "v") == {trial().workload: trial(2).decisions}


@pytest.mark.parametrize("way", ["export", "merge"])
def test_what_was_confirmed_goes_along(way: str, where, tmp_path) -> None:
    with TuningLog.open(tmp_path / "one.db") as log, TuningLog.open(where) as other:
        for number in range(3):
            log.add(trial(number))
        log.confirm(trial(2))

        def over() -> None:
            if way == "merge":
                other.merge(log)
            else:
                log.export(tmp_path / "out.jsonl", log.chosen(log.trials()))
                other.import_lines((tmp_path / "out.jsonl").read_text().splitlines())

        over()
        assert other.decisions("native:1", "v") == {trial().workload: trial(2).decisions}
        other.confirm(trial(1), "9999-01-01T00:00:00+00:00")  # later than what comes again
        over()
        assert other.decisions("native:1", "v") == {trial().workload: trial(1).decisions}


def test_what_others_add_is_found_by_its_number(where) -> None:
    place = ("native:1", "a board", "v")
    with TuningLog.open(where) as log:
        log.add(trial(0))
        last, found = log.since(0, *place)
        assert [t.decisions for t in found] == [trial(0).decisions] and log.since(last, *place) == (last, [])
        log.add(trial(1))
        log.add(trial(1, board="another"))
        assert [t.decisions for t in log.since(last, *place)[1]] == [trial(1).decisions]


def test_numbers_are_noted(where) -> None:
    with TuningLog.open(where) as log:
        assert log.number("of a board") is None
        log.note_number("of a board", 0.5)
        log.note_number("of a board", 0.1)
        assert log.number("of a board") == 0.1


def test_what_a_crash_prints_may_be_anything(where) -> None:
    with TuningLog.open(where) as log:
        log.add(trial(status="run_crash", times_ms=(), error="\x00bad\x01 “é” \U0001f525", conditions={"said": "\x00"}))
        (found,) = log.trials()
        assert found.error == "bad\x01 “é” \U0001f525" and found.conditions == {"said": "\x00"}


def test_time_spent_adds_up(where) -> None:
    with TuningLog.open(where) as log:
        assert log.spent("a job") == 0
        log.spend("a job", 2.5)
        log.spend("a job", 1.5)
        assert log.spent("a job") == 4.0 and log.spent("another") == 0


# -- records ----------------------------------------------------------------------------------------------------------


def test_records_come_back(where, tmp_path) -> None:
    trials = [trial(i, conditions={"temperature_c": 50.5}) for i in range(3)]
    with TuningLog.open(tmp_path / "one.db") as log, TuningLog.open(where) as other:
        for one in trials:
            log.add(one)
        assert log.export(tmp_path / "out.jsonl", log.trials()) == 3
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert other.import_lines(lines) == (3, 0, []) and other.import_lines(lines) == (0, 3, [])
        assert other.trials() == log.trials()


BAD = {
    '{"tvmcompress": 1, "target": "na': "not JSON",
    "\x00\x01garbage": "not JSON",
    "[1, 2]": "not a record",
    '["workload", [1e10], null]': "not a record",  # as in TVM's own database
    '{"tvmcompress": 9}': "version 9",
    json.dumps({**record(trial(at="now")), "times_ms": []}): "times_ms",
    json.dumps({**record(trial(at="now")), "times_ms": [-1.0]}): "times_ms",
    json.dumps({**record(trial(at="now")), "times_ms": ["1"]}): "times_ms",
    json.dumps({**record(trial(at="now")), "times_ms": [True]}): "times_ms",
    json.dumps({**record(trial(at="now")), "times_ms": [10**400]}): "times_ms",
    json.dumps({**record(trial(at="now")), "decisions": {"tile": float("nan")}}): "NaN",
    json.dumps({**record(trial(at="now")), "workload": "\ud800"}): "Unicode",
    json.dumps({**record(trial(at="now")), "confirmed": 3}): "confirmed",
    "[" * 200_000: "nested",
    json.dumps({**record(trial(at="now")), "status": "fine"}): "status",
    json.dumps({**record(trial(at="now")), "decisions": "none"}): "decisions",
    json.dumps({k: v for k, v in record(trial(at="now")).items() if k != "board"}): "board",
}


def test_bad_lines_are_set_aside_and_the_others_taken(where) -> None:
    good = [json.dumps(record(trial(i, at="now"))) for i in range(3)]
    lines = [good[0], "", *list(BAD), "   ", good[1], good[2], good[2][: len(good[2]) // 2]]
    with TuningLog.open(where) as log:
        new, known, bad = log.import_lines(lines)
        assert (new, known, len(log.trials())) == (3, 0, 3)
    assert [text for _, text, _ in bad] == [*BAD, good[2][: len(good[2]) // 2]]
    assert all(wanted in reason for (_, _, reason), wanted in zip(bad, BAD.values()))
    assert bad[0][0] == 3


def test_every_prefix_of_a_record_is_refused_or_whole() -> None:
    whole = json.dumps(record(trial(at="now")))
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            from_record(json.loads(whole[:length]))


# -- what may happen to a log -----------------------------------------------------------------------------------------


def test_a_newer_log_is_refused_and_left_alone(tmp_path) -> None:
    path = tmp_path / "log.db"
    TuningLog.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE about SET value = '99'")
    connection.close()
    with pytest.raises(TuningLogError, match="newer version"):
        TuningLog.open(path)
    with pytest.raises(TuningLogError, match="newer version"):
        repaired(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE about SET value = '2.1'")
    connection.close()
    with pytest.raises(TuningLogError, match="newer version"):
        TuningLog.open(path)


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("nosuch://host/db", UsageError, "postgresql"),
        ("postgresql://127.0.0.1:9/db", (TuningLogError, MissingDependencyError), "."),
        ("", UsageError, "folder"),
    ],
)
def test_what_cannot_be_a_log(where: str, error, said: str, tmp_path) -> None:
    with pytest.raises(error, match=said):
        TuningLog.open(where or tmp_path)


def test_something_else_is_no_log_and_repair_keeps_it(tmp_path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"not a database at all, but long enough to look like one " * 50)
    with pytest.raises(TuningLogError, match="log repair"):
        TuningLog.open(path)
    kept, count, aside = repaired(path)
    assert (kept, count) == (path, 0) and aside is not None and aside.read_bytes().startswith(b"not a database")
    TuningLog.open(path).close()


def test_repair_saves_what_can_be_read(tmp_path) -> None:
    path = tmp_path / "log.db"
    with TuningLog.open(path) as log:
        for number in range(400):
            log.add(trial(number, error="x" * 200))
    assert repaired(path) == (path, 400, None)
    size = path.stat().st_size
    with path.open("r+b") as file:  # pages in the middle of the file
        file.seek(size // 2)
        file.write(os.urandom(8192))
    path, count, aside = repaired(path)
    assert aside is not None and 200 < count < 400
    with TuningLog.open(path) as log:
        assert len(log.trials()) == count


@pytest.mark.parametrize("share", [0.95, 0.5])
def test_repair_of_a_file_that_was_cut_off(share: float, tmp_path) -> None:
    path = tmp_path / "log.db"
    with TuningLog.open(path) as log:
        for number in range(400):
            log.add(trial(number, error="x" * 200))
        log.confirm(trial(3))
        log.spend("a job", 7.0)
    os.truncate(path, int(path.stat().st_size * share))
    path, count, aside = repaired(path)
    assert aside is not None and 400 * share - 50 < count < 400
    with TuningLog.open(path) as log:
        assert len(log.trials()) == count
    assert not list(tmp_path.glob("*.repaired-*"))


def test_repair_keeps_what_was_confirmed_and_spent(tmp_path) -> None:
    path = tmp_path / "log.db"
    with TuningLog.open(path) as log:
        log.confirm(trial(3))
        log.spend("a job", 7.0)
        for number in range(400):
            log.add(trial(number, error="x" * 200))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size * 3 // 4)
        file.write(os.urandom(8192))
    repaired(path)
    with TuningLog.open(path) as log:
        assert log.decisions("native:1", "v") == {trial().workload: trial(3).decisions}
        assert log.spent("a job") == 7.0


def test_repair_leaves_a_log_alone_that_another_holds(tmp_path, monkeypatch) -> None:
    path = tmp_path / "log.db"
    with TuningLog.open(path) as log:
        log.add(trial())
    monkeypatch.setattr("tvmcompress.tuning_log_database.PATIENCE_S", 0.1)
    monkeypatch.setitem(OPTIONS, "sqlite", {"connect_args": {"timeout": 0.1}})
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(TuningLogError, match="locked"):
        repaired(path)
    writer.execute("DELETE FROM trials")
    writer.execute("COMMIT")
    writer.close()
    assert [one.name for one in tmp_path.iterdir() if "log.db-" not in one.name] == ["log.db"]
    assert repaired(path) == (path, 0, None)


def read_as_nobody(path: str, answers: multiprocessing.SimpleQueue) -> None:
    os.setgid(65534)
    os.setuid(65534)
    try:
        with TuningLog.open(path) as log:
            answers.put((len(log.trials()), len(log.decisions("native:1", "v"))))
            log.confirm(log.trials()[0])
    except TuningLogError as error:
        answers.put(str(error))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_a_log_that_may_only_be_read_is_read() -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def ask(path: Path) -> None:
        child = context.Process(target=read_as_nobody, args=(str(path), answers))
        child.start()
        child.join()

    with tempfile.TemporaryDirectory() as folder:  # not in pytest's own, which nobody else may enter
        path = Path(folder, "log.db")
        with TuningLog.open(path) as log:
            log.add(trial())
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        ask(path)
        assert answers.get() == (1, 1) and "readonly" in answers.get()
        path.chmod(0)
        ask(path)
        assert "may not be read" in answers.get()


def write_many(path: str, writer: int, count: int) -> None:
    with TuningLog.open(path) as log:
        for number in range(count):
            log.add(trial(number, workload=f"kernel {writer}", board=f"board {writer}"))
            log.add(trial(number, workload="kernel of all"))


def test_four_writers(where) -> None:
    """Nothing lost, doubled or filed under another; they also make the log all at once."""
    path, count = str(where), 250
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, i, count)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    with TuningLog.open(path) as log:
        assert len(log.trials()) == 5 * count
        for i in range(4):
            own = log.trials(workload=f"kernel {i}")
            assert {t.board for t in own} == {f"board {i}"}
            assert sorted(t.decisions["tile"]["pixels"] for t in own) == list(range(count))


WRITER = """
import sys
from tests.test_tuning_log import trial
from tvmcompress.tuning_log import TuningLog
with TuningLog.open(sys.argv[1]) as log:
    start = len(log.trials())
    print("ready", flush=True)
    for number in range(start, start + 10000):
        log.add(trial(number))
        print(number, flush=True)
"""


def killed_at_random(path: Path | str, rng: random.Random) -> int:
    """A writer killed at any moment: the number of the last trial of which it said that it is in the log."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.2))
        one.send_signal(signal.SIGKILL)
        said = one.stdout.read().split("\n")[:-1]
    return int(said[-1]) if said else -1


@pytest.mark.parametrize("times", [5, pytest.param(200, marks=pytest.mark.long)])
def test_a_killed_writer_loses_nothing(times: int, where) -> None:
    rng, path = random.Random(0), where
    for _ in range(times):
        last = killed_at_random(path, rng)
        with TuningLog.open(path) as log:
            found = [t.decisions["tile"]["pixels"] for t in log.trials()]
        assert found == list(range(len(found))) and len(found) > last


def fill_up(path: str, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with TuningLog.open(path) as log:
        for number in range(10000):
            log.add(trial(number, error="x" * 1000))


def full_disk(path: str, limit: int, pipe) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        fill_up(path, limit)
    except TuningLogError as error:
        pipe.send(str(error))


def test_a_full_disk_is_said_and_the_log_stays_whole(tmp_path) -> None:
    path = str(tmp_path / "log.db")
    with TuningLog.open(path) as log:
        for number in range(20):
            log.add(trial(-1 - number))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    writer = context.Process(target=full_disk, args=(path, 2_000_000, theirs))
    writer.start()
    assert ours.poll(60)
    said = ours.recv()
    writer.join()
    assert path in said and "bytes are free" in said and len(said.splitlines()) == 1
    with TuningLog.open(path) as log:
        found = [t.decisions["tile"]["pixels"] for t in log.trials()]
        assert found == [*range(-1, -21, -1), *range(len(found) - 20)] and len(found) > 100
        assert log.add(trial(20000))
