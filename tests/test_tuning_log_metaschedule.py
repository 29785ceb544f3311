"""A database of TVM's MetaSchedule, as TVM writes it and as accidents leave it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tvm
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms

from tests.cli.files import quick
from tvmcompress.compilation import tuned
from tvmcompress.errors import UsageError
from tvmcompress.target import Target
from tvmcompress.trials import from_record, record
from tvmcompress.tuning_log import TuningLog
from tvmcompress.tuning_log_metaschedule import FAILED, RECORDS, VERSIONS, WORKLOADS, is_database, read

SECONDS = ([0.001, 0.003, 0.002], [1e10], [0.5], None)
TARGET = {"kind": "llvm", "mcpu": "znver4", "num-cores": 2}


def product(size: int) -> tvm.tirx.PrimFunc:
    a, b = (te.placeholder((size, size), name=name) for name in "ab")
    k = te.reduce_axis((0, size))
    return te.create_prim_func([a, b, te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), "c")])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two programs with a record for each of SECONDS, by TVM itself."""
    folder = tmp_path_factory.mktemp("database")
    database = ms.database.JSONDatabase(str(folder / WORKLOADS), str(folder / RECORDS))
    for size in (16, 32):
        func = product(size)
        mod = tvm.IRModule({"main": func})
        workload, arguments = database.commit_workload(mod), ms.arg_info.ArgInfo.from_prim_func(func)
        for number, seconds in enumerate(SECONDS):
            sch = Schedule(mod)
            sch.split(sch.get_loops(sch.get_sblock("c"))[0], [None, 2**number])
            target = tvm.target.Target(TARGET)
            database.commit_tuning_record(ms.database.TuningRecord(sch.trace, workload, seconds, target, arguments))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path) -> Path:
    for name in (WORKLOADS, RECORDS):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    return tmp_path


def reasons(folder: Path) -> list[tuple[str, int, str]]:
    return [(lines.path.name, number, reason) for lines in read(folder)[1] for number, _, reason in lines.bad]


def test_what_tvm_wrote(folder: Path) -> None:
    trials, (workloads, records) = read(folder)
    assert not workloads.bad and [(n, why) for n, _, why in records.bad] == [
        (4, "never measured: its seconds are null"), (8, "never measured: its seconds are null"),
    ]  # fmt: skip
    assert [t.times_ms for t in trials] == [(1.0, 3.0, 2.0), (), (500.0,)] * 2
    assert [(t.status, t.error) for t in trials[:3]] == [("ok", ""), ("build_error", FAILED), ("ok", "")]
    assert len({t.workload for t in trials}) == 2 and len({t.target for t in trials}) == 1
    assert trials[0].target.startswith("tvm llvm znver4:") and trials[0].versions == VERSIONS
    sch = Schedule(tvm.IRModule({"main": product(16)}))
    tvm.s_tir.schedule.Trace.apply_json_to_schedule(trials[2].decisions["trace"], sch)  # the trace is whole
    assert len(sch.get_loops(sch.get_sblock("c"))) == 4
    assert all(from_record(json.loads(json.dumps(record(t)))) == t for t in trials)


