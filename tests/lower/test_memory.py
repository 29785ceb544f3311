"""Where tensors lie: nothing is allocated after loading but results, and sharing changes no number."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import tvmcompress as tc
from tests import networks
from tests.lower.tools import build
from tvmcompress import linking, runtime
from tvmcompress.cli import main
from tvmcompress.ir import evaluate, graph
from tvmcompress.lower.memory import Buffer, arena, assign
from tvmcompress.lower.pipeline import machine, machine_steps
from tvmcompress.report import figures
from tvmcompress.target import Target


def calls(lowered, function: str = "main") -> list[str]:
    """What a function of the virtual machine calls, in order."""
    text = next(part for part in lowered.executable.as_text().split("\n\n") if part.startswith(f"@{function}:"))
    return re.findall(r"call\s+(\S+)", text)


def matrix(seed: int, shape: tuple = (16, 16)) -> relax.Expr:
    # Small whole numbers: sums and products of them are exact in any order.
    return graph.const(np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32))


def test_only_results_are_allocated_by_a_call() -> None:
    def body(rw, x):
        for seed in range(6):
            x = rw.emit(relax.op.nn.relu(rw.emit(relax.op.matmul(x, matrix(seed)))))
        return [x]

    lowered = build(graph.program([("x", (4, 16), "float32")], body), "native")
    main = calls(lowered)
    assert main.count("vm.builtin.alloc_storage") == main.count("vm.builtin.alloc_tensor") == 1
    assert sum("matmul" in name for name in main) == 6
    # One check of dtype and one of shape for the input; those of weights are in `prepare`.
    assert main.count("vm.builtin.check_tensor_info") == main.count("vm.builtin.match_shape") == 1
    assert calls(lowered, "prepare").count("vm.builtin.alloc_storage") == 2
    assert lowered.memory.arena == 2 * 4 * 16 * 4


def test_a_residual_is_added_in_place() -> None:
    def body(rw, x):
        a = rw.emit(relax.op.matmul(x, matrix(0)))
        b = rw.emit(relax.op.matmul(a, matrix(1)))
        c = rw.emit(relax.op.add(rw.emit(relax.op.matmul(b, matrix(2))), a))
        return [rw.emit(relax.op.matmul(c, matrix(3)))]

    mod = graph.program([("x", (4, 16), "float32")], body)
    lowered = build(mod, "native")
    assert sum("_over_" in name for name in calls(lowered)) == 1
    assert lowered.memory.arena == 2 * 4 * 16 * 4  # with c apart it would be three
    check(mod, lowered)


@pytest.mark.parametrize("case", ["read later", "returned", "both operands", "an input"])
def test_operands_that_live_on(case: str) -> None:
    def body(rw, x):
        a = x if case == "an input" else rw.emit(relax.op.matmul(x, matrix(0)))
        if case == "both operands":
            c = rw.emit(relax.op.add(rw.emit(relax.op.matmul(a, matrix(1))), a))
            return [rw.emit(relax.op.matmul(c, matrix(3)))]
        b = rw.emit(relax.op.matmul(a, matrix(1)))
        c = rw.emit(relax.op.add(rw.emit(relax.op.matmul(b, matrix(2))), a))
        d = rw.emit(relax.op.matmul(c, matrix(3)))
        if case == "read later":
            return [rw.emit(relax.op.add(rw.emit(relax.op.matmul(d, matrix(4))), rw.emit(relax.op.negative(a))))]
        return [d, a] if case == "returned" else [d]

    mod = graph.program([("x", (4, 16), "float32")], body)
    lowered = build(mod, "native")
    if case in ("returned", "both operands", "an input"):
        assert not any("_over_" in name for name in calls(lowered))
    check(mod, lowered)


def check(mod: tvm.IRModule, lowered, times: int = 2) -> None:
    """The numbers are those of TVM's stock pipeline, with every call and to the last bit."""
    run = machine(lowered, linking.linker(Target.load("native")))
    rng = np.random.default_rng(1)
    wanted_of = evaluate.executor(mod)
    for _ in range(times):
        inputs = [rng.integers(-2, 3, graph.shape(p)).astype(np.float32) for p in mod["main"].params]
        kept = [i.copy() for i in inputs]
        got = run(inputs)
        for g, w in zip(got, wanted_of(inputs), strict=True):
            np.testing.assert_array_equal(g, w)
        for given, copy in zip(inputs, kept):
            np.testing.assert_array_equal(given, copy)


