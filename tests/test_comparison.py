"""Comparison: places, the gate, the matrix, who is visited when, and what is shown of it all."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.console import Console

from tests.comparisons import KERNEL, PLACES, comparison, latency, rounds
from tvmcompress.comparing import crossing, gate, visit_all
from tvmcompress.comparing.places import Place, machine, place, places
from tvmcompress.comparing.visit import Task, Visit
from tvmcompress.comparison import Comparison
from tvmcompress.device import Address
from tvmcompress.errors import InputError, TargetError, UsageError
from tvmcompress.wire import BoardError

# The gate -------------------------------------------------------------------------------------------------------------


def gated(now: Comparison, then: Comparison | None, limit: float = 0.05) -> dict:
    return gate.gate(limit, now.places, now.results, then)


def slower(by: float, noise: float = 0.02) -> Comparison:
    """The comparison with int8 on the first place slower."""
    found = comparison()
    ms = found.results[1]["latency"]["median"] * (1 + by)
    row = {**found.results[1], "latency": latency(ms, 9) | {"rounds": rounds(ms, 9, noise=noise)}}
    return replace(found, results=[found.results[0], row, *found.results[2:]])


@pytest.mark.parametrize(("by", "noise", "passed"), [(0, 0.02, True), (0.04, 0.001, True), (0.3, 0.02, False)])
def test_slower_than_the_baseline(by, noise, passed):
    found = gated(slower(by, noise), comparison())
    assert found["passed"] is passed
    assert [row["slower"] for row in found["rows"]] == [False, not passed, False, False, False, False]
    assert ("int8 on native" in found["told"]) is not passed


def test_what_may_be_chance_does_not_fail():
    """8% slower by the medians, in rounds that scatter by 40%."""
    found = gated(slower(0.08, 0.4), comparison())
    row = found["rows"][1]
    assert found["passed"] and row["low"] < 1.05 < row["high"]


def test_emulated_boards_are_not_gated_and_say_so():
    found = gated(comparison(), comparison())
    assert [bool(row["skipped"]) for row in found["rows"]] == [False] * 4 + [True] * 2
    assert "emulated" in found["rows"][-1]["skipped"] and found["rows"][-1]["ratio"] is None
    only = replace(comparison(), results=comparison().results[4:])
    found = gated(only, comparison())
    assert not found["passed"] and "nothing could be compared" in found["told"]
    assert gated(only, None)["passed"]  # the first time


def test_another_processor_is_no_baseline():
    then = comparison()
    then = replace(then, places=[{**place, "board": "another"} for place in then.places])
    found = gated(comparison(), then)
    assert not found["passed"] and "measured on another machine (another)" in found["rows"][0]["skipped"]


def test_without_a_baseline_variants_are_held_against_the_first_of_their_place():
    found = gated(comparison(), None)
    assert [(row["place"], row["variant"], row["against"]) for row in found["rows"]] == [
        (place, "int8", "float") for place in PLACES
    ]
    assert found["passed"] and found["rows"][0]["ratio"] < 0.3


def test_with_one_variant_places_of_one_machine_are():
    first, *_, last = comparison().results[::2]
    second = {**first, "place": "x86-64-v3", "latency": latency(9.6, 5)}
    where = [{"name": name, "machine_of": "this machine"} for name in ("native", "x86-64-v3", last["place"])]
    found = gate.gate(0.05, where, [first, second, last], None)
    assert [(row["place"], row["against"], row["slower"]) for row in found["rows"][:1]] == [
        ("x86-64-v3", "native", True)
    ]


def test_a_board_is_not_held_against_this_machine():
    """One is timed in a process, the other through RPC: the same code is not as fast there."""
    first, *_ = comparison().results
    second = {**first, "place": "native@localhost:9090", "latency": latency(9.6, 5)}
    where = [{"name": "native", "machine_of": "this machine", "address": "local"},
             {"name": second["place"], "machine_of": "this machine", "address": "localhost:9090"}]  # fmt: skip
    (row,) = gate.gate(0.05, where, [first, second], None)["rows"]
    assert not row["slower"] and "through RPC" in row["skipped"]


def test_few_rounds_decide_nothing():
    now = slower(1.0)
    row = {**now.results[1], "latency": {**now.results[1]["latency"], "rounds": [[9.0, 9.1]]}}
    found = gated(replace(now, results=[row]), comparison())
    assert not found["passed"] and "too few rounds" in found["rows"][0]["skipped"]


def test_what_cannot_be_gated_is_said_before_any_work():
    gate.check(None, comparison().model)
    gate.check(comparison(), comparison().model)
    with pytest.raises(UsageError, match=r"of another model: resnet\.onnx .*not other\.onnx"):
        gate.check(comparison(), {"name": "other.onnx", "sha256": "cd"})


def test_the_first_time_there_is_nothing_to_be_slower_than():
    found = gate.gate(0.05, [], [], None)
    assert found["passed"] and "baseline of the next time" in found["told"]
    assert not gated(replace(comparison(), results=[]), comparison())["passed"]


# Places ---------------------------------------------------------------------------------------------------------------


def test_what_a_place_is():
    assert place("native").is_local and place("local").name == "native"
    board = place("rpi4@192.168.1.20:9090")
    assert (board.target.name, board.address, board.host) == ("rpi4", "192.168.1.20:9090", "192.168.1.20")
    assert place("rpi4@localhost:9090").host == "" and place("rpi4@[::1]:9090").host == ""


def test_which_machine_runs_a_place(monkeypatch):
    """Of boards that a tracker knows it is theirs: they may be measured at the same time."""
    known = {
        "rpi4@tracker:1": ["one"], "rpi5@tracker:1": ["two"], "orin@tracker:1": ["three", "four"],
        "rpi4@127.0.0.1:1": ["127.0.0.1"], "rpi4@a:1": ["a"],
    }  # fmt: skip

    def find(text, _tunnels, _seconds):
        if text not in known:
            raise BoardError("away")
        return [Address(host, 9090) for host in known[text]]

    monkeypatch.setattr(sys.modules[Place.__module__], "find", find)
    texts = ["native", "rpi4@127.0.0.1:1", "rpi4@a:1", "rpi4@away:1", "rpi4@tracker:1", "rpi5@tracker:1"]
    assert [machine(place(text)) for text in texts] == ["", "", "a", "away", "one", "two"]
    several = Place("orin@tracker:1", place("rpi4@a:1").target, "tracker:1")
    assert machine(several) == "orin@tracker:1"


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], UsageError, "nowhere to run"),
        (["rpi9"], TargetError, "no target 'rpi9'; did you mean"),
        (["rpi9@a:1"], TargetError, "no target 'rpi9'; did you mean"),
        (["rpi4"], UsageError, "does not run on this machine; say where: rpi4@HOST:PORT"),
        (["rpi4@board"], UsageError, "wanted TARGET@HOST:PORT"),
        (["rpi4@a:99999"], UsageError, "wanted TARGET@HOST:PORT"),
        (["10.0.0.7:9090"], UsageError, "which target is it"),
        (["rpc://a:9090"], UsageError, "which target is it"),
        (["native", "local"], UsageError, "name each place once"),
        (["rpi4@a:1", "rpi4@a:1"], UsageError, "name each place once"),
    ],
)
def test_places_that_cannot_be(texts, error, message):
    with pytest.raises(error, match=re.escape(message)):
        places(texts)


# Visits ---------------------------------------------------------------------------------------------------------------


def visited(monkeypatch, fails: str = "") -> list[tuple[str, str]]:
    """What begins and ends, in order, when each visit takes a moment."""
    told: list[tuple[str, str]] = []

    def make(visit: Visit, task: Task) -> None:
        told.append(("begin", visit.place.name))
        if visit.place.name == fails:
            raise KeyboardInterrupt
        time.sleep(0.1)
        told.append(("end", visit.place.name))

    monkeypatch.setattr(Visit, "make", make)
    names = ["native", "rpi4@localhost:1", "rpi4@a:1", "rpi5@a:2", "rpi5@b:1"]
    visit_all([Visit(place(name), []) for name in names], Task([], [], None, None, 1, lambda *_: None))
    return told


def test_different_machines_are_visited_at_once_and_this_one_last(monkeypatch):
    told = visited(monkeypatch)
    assert {name for _, name in told[:2]} == {"rpi4@a:1", "rpi5@b:1"} and {what for what, _ in told[:2]} == {"begin"}
    assert told.index(("end", "rpi4@a:1")) < told.index(("begin", "rpi5@a:2"))
    here = ["native", "rpi4@localhost:1"]
    assert told[-4:] == [(what, name) for name in here for what in ("begin", "end")]


@pytest.mark.parametrize("where", ["native", "rpi5@b:1"])
def test_an_interrupt_comes_out(monkeypatch, where):
    with pytest.raises(KeyboardInterrupt):
        visited(monkeypatch, fails=where)


# The matrix -----------------------------------------------------------------------------------------------------------


class Made:
    """Stands for a package: what its kernels were made with."""

    def __init__(self, tables: crossing.Tables) -> None:
        self.manifest = {"kernels": [{"key": key, "decisions": made} for key, made in tables.items()]}


def crossed(packages: dict, accepts: set[str], tuned: bool = False) -> dict:
    """`accepts`: the kernels for which a place takes another's decisions."""
    own = {where: crossing.tables(package) for where, package in packages.items()}

    def made(where, tables):
        without = own[where] if tables else {**own[where], "a": {"tile": 0}}
        return Made({key: tables[key] if key in tables and key in accepts else mine for key, mine in without.items()})

    return {(r.of, r.on): r for r in crossing.cross("float", packages, made, lambda _place: tuned)}


