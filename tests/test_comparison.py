"""Comparison: intervals, the gate, the matrix, and what is shown of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

from tests.comparisons import KERNEL, PLACES, comparison, latency, rounds
from tvmcompress.comparing import crossing, gate
from tvmcompress.comparing.places import groups, place, places
from tvmcompress.comparison import Comparison
from tvmcompress.errors import InputError, TargetError, UsageError
from tvmcompress.measurement import bootstrap, instructions

# Intervals ------------------------------------------------------------------------------------------------------------


def test_equal_rounds_leave_no_doubt():
    assert bootstrap.median([[2.0] * 10]) == bootstrap.Interval(2, 2, 2)
    assert bootstrap.ratio([[3.0] * 10], [[2.0] * 10], together=False) == bootstrap.Interval(1.5, 1.5, 1.5)


def test_the_interval_is_as_wide_as_theory_says():
    """The standard error of a median of n normal values is sigma · sqrt(pi / 2n): here 0.0125, so ±0.0246."""
    values = np.random.default_rng(0).normal(1, 0.1, 100).tolist()
    found = bootstrap.median([values])
    assert 0.5 * 0.049 < found.high - found.low < 1.6 * 0.049


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        found = bootstrap.median([random.normal(1, 0.1, 25).tolist()])
        held += found.low <= 1 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_rounds_in_turn_cancel_what_both_suffered():
    drift = np.linspace(1, 2, 30)
    ours, theirs = [(1.1 * drift).tolist()], [drift.tolist()]
    together, apart = (bootstrap.ratio(ours, theirs, t) for t in (True, False))
    assert together.high - together.low < 1e-9 and together.value == pytest.approx(1.1)
    assert apart.high - apart.low > 0.1


def test_processes_that_differ_widen_the_interval():
    even, uneven = [[1.0, 1.01] * 5] * 3, [[0.9, 0.91] * 5, [1.0, 1.01] * 5, [1.1, 1.11] * 5]
    assert bootstrap.median(even).high - bootstrap.median(even).low <= 0.011
    assert bootstrap.median(uneven).high - bootstrap.median(uneven).low > 0.1


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
    assert not gated(only, comparison())["passed"] and "nothing could be compared" in gated(only, None)["told"]


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


def test_few_rounds_decide_nothing():
    now = slower(1.0)
    row = {**now.results[1], "latency": {**now.results[1]["latency"], "rounds": [[9.0, 9.1]]}}
    found = gated(replace(now, results=[row]), comparison())
    assert not found["passed"] and "too few rounds" in found["rows"][0]["skipped"]


def test_what_cannot_be_gated_is_said_before_any_work():
    model = comparison().model
    with pytest.raises(UsageError, match="nothing to be slower than; give --baseline"):
        gate.check(None, model, 1, ["", "10.0.0.7"])
    gate.check(None, model, 2, [""])
    gate.check(None, model, 1, ["", ""])
    gate.check(comparison(), model, 1, [""])
    with pytest.raises(UsageError, match=r"of another model: resnet\.onnx .*not other\.onnx"):
        gate.check(comparison(), {"name": "other.onnx", "sha256": "cd"}, 1, [""])


# Places ---------------------------------------------------------------------------------------------------------------


def test_what_a_place_is():
    assert place("native").is_local and place("local").name == "native"
    board = place("rpi4@192.168.1.20:9090")
    assert (board.target.name, board.address, board.host) == ("rpi4", "192.168.1.20:9090", "192.168.1.20")
    assert place("rpi4@localhost:9090").host == "" and place("rpi4@[::1]:9090").host == ""
    machines = groups([place(text) for text in ("native", "rpi4@127.0.0.1:1", "rpi4@a:1", "rpi5@a:2", "rpi5@b:1")])
    assert {host: len(found) for host, found in machines.items()} == {"": 2, "a": 2, "b": 1}


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


# Instructions ---------------------------------------------------------------------------------------------------------

ASSEMBLY = """
	.type	__tvm_ffi_net,@function
__tvm_ffi_net:
	movq	%rdi, %rax
	retq
	.type	net_compute_,@function
net_compute_:
	leaq	__tvm_parallel_lambda.3(%rip), %rsi
	callq	*%rax
	retq
	.type	__tvm_parallel_lambda.3,@function
__tvm_parallel_lambda.3:
	vxorps	%xmm0, %xmm0, %xmm0
.LBB2_1:
	vmovups	(%rdi), %zmm1
.Ltmp7:
	vfmadd231ps	64(%rdi){1to16}, %zmm1, %zmm0
	vpdpbusd	%zmm1, %zmm2, %zmm3
	addq	$64, %rdi
	jne	.LBB2_1
	vmovups	%zmm0, (%rsi)
	retq
"""


def test_instructions_are_counted_by_what_they_do():
    found = instructions.mix(ASSEMBLY, "x86_64", ["net"])["net"]
    assert found["inner"] == {
        "dot product": 1, "multiply-add": 1, "vector": 0, "memory": 1, "branch": 1, "scalar": 1
    }  # fmt: skip
    assert found["all"] == {
        "dot product": 1, "multiply-add": 1, "vector": 1, "memory": 2, "branch": 4, "scalar": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "line", "group"),
    [
        ("aarch64", "sdot v0.4s, v1.16b, v2.4b[0]", "dot product"),
        ("aarch64", "smmla v0.4s, v1.16b, v2.16b", "dot product"),
        ("aarch64", "fmla v8.4s, v13.4s, v12.s[0]", "multiply-add"),
        ("aarch64", "smlal2 v0.4s, v1.8h, v2.h[1]", "multiply-add"),
        ("aarch64", "movi v8.2d, #0000000000000000", "vector"),
        ("aarch64", "ldp q13, q14, [x0, #-32]", "memory"),
        ("aarch64", "b.ne .LBB7_8", "branch"),
        ("aarch64", "cbz x0, .LBB7_8", "branch"),
        ("aarch64", "bic x0, x1, x2", "scalar"),
        ("aarch64", "subs x1, x1, #1", "scalar"),
        ("armv7l", "vmla.f32 q0, q1, d2[0]", "multiply-add"),
        ("armv7l", "vadd.f32 q0, q1, q2", "vector"),
        ("armv7l", "vld1.32 {d0, d1}, [r0]!", "memory"),
        ("riscv64", "vfmacc.vf v8, fa0, v12", "multiply-add"),
        ("riscv64", "vle32.v v8, (a0)", "memory"),
        ("riscv64", "vwmacc.vx v8, a0, v12", "multiply-add"),
        ("riscv64", "bne a0, a1, .LBB0_1", "branch"),
        ("riscv64", "addi a0, a0, 4", "scalar"),
        ("x86_64", "vpmaddwd %zmm0, %zmm1, %zmm2", "dot product"),
        ("x86_64", "vpaddd %zmm0, %zmm1, %zmm2", "vector"),
        ("x86_64", "movl $16, %ecx", "scalar"),
    ],
)
def test_groups(arch: str, line: str, group: str):
    mnemonic, _, operands = line.partition(" ")
    assert instructions.group_of(mnemonic, operands, instructions.compiled(arch)) == group


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