@pytest.mark.parametrize("seed", range(6))
def test_programs_at_random(seed: int) -> None:
    """Tensors that are read once and often, split, joined, seen in other shapes, added to themselves, returned."""
    rng = np.random.default_rng(seed)

    def body(rw, *inputs):
        known = list(inputs)
        for step in range(14):
            x, y = (known[i] for i in rng.integers(0, len(known), 2))
            kind = rng.integers(0, 7)
            if kind == 0:
                new = relax.op.matmul(x, matrix(step))
            elif kind == 1:
                new = relax.op.add(x, y)
            elif kind == 2:
                new = relax.op.add(rw.emit(relax.op.matmul(x, matrix(step))), y)
            elif kind == 3:
                turned = rw.emit(relax.op.permute_dims(x, [1, 0]))
                new = relax.op.reshape(turned, graph.shape(x))
            elif kind == 4:
                both = rw.emit(relax.op.split(x, 2, axis=1))
                parts = [rw.emit(relax.TupleGetItem(both, i)) for i in (1, 0)]
                new = relax.op.concat(parts, axis=1)
            elif kind == 5:
                new = relax.op.minimum(x, rw.emit(relax.op.mean(y, axis=[0], keepdims=True)))
            else:
                new = relax.op.clip(x, -3, 3)
            new = rw.emit(relax.op.clip(rw.emit(new), -64, 64))
            known.append(new)
        return [known[-1], known[int(rng.integers(2, len(known)))]]

    mod = graph.program([("x", (4, 16), "float32"), ("y", (4, 16), "float32")], body)
    check(mod, build(mod, "native"), times=3)


def test_storages_are_never_shared_at_one_time() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        buffers = []
        for first in range(20):
            buffers.append(Buffer(int(rng.integers(1, 9)) * 64, first, first + int(rng.integers(0, 5))))
        storages = assign(buffers)
        for one in buffers:
            assert one.storage in storages and one.nbytes <= one.storage.nbytes
            for other in buffers:
                if one is not other and one.storage is other.storage:
                    assert one.last < other.first or other.last < one.first
        most = max(sum(b.nbytes for b in buffers if b.first <= at <= b.last) for at in range(25))
        assert most <= sum(s.nbytes for s in storages) <= 1.6 * most


@I.ir_module
class Branches:
    @T.prim_func(private=True, s_tir=True)
    def double(x: T.Buffer((4,), "float32"), out: T.Buffer((4,), "float32")):
        for i in range(4):
            with T.sblock("double"):
                v = T.axis.spatial(4, i)
                out[v] = x[v] * T.float32(2)

    @R.function
    def main(x: R.Tensor((4,), "float32"), c: R.Tensor((), "bool")):
        R.func_attr({"relax.force_pure": True})
        cls = Branches
        a = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
        cls.double(x, a)
        b = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
        cls.double(a, b)
        if c:
            d = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
            cls.double(b, d)
            e = d
        else:
            e = b
        return (e,)


def test_what_branches_read_stays() -> None:
    """`b` may be the result: only `a` moves, and nothing is written over it, as `b` belongs to the caller."""
    mod, memory = arena(Branches, inputs=2)
    assert memory.arena == 16 and memory.weights == 0
    assert [p.name for p in mod["main"].params] == ["x", "c", "buffer_0"]
    assert mod["main"].script().count("alloc_tensor") == 2


@I.ir_module
class Tuples:
    @T.prim_func(private=True, s_tir=True)
    def double(x: T.Buffer((4,), "float32"), out: T.Buffer((4,), "float32")):
        for i in range(4):
            with T.sblock("double"):
                v = T.axis.spatial(4, i)
                out[v] = x[v] * T.float32(2)

    @R.function
    def main(x: R.Tensor((4,), "float32")):
        R.func_attr({"relax.force_pure": True})
        cls = Tuples
        a = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
        cls.double(x, a)
        b = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
        cls.double(a, b)
        whole = (b, x)
        again = whole
        nested = ((a, x), b)
        inner = nested[0]
        c = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
        d = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
        apart = (c, d)
        first = whole[0]
        cls.double(first, c)
        second = apart[0]
        cls.double(second, d)
        third = apart[1]
        e = R.builtin.alloc_tensor(R.shape([4]), R.dtype("float32"), 0, R.str("global"))
        cls.double(third, e)
        return (again, inner, e)