@pytest.fixture(scope="module")
def two():
    return place("native"), place("x86-64-v2")


def test_decisions_are_carried_where_a_kernel_is_the_same(two):
    a, b = two
    packages = {
        a: Made({"a": {"tile": 1}, "b": {"tile": 2}, "mine": {"tile": 9}}),
        b: Made({"a": {"tile": 3}, "b": {"tile": 4}}),
    }
    row = crossed(packages, {"a"})["native", "x86-64-v2"]
    assert (row.kernels, row.shared, row.carried) == (2, 2, 1) and row.package is not None
    assert crossed(packages, {"a"})["x86-64-v2", "native"].kernels == 3


def test_what_comes_out_as_its_own_code_is_not_run(two):
    a, b = two
    same = {a: Made({"a": {"tile": 1}}), b: Made({"a": {"tile": 1}})}
    assert crossed(same, {"a"})["native", "x86-64-v2"].package is None
    refused = {a: Made({"a": {"tile": 1}}), b: Made({"a": {"tile": 2}})}
    row = crossed(refused, set())["native", "x86-64-v2"]
    assert (row.package, row.carried) == (None, 0)
    nothing = {a: Made({"a": {"tile": 1}}), b: Made({"b": {"tile": 1}})}
    assert crossed(nothing, {"a", "b"})["native", "x86-64-v2"].shared == 0


