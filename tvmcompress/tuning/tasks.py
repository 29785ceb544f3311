"""What there is to tune in a model: its convolutions and matrix products, each cut out with what is fused behind it;
and other programs that multiply much."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import tvm
from tvm import relax, tirx

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Var
from tvmcompress.isa import Isa
from tvmcompress.kernels.choices import Recorder, untuned
from tvmcompress.lower import planes, traces
from tvmcompress.lower.pipeline import lower_graph, lower_kernels
from tvmcompress.lower.sparse import KEEP
from tvmcompress.lower.sparse_layers import SparseLayers
from tvmcompress.timing.session import np_dtype

ANCHORS = ("relax.nn.conv2d", "relax.matmul")
# What is not fused behind an anchor though its shape is the same.
APART = (*ANCHORS, "relax.nn.softmax", "relax.nn.layer_norm", "relax.nn.pad", "relax.reshape", "relax.permute_dims")
FUSED = 12  # operators at most
PADDING = "relax.nn.pad"


@dataclass(frozen=True)
class Task:
    """A kernel to tune. `workload` is its key; `module` a program of that kernel alone; `calls` how often the model
    calls it in a run; `macs` what one call multiplies."""

    workload: str
    module: tvm.IRModule
    calls: int
    macs: int
    program: tirx.PrimFunc | None = None  # of a kernel without a family

    @property
    def exact(self) -> bool:
        """Whether integers among its results are computed as such; else they are rounded from floats."""
        return not any(graph.op_name(b.value) == "relax.quantize" for b in graph.bindings(self.module))

    @cached_property
    def facts(self) -> dict[str, float]:
        """What the cost model knows of it besides its decisions, as powers of two: what kernels have in common."""
        shape = [int(size) for size in self.module["main"].ret_ty.fields[0].shape]
        outputs = prod(shape)
        sizes = {"outputs": outputs, "channels": shape[-1] if shape else 1, "steps": self.macs / max(outputs, 1)}
        facts = {name: float(np.log2(1 + size)) for name, size in sizes.items()}
        return facts | {"integers": float("int8" in self.workload)}

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        """Random ones: normal floats, integers over their whole range."""
        rng = np.random.default_rng(seed)
        return [random_array(rng, graph.shape(p), graph.dtype(p)) for p in self.module["main"].params]


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype.startswith(("int", "uint")):
        info = np.iinfo(dtype)
        low, high = (info.min, info.max) if info.bits == 8 else (-1000, 1000)
        return rng.integers(low, high, shape, dtype, endpoint=True)
    return rng.standard_normal(shape).astype(np.float32).astype(np_dtype(dtype))


def tasks(module: tvm.IRModule, target: tvm.target.Target, isa: Isa) -> list[Task]:
    """Those of a program as compression left it, the largest first."""
    mod, _ = lower_graph(module, isa, lambda _step, _mod: None)
    slices: dict[str, tuple[tvm.IRModule, int]] = {}
    layers = SparseLayers(isa, untuned, KEEP)
    layers.look(mod)
    for anchor in anchors_of(mod):
        one = cut(mod, anchor, layers.views.members)
        if one is not None:
            name = signature(one)
            slices[name] = slices.get(name, (one, 0))[0], slices.get(name, (one, 0))[1] + 1
    found: dict[str, list[Task]] = {}
    for one, calls in slices.values():
        for workload, macs in keys(one, target, isa):
            found.setdefault(workload, []).append(Task(workload, one, calls, macs))
    # The same kernel with another epilogue shares its decisions: the form that is called most stands for all.
    merged = []
    for same in found.values():
        most = max(same, key=lambda task: task.calls)
        merged.append(Task(most.workload, most.module, sum(task.calls for task in same), most.macs))
    merged += without_family(mod, target, isa)
    return sorted(merged, key=lambda task: -task.macs * task.calls)


def anchors_of(mod: tvm.IRModule) -> Iterator[Var]:
    for binding in graph.bindings(mod):
        if graph.op_name(binding.value) in ANCHORS and all(graph.has_static_shape(a) for a in binding.value.args):
            yield binding.var


def cut(mod: tvm.IRModule, anchor: Var, members: Collection[Var] = ()) -> tvm.IRModule | None:
    """The program of one anchor, the padding before it and the element-wise operators that alone read it.

    What else these read is a parameter, unless it depends on constants alone. None when all of it does. `members` are
    planes in the program (see `lower.planes`), so that what is cut out takes and gives them with channels first.
    """
    definitions, readers = graph.definitions(mod), graph.consumers(mod)
    results = {v for r in graph.results(mod) for v in relax.analysis.free_vars(r)}
    chain = [anchor]
    while len(chain) <= FUSED:
        last = chain[-1]
        following = [v for v in readers.get(last, []) if v in definitions]
        if len(set(following)) != 1 or last in results or not fusable(definitions[following[0]], following[0], last):
            break
        chain.append(following[0])
    params: dict[Var, Var] = {}
    rewriter = graph.Rewriter()
    # A kernel takes in the padding before it, which is an operator of its own where zero points are not zero.
    before = [
        v
        for v in relax.analysis.free_vars(definitions[anchor])
        if v in definitions and graph.op_name(definitions[v]) == PADDING
    ]
    inside = constant_part(definitions, [*before, *chain])
    for var in inside:
        for read in relax.analysis.free_vars(definitions[var]):
            if read not in inside and read not in params:
                params[read] = relax.Var(f"x{len(params)}", turned(read, planes.first) if read in members else read.ty)
    if not params or any(not isinstance(p.ty, relax.TensorType) or not graph.has_static_shape(p) for p in params):
        return None
    rewriter.adopt(mod)
    rewriter.replacement.update(params)
    with rewriter.builder.function("main", list(params.values())):
        with rewriter.builder.dataflow():
            for read in (var for var in params if var in members):
                call = relax.op.permute_dims(params[read], planes.last(len(read.ty.shape)))
                rewriter.replacement[read] = rewriter.emit(call)
            for var in inside:
                rewriter.replacement[var] = rewriter.emit(rewriter.new(definitions[var]), var.name)
            out = rewriter.replacement[chain[-1]]
            if chain[-1] in members:
                out = rewriter.emit(relax.op.permute_dims(out, planes.first(len(out.ty.shape))))
            out = rewriter.builder.emit_output(relax.Tuple([out]))
        rewriter.builder.emit_func_output(out)
    return graph.remove_dead(rewriter.builder.finalize())


def turned(var: Var, axes: Callable[[int], list[int]]) -> relax.TensorType:
    shape = graph.shape(var)
    return relax.TensorType([shape[axis] for axis in axes(len(shape))], graph.dtype(var))


def fusable(expr: Expr, var: Var, before: Var) -> bool:
    if graph.op_name(expr) in APART or not isinstance(var.ty, relax.TensorType) or not graph.has_static_shape(var):
        return False
    return graph.shape(var) == graph.shape(before) and isinstance(expr, relax.Call)


def constant_part(definitions: dict[Var, Expr], chain: list[Var]) -> list[Var]:
    """The chain, and before it the bindings that it needs and that depend on constants alone; in order."""
    known: dict[Var, bool] = {}

    def constant(var: Var) -> bool:
        if var not in known:
            known[var] = var in definitions and all(map(constant, relax.analysis.free_vars(definitions[var])))
        return known[var]

    wanted, todo = set(chain), list(chain)
    while todo:
        for read in relax.analysis.free_vars(definitions[todo.pop()]):
            if read not in wanted and constant(read):
                wanted.add(read)
                todo.append(read)
    return [var for var in definitions if var in wanted]


def signature(mod: tvm.IRModule) -> str:
    """Equal for programs that differ only in the values of their weights."""
    places: dict[Var, int] = {}
    rows = [f"{p.ty}" for p in mod["main"].params]
    for p in mod["main"].params:
        places[p] = len(places)

    def told(expr: Expr) -> str:
        if isinstance(expr, relax.Var):
            return f"%{places[expr]}"
        if graph.is_const(expr):
            return f"{graph.dtype(expr)}{list(graph.shape(expr))}"
        if isinstance(expr, relax.Tuple):
            return ", ".join(map(told, expr.fields))
        if isinstance(expr, tvm.ir.GlobalVar):
            return str(
                mod[expr].without_attr("global_symbol") if "global_symbol" in (mod[expr].attrs or {}) else mod[expr]
            )
        return str(expr)

    for binding in graph.bindings(mod):
        expr = binding.value
        rows.append(
            f"{graph.op_name(expr)}({', '.join(map(told, getattr(expr, 'args', [])))}) {getattr(expr, 'attrs', '')}"
        )
        places[binding.var] = len(places)
    return "\n".join(rows)


class _Enough(Exception):
    """Schedules are made; nothing more is wanted."""


def keys(mod: tvm.IRModule, target: tvm.target.Target, isa: Isa) -> list[tuple[str, int]]:
    """The kernels in a program that take decisions, and what each multiplies."""
    from tvmcompress.lower.schedules import kernels
    from tvmcompress.lower.shared import programs

    found: Counter[str] = Counter()
    recorder = Recorder(untuned)

    def watch(step: str, module: tvm.IRModule) -> None:
        if step == "schedule":
            for row in kernels({var.name_hint: func for var, func in programs(module)}):
                if row["key"]:
                    found[row["key"]] += row["macs"]
            raise _Enough

    with contextlib.suppress(_Enough):
        lower_kernels(mod, target, isa, watch, recorder)
    return [(key, macs) for key, macs in found.items() if key in recorder.asked]


def without_family(mod: tvm.IRModule, target: tvm.target.Target, isa: Isa) -> list[Task]:
    """Programs of `lower_graph`'s that multiply and have no kernel of ours: each by itself, weights as parameters."""
    found: list[tvm.IRModule] = []

    def watch(step: str, module: tvm.IRModule) -> None:
        if step == "fuse":
            found.append(module)
            raise _Enough

    with contextlib.suppress(_Enough):
        lower_kernels(mod, target, isa, watch)
    (fused,) = found
    values = [b.value for b in graph.bindings(fused) if isinstance(b.var.ty, relax.TensorType)]
    calls = Counter(value.args[0] for value in values if graph.op_name(value) == "relax.call_tir")
    tasks: dict[str, Task] = {}
    for name, func in fused.functions_items():
        steps = traces.steps(func) if isinstance(func, tirx.PrimFunc) and calls[name] else 0
        if steps:
            key = traces.key(func)
            before = tasks[key].calls if key in tasks else 0
            tasks[key] = Task(key, alone(func), before + calls[name], steps, func)
    return list(tasks.values())


def alone(func: tirx.PrimFunc) -> tvm.IRModule:
    """A program of one call."""
    *inputs, output = [relax.TensorType([int(d) for d in p.ty.shape], str(p.ty.dtype)) for p in func.params]
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", kind) for i, kind in enumerate(inputs)]
    with builder.function("main", params):
        with builder.dataflow():
            kernel = builder.add_func(func.with_attr("global_symbol", "kernel"), "kernel")
            result = builder.emit(relax.op.call_tir(kernel, params, output))
            out = builder.emit_output(relax.Tuple([result]))
        builder.emit_func_output(out)
    return builder.finalize()