def test_tuples() -> None:
    """`a` and `b` are in tuples that are returned, by another name or inside another; `c` and `d` only pass through."""
    mod, memory = arena(Tuples, inputs=1)
    assert memory.arena == 16  # `d` is written over `c`
    assert mod["main"].script().count("alloc_tensor") == 3
    lowered = tvm.transform.Sequential(machine_steps())(mod)
    built = relax.build(lowered, tvm.target.Target({"kind": "llvm"}), relax_pipeline=tvm.transform.Sequential([]))
    vm = relax.VirtualMachine(built, tvm.cpu())
    x = np.arange(4, dtype=np.float32)
    (b, x_again), (a, _), e = vm["main"](tvm.runtime.tensor(x), *vm["prepare"]())
    for got, wanted in ((b, 4 * x), (x_again, x), (a, 2 * x), (e, 32 * x)):
        np.testing.assert_array_equal(got.numpy(), wanted)


# Deployed -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> tc.Package:
    path = tmp_path_factory.mktemp("memory") / "small.onnx"
    onnx.save(networks.small(), path)
    package = tc.compile(tc.load(path), tc.Target.load("native"), storage="plain")  # its padding would be coded
    package.save(path.with_suffix(".tar"))
    return tc.Package.load(path.with_suffix(".tar"))


def sample(seed: int) -> dict[str, np.ndarray]:
    x = runtime.aligned((1, 3, 16, 16), np.float32)
    x[:] = np.random.default_rng(seed).standard_normal(x.shape)
    return {"input": x}


def test_the_manifest_says_what_is_taken(package) -> None:
    memory = package.manifest["memory"]
    assert memory["arena"] == 8192  # two tensors of 8x8x16 floats, of which the sum is written over one
    assert memory["weights"] == sum(w.nbytes for w in package.weights())


def test_inspect_and_reports_say_it(package, capsys) -> None:
    assert main(["inspect", str(package.path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"memory of weights +23\.4 kB", shown) and re.search(r"between layers +8\.19 kB", shown)
    report = tc.deploy(package).measure(sample(0)["input"], repeats=1, cold_starts=1, budget_s=1)
    assert report.memory["plan"] == package.manifest["memory"]
    assert ("of it between layers", "8.19 kB", "") in dict(figures(report))["Memory"]


def resident() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_calls_take_no_memory(package) -> None:
    deployment, x = tc.deploy(package), sample(0)
    name = package.outputs[0].name
    places = {runtime.address(deployment(x)[name]) for _ in range(100)}
    before = resident()
    places |= {runtime.address(deployment(x)[name]) for _ in range(2000)}
    assert resident() - before < 256  # kB
    assert len(places) <= 2  # a result's memory serves again once the caller has let go of it


def test_two_deployments_and_four_threads(package) -> None:
    alone = tc.deploy(package, threads=1)
    name = package.outputs[0].name
    wanted = [alone(sample(seed))[name].copy() for seed in range(4)]
    deployments = [tc.deploy(package, threads=1) for _ in range(2)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(200):
            if not np.array_equal(deployments[seed % 2](sample(seed))[name], wanted[seed]):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_weights_are_the_files_own_pages(package) -> None:
    """Mapped, and never written: all processes that run the package share them."""
    deployment = tc.deploy(package)
    deployment(sample(0))
    pattern = rf"^(\w+)-(\w+) .*{re.escape(str(package.path))}\n(?:.*\n)*?Private_Dirty:\s+(\d+) kB"
    found = re.findall(pattern, Path("/proc/self/smaps").read_text(), re.MULTILINE)
    assert found and all(dirty == "0" for *_, dirty in found)
    mapped = [range(int(start, 16), int(end, 16)) for start, end, _ in found]
    weights = deployment._program._weights[: len(package.weights())]
    assert all(any(w.data_ptr() in pages for pages in mapped) for w in weights)