def test_a_tuned_place_is_also_run_untuned(two):
    a, b = two
    rows = crossed({a: Made({"a": {"tile": 7}}), b: Made({"a": {"tile": 0}})}, {"a"}, tuned=True)
    assert rows[crossing.UNTUNED, "native"].package is not None
    assert (crossing.UNTUNED, "x86-64-v2") not in rows  # its decisions are the untuned ones


def test_decisions_that_differ_are_told_one_by_one():
    packages = {
        "x": Made({"k": {"tile": {"pixels": 6, "lanes": 16}, "unroll": 1}, "only x": {"unroll": 1}}),
        "y": Made({"k": {"tile": {"pixels": 6, "lanes": 4}, "unroll": 1}}),
    }
    assert crossing.differing(packages) == [{"kernel": "k", "decision": "tile.lanes", "values": {"x": 16, "y": 4}}]


# What is shown --------------------------------------------------------------------------------------------------------


def shown(found: Comparison) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    return console.export_text()


def test_json_comes_back(tmp_path):
    found = comparison(gate=gated(comparison(), None))
    found.save(tmp_path / "c.json")
    assert Comparison.load(tmp_path / "c.json") == found
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1}', "null", "\0"])
def test_what_is_not_a_comparison(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError, match=r"c\.json"):
        Comparison.load(tmp_path / "c.json")