def test_the_same_program_has_the_same_key_in_another_database(folder: Path, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    database = ms.database.JSONDatabase(str(other / WORKLOADS), str(other / RECORDS))
    database.commit_workload(tvm.IRModule({"main": product(32)}))
    (other / RECORDS).write_text("[0," + (folder / RECORDS).read_text().splitlines()[4].split(",", 1)[1] + "\n")
    (one,) = read(other)[0]
    assert one == read(folder)[0][3]


def test_torn_blank_and_foreign_lines(folder: Path) -> None:
    lines = (folder / RECORDS).read_text().splitlines()
    fields = json.loads(lines[0])
    changed = [json.dumps([fields[0], [*fields[1][:i], value, *fields[1][i + 1 :]]]) for i, value in (
        (0, "no trace"), (1, []), (1, [-1.0]), (1, [True]), (1, [float("nan")]), (1, ["1"]), (2, {}), (2, "llvm"),
    )]  # fmt: skip
    foreign = [
        '{"tvmcompress": 1}',
        "[1, 2]",
        "\x00garbage",
        "7",
        "[" * 100000,
        json.dumps([9, fields[1]]),
        json.dumps([-1, fields[1]]),
    ]
    torn = [lines[1][:length] for length in (1, 30, len(lines[1]) - 1)]
    (folder / RECORDS).write_text(
        "\n".join([lines[0], "", *changed, *foreign, "   ", lines[2], *torn[:2], lines[4], torn[2]])
    )
    trials, (workloads, records) = read(folder)
    assert [t.times_ms for t in trials] == [(1.0, 3.0, 2.0), (500.0,), (1.0, 3.0, 2.0)] and not workloads.bad
    assert len(records.bad) == len(changed) + len(foreign) + len(torn)
    assert [text for _, text, _ in records.bad] == [*changed, *foreign, *torn]
    why = [reason for _, _, reason in records.bad]
    assert all("seconds" in reason for reason in why[1:6]) and "number 9, is not in" in why[13] and "-1" in why[14]
    assert all("not JSON" in reason for reason in why[-3:]) and records.bad[0][0] == 3


def test_every_prefix_of_a_database_is_read(folder: Path) -> None:
    """As a run that is killed leaves it: only its last line is lost."""
    whole = (folder / RECORDS).read_bytes()
    for length in range(0, len(whole), 37):
        (folder / RECORDS).write_bytes(whole[:length])
        trials, (_, records) = read(folder)
        said = whole[:length].count(b"\n")
        assert len(trials) + len(records.bad) == said + (not whole[:length].endswith(b"\n") and length > 0)


def test_workloads_that_are_not_whole(folder: Path) -> None:
    """What comes after a torn one may be another's: it is not guessed."""
    first, second = (folder / WORKLOADS).read_text().splitlines()
    (folder / WORKLOADS).write_text(f"\n{first}\n\n{second}")
    assert len(read(folder)[0]) == 6
    for torn in (second[:-20], f'{second[:60]}"]', '["1", "AAAA"]', '["x", ""]'):
        (folder / WORKLOADS).write_text(f"{first}\n{torn}")
        assert len(read(folder)[0]) == 3 and (WORKLOADS, 2) in [row[:2] for row in reasons(folder)]
        (folder / WORKLOADS).write_text(f"{torn}\n{first}\n{second}\n")
        assert not read(folder)[0] and "is a bad line or comes after one" in reasons(folder)[1][2]
    (folder / WORKLOADS).write_text("")
    assert not read(folder)[0] and "is not in" in reasons(folder)[0][2]


def test_a_database_is_both_files(folder: Path, tmp_path) -> None:
    assert is_database(folder) and is_database(folder / WORKLOADS) and not is_database(folder / "log.jsonl")
    (folder / WORKLOADS).unlink()
    with pytest.raises(UsageError, match=f"there is no {WORKLOADS}"):
        read(folder)
    (folder / RECORDS).unlink()
    assert not is_database(folder)


def test_imported_by_the_command_and_used_by_nothing(folder: Path, capsys) -> None:
    path, native = folder / "log.db", Target.load("native")
    with (folder / RECORDS).open("a") as file:
        file.write("[0, [[")
    for said in ("6 new, 0 known, 3 bad", "0 new, 6 known, 3 bad"):
        assert quick(f"log import {folder} --log {path}") == 0
        assert said in capsys.readouterr().out
    assert "9: not JSON" in (folder / f"{RECORDS}.bad").read_text()
    assert quick(f"log import {folder / RECORDS} --log {path}") == 0
    assert quick(f"log import {folder.parent} --log {path}") == 2
    assert quick(f"log show --log {path}") == 0
    told = capsys.readouterr()
    assert "tvm llvm znver4" in told.out and "has no database of MetaSchedule" in told.err
    assert tuned(native, path) == tuned(native, None)
    with TuningLog.open(path) as log:
        assert quick(f"log export -o {folder / 'out.jsonl'} --all --log {path}") == 0
        with TuningLog.open(folder / "other.db") as other:
            assert other.import_lines((folder / "out.jsonl").read_text().splitlines()) == (6, 0, [])
            assert other.trials() == log.trials()