@pytest.mark.parametrize("times", [[[]], [[0.0]], [["1"]], [[1e999]], 3, [None]])
def test_times_that_are_none(tmp_path, times):
    value = comparison().json()
    value["results"][0]["latency"]["rounds"] = times
    (tmp_path / "c.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"c\.json"):
        Comparison.load(tmp_path / "c.json")


def test_an_emulated_board_has_no_times_anywhere():
    found = comparison()
    for row in [*found.results, *(r for t in found.kernels for r in t["rows"] if t["emulated"])]:
        assert not row.get("emulated") or row["latency"] is None
    for line in [*shown(found).splitlines(), *found.markdown().splitlines()]:
        if "cortex" in line.split("decided")[0] and "emulated" in line:
            assert not re.search(r"\d (ms|µs)\b", line), line


def test_all_of_it_is_shown_everywhere():
    found = comparison(gate=gated(comparison(), None))
    for text in (shown(found), found.markdown(), found.html()):
        for what in ("float", "int8", "emulated", "4.00×", "31.5 dB", "1.20", "conv2d"):
            assert what in text, what
    for text in (found.markdown(), found.html()):
        for what in (
            KERNEL,
            "tile.pixels",
            "multiply-add",
            "Passed",
            "fused multiply-add",
            "SHA" if "<" in text[:1] else "#",
        ):
            assert what in text, what


def test_markdown_tables_are_whole():
    """Every row has as many cells as its head, whatever names hold."""
    found = comparison()
    found = replace(found, model={**found.model, "name": "a|b"}, variants=[{"name": "x|y", "applied": []}])
    heads = 0
    for before, line in pairwise(found.markdown().splitlines()):
        if before.startswith("|") and line.startswith("|"):
            heads += set(line) <= set("|-: ")
            assert len(re.findall(r"(?<!\\)\|", before)) == len(re.findall(r"(?<!\\)\|", line))
    assert heads == 5


def test_names_cannot_break_the_page_or_the_tables():
    evil = "<img src=x onerror=alert(1)>|`[x](javascript:1)`</script>"
    found = comparison()
    rows = [{**row, "variant": evil, "error": evil} for row in found.results[:1]]
    found = replace(
        found, results=rows, model={**found.model, "name": evil}, variants=[{"name": evil, "applied": [evil]}]
    )
    page = found.html()
    assert "<img" not in page and page.count("</script>") == 1
    assert page.count("&lt;img") >= 4
    assert "<img" not in found.markdown().replace("\\<img", "")
    shown(found)


def test_the_page_needs_nothing_else():
    page = comparison().html()
    links = re.findall(r'(?:src|href)="?([^"\s>]+)', page)
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"url\(|@import|https?://", page)


def test_a_board_that_was_not_reached():
    found = comparison()
    lost = {**found.places[1], "reached": False, "error": "cannot connect: Connection refused", "machine": None}
    rows = [{**r, "error": lost["error"], "latency": None} if r["place"] == lost["name"] else r for r in found.results]
    found = replace(found, places=[found.places[0], lost, found.places[2]], results=rows)
    assert found.failed == [f"{lost['name']} was not reached: cannot connect: Connection refused"]
    for text in (shown(found), found.markdown(), found.html()):
        assert "was not reached" in text and "failed" in text
