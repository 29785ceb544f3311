"""Convolutions and matrix products become calls of this project's kernels.

Weights known now are packed now; weights that are stored compressed are packed by operators that depend on nothing but
constants, which `weights` later moves to load time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph, ops
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.isa import BF16_BITS, Dot, Isa
from tvmcompress.kernels import conv2d as conv_kernel
from tvmcompress.kernels import depthwise as depthwise_kernel
from tvmcompress.kernels import matmul as matmul_kernel
from tvmcompress.kernels import normalization, tile, winograd, woven
from tvmcompress.kernels.choices import Choices, untuned
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.sparse import Product
from tvmcompress.kernels.sparse_rows_plan import PIXELS, PLANES
from tvmcompress.lower import compressed, packing, shared_rows, sparse, sparse_formats, swaps
from tvmcompress.lower.finish import Finish, Finishes
from tvmcompress.lower.layer_shapes import INTEGERS, convolution, row_of_pixels
from tvmcompress.lower.parts import Part, Parts, part
from tvmcompress.lower.sparse import KEEP, Keep
from tvmcompress.lower.sparse_layers import SparseLayers

FLOATS = ("float32", "float16", "bfloat16")
A_TASK = 4096  # exponentials
ANCHOR = {"op_pattern": 4}  # TVM's kOutEWiseFusable: element-wise work may be fused behind it


class Anchors:
    """The visitor. `done` collects what became a kernel: name, kind, macs, whether in integers, and the tile."""

    def __init__(self, mod: tvm.IRModule, isa: Isa, choices: Choices, neutral: bool = False, keep: Keep = KEEP) -> None:
        self.isa, self.choices, self.neutral = isa, choices, neutral
        self.done: list[dict] = []
        self.layers = SparseLayers(isa, choices, keep)
        self.layers.look(mod)
        self.finishes, self.finished = Finishes(mod), set[graph.Var]()
        self.bits: dict[Expr, Expr] = {}  # what is read as the bits of bfloat16, and these
        self.parts = Parts(isa)
        self.apart = swaps.apart(mod)
        self.handlers: dict[str, Callable] = {
            "relax.nn.conv2d": self.conv2d,
            "relax.matmul": self.matmul,
            "relax.concat": self.parts.concat,
            "relax.reshape": self.parts.shuffle,
            "relax.permute_dims": self.permute_dims,
            "relax.nn.layer_norm": self.layer_norm,
            "relax.nn.softmax": self.softmax,
            ops.LOCAL_RESPONSE_NORM: self.local_response_norm,
        }

    def __call__(self, rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        if var in self.finished:
            return next(a for a in expr.args if isinstance(a, relax.Var))
        if (view := self.layers.views(rw, var, expr)) is not None:
            return view
        handler = self.handlers.get(op_name(expr))
        data = [a for a in getattr(expr, "args", ()) if not isinstance(a, relax.ShapeExpr)]
        if handler is None or not all(graph.has_static_shape(a) for a in data):
            return None
        return handler(rw, var, expr)

    def permute_dims(self, rw, var, expr):
        return swaps.swapped(rw, var, expr, self.isa) if var in self.apart else None

    def note(self, var, kind: str, macs: int, kinds: tuple[str, str], tile) -> None:
        row = {"name": var.name, "kind": kind, "macs": macs, "dtype": "x".join(kinds), "integer": kinds[0] in INTEGERS}
        self.done.append(row | ({"tile": [tile.pixels, tile.vectors]} if tile else {}))

    def conv2d(self, rw, var, expr):
        weight, kinds = expr.args[1], (graph.dtype(expr.args[0]), graph.dtype(expr.args[1]))
        if not supported(*kinds) or (found := convolution(rw.definition, expr)) is None:
            return None
        x, conv, fill = found
        c, ic, planes = conv.c, graph.shape(weight)[1], self.layers.views.planes.get(x)
        if conv.groups == 1:
            x = self.whole_steps(rw, x, conv_kernel.instruction(conv, self.isa, *kinds)[0])
            c = graph.shape(x)[-1]
            conv = replace(conv, c=c, zeros=c - ic)
        shape = (conv.n, *conv.out, conv.oc)
        if (call := self.sparse(rw, var, x, weight, conv, kinds, fill, shape, "conv2d", planes)) is not None:
            return call
        if conv.groups == c and conv.groups > 1 and conv.oc % c == 0:
            return self.depthwise(rw, var, x, weight, conv, fill)
        if kinds == ("float32", "float32") and (fast := winograd.plan(conv, self.isa, self.choices)):
            return self.winograd(rw, var, x, weight, conv, fast)
        p = conv_kernel.plan(conv, self.isa, *kinds, self.choices)
        self.note(var, "conv2d", conv.macs, kinds, p.tile)
        packed = self.pack(
            weight,
            lambda value: conv_kernel.pack(value, conv, p),
            lambda e: self.operand(rw, packing.pack_conv(rw, e, conv, p), p),
        )
        read = part(rw, x) if graph.dtype(x) == p.data else Part(self.operand(rw, x, p), 0)
        call = rw.builder.call_te(
            lambda data, taps: conv_kernel.compute(tile.part(data, read.begin, c), taps, conv, p, fill),
            read.whole,
            packed,
            primfunc_name_hint=f"conv2d_{'int8' if kinds[0] in INTEGERS else kinds[0]}",
            primfunc_attrs=ANCHOR,
        )
        return cast_back(rw, call, var)

    def sparse(self, rw, var, x, weight, conv: Conv2d, kinds, fill: int, shape, kind: str, planes: Expr | None = None):
        """A sparse kernel's call with a result of `shape`, or None. `planes`: x as such."""
        if (found := sparse.stored(rw, weight)) is None:
            return None
        value, arrays = found[0].T[:, :, None, None] if kind == "matmul" else found[0], found[1]
        kernel = self.layers.decide(var.name, value, conv, kinds, arrays=arrays)
        if kernel is None:
            return None
        self.note(var, kind, conv.macs, kinds, None)
        how, apart = kernel.product, var in self.layers.views.members
        layouts = PLANES if planes is not None else PIXELS, PLANES if apart else PIXELS
        if PLANES in layouts and (other := sparse_formats.by_layout(kernel, conv, self.isa, self.choices, *layouts)):
            kernel, x = other, x if planes is None else planes
            shape = (conv.n, conv.oc, math.prod(conv.out)) if apart else shape
        x = self.operand(rw, x, how)
        x = x if graph.dtype(x) == how.data else rw.emit(relax.op.astype(x, how.data))
        x = kernel.source(rw, x, conv, fill) if planes is None else x
        streams = kernel.pack(value, conv)
        finish = self.finishes(var) if kernel.finishes else Finish()
        self.finished.update(finish.taken)
        function = rw.builder.add_func(kernel.program(conv, streams, shape, fill, finish), f"{kind}_sparse")
        bias = [] if finish.bias is None else [graph.const(np.ascontiguousarray(finish.bias))]
        operands = [x, *kernel.weights(rw, streams), *bias]
        call = relax.op.call_tir(function, operands, relax.TensorType(list(shape), how.sums))
        return self.layers.views.view(rw, call, var) if apart else cast_back(rw, call, var)

    def winograd(self, rw, var, x, weight, conv, p: winograd.Plan):
        self.note(var, "conv2d", conv.macs, ("float32", "float32"), p.tile)
        self.done[-1]["algorithm"] = "winograd"
        return rw.builder.call_te(
            lambda data, taps: winograd.compute(data, taps, conv, p),
            x,
            packing.transform_filters(rw, weight, conv, p),
            primfunc_name_hint="conv2d_winograd",
            primfunc_attrs=ANCHOR,
        )

    def pack(self, weight: Expr, now: Callable[[np.ndarray], np.ndarray], later: Callable[[Expr], Expr]) -> Expr:
        """Packed by NumPy now when the value is known; else, or to keep it for other targets too, by operators."""
        known = graph.is_const(weight) and not self.neutral
        return graph.const(now(graph.value(weight))) if known else later(weight)

    def operand(self, rw: Rewriter, x: Expr, p: conv_kernel.Plan | Product) -> Expr:
        """Activations as the kernel reads them: bfloat16 as bits, once, where it has a dot product for them."""
        if p.data != BF16_BITS:
            return x
        call = rw.definition(x)
        if op_name(call) == "relax.astype" and graph.dtype(call.args[0]) == "float32":
            x = call.args[0]
        if x not in self.bits:
            self.bits[x] = rw.emit(rw.builder.call_te(tile.bits, x, primfunc_name_hint="bits"))
        return self.bits[x]

    def whole_steps(self, rw, x, dot: Dot | None):
        """Channels padded to whole steps of the dot product, by an operator that is fused with what makes `x`.

        Their weights are zeros. Inside the convolution the same padding would be a pass over single bytes.
        """
        missing = -graph.shape(x)[-1] % dot.depth if dot else 0
        return rw.emit(relax.op.nn.pad(x, [0, 0, 0, 0, 0, 0, 0, missing])) if missing else x

    def depthwise(self, rw, var, x, weight, conv, fill):
        kinds = graph.dtype(x), graph.dtype(weight)
        self.note(var, "depthwise", conv.macs, kinds, None)
        if p := woven.plan(conv, self.isa, *kinds, self.choices):
            return self.woven(rw, x, weight, conv, fill, p)
        packed = self.pack(
            weight,
            lambda value: depthwise_kernel.pack(value, self.isa),
            lambda e: packing.pack_depthwise(rw, e, conv, self.isa),
        )
        call = rw.builder.call_te(
            lambda data, taps: depthwise_kernel.compute(data, taps, conv, self.isa, fill),
            x,
            packed,
            primfunc_name_hint=f"depthwise_{'int8' if graph.dtype(x) in INTEGERS else graph.dtype(x)}",
            primfunc_attrs=ANCHOR,
        )
        return cast_back(rw, call, var)

    def woven(self, rw, x, weight, conv, fill, p: woven.Woven):
        """Weights are packed when the package is loaded: stored they would be up to six times as large."""
        packed = rw.builder.call_te(lambda taps: woven.pack(taps, conv, self.isa, p), weight, primfunc_name_hint="pack")
        return rw.builder.call_te(
            lambda data, taps: woven.compute(data, taps, conv, self.isa, p, fill),
            x,
            rw.emit(packed),
            primfunc_name_hint="depthwise_int8",
            primfunc_attrs=ANCHOR,
        )

    def matmul(self, rw, var, expr):
        x, y = expr.args
        kinds = graph.dtype(x), graph.dtype(y)
        if not supported(*kinds) or len(x.ty.shape) < 2 or len(y.ty.shape) < 2 or 0 in graph.shape(var):
            return None
        dims = graph.shape(x)
        if len(y.ty.shape) > 2 or not depends_on_constants(rw, y):
            return self.batched(rw, var, x, y) if kinds[0] in FLOATS and kinds[1] in FLOATS else None
        _, n = graph.shape(y)
        if (found := self.layers.look_up(rw, var.name, x, y, kinds, self.neutral)) is not None:
            self.note(var, "matmul", int(np.prod(dims)) * n, kinds, None)
            self.done[-1]["algorithm"] = "looked up"
            return shared_rows.product(rw, x, found)
        outer = int(np.prod(dims[:-2]))
        if (call := self.sparse_matmul(rw, var, x, y, kinds)) is not None:
            return call
        p = matmul_kernel.plan(dims[-2], dims[-1], n, outer, self.isa, *kinds, self.choices)
        self.note(var, "matmul", int(np.prod(dims)) * n, kinds, p.tile)
        packed = self.pack(
            y, lambda value: matmul_kernel.pack(value, p), lambda e: self.operand(rw, packing.pack_matmul(rw, e, p), p)
        )
        call = rw.builder.call_te(
            lambda data, taps: matmul_kernel.compute(data, taps, n, p),
            self.operand(rw, x, p),
            packed,
            primfunc_name_hint=f"matmul_{'int8' if kinds[0] in INTEGERS else kinds[0]}",
            primfunc_attrs=ANCHOR,
        )
        return cast_back(rw, call, var)

    def sparse_matmul(self, rw, var, x, y, kinds):
        conv = row_of_pixels(graph.shape(x), graph.shape(y))
        if conv is None or sparse.stored(rw, y) is None:
            return None
        image = rw.emit(relax.op.reshape(x, (conv.n, 1, conv.w, conv.c)))
        image = self.whole_steps(rw, image, conv_kernel.instruction(conv, self.isa, *kinds)[0])
        c = graph.shape(image)[-1]
        conv, planes = replace(conv, c=c, zeros=c - conv.c), self.layers.views.planes.get(x)
        if sum(size != 1 for size in graph.shape(x)[:-2]) <= 1:
            return self.sparse(rw, var, image, y, conv, kinds, 0, graph.shape(var), "matmul", planes)
        # Kernels know of one axis of images.
        call = self.sparse(rw, var, image, y, conv, kinds, 0, (conv.n, 1, conv.w, conv.oc), "matmul", planes)
        return None if call is None else relax.op.reshape(rw.emit(call), graph.shape(var))

    def layer_norm(self, rw, var, expr):
        x, gain, shift = expr.args
        rank = len(x.ty.shape)
        if [int(a) % rank for a in expr.attrs.axes] != [rank - 1] or rank < 2 or graph.dtype(x) != "float32":
            return None
        epsilon = float(expr.attrs.epsilon)
        return rw.builder.call_te(
            lambda a, b, c: normalization.layer_norm(a, b, c, epsilon), x, gain, shift, primfunc_name_hint="layer_norm"
        )

    def softmax(self, rw, var, expr):
        x = expr.args[0]
        rank = len(x.ty.shape)
        if int(expr.attrs.axis) % rank != rank - 1 or rank < 2 or graph.dtype(x) != "float32" or 0 in graph.shape(x):
            return None
        *heads, n = graph.shape(x)
        rows = int(np.prod(heads))
        if n < normalization.LANES:
            return rw.builder.call_te(normalization.softmax, x, primfunc_name_hint="softmax")
        # Tasks of some ten microseconds.
        tasks = max(d for d in range(1, rows + 1) if rows % d == 0 and (d == 1 or rows // d * n >= A_TASK))
        x, scale = self.steps(rw, x)
        kernel = normalization.softmax_rows(
            tasks, rows // tasks, n, tasks > 1 and self.isa.cores > 1, graph.dtype(x), scale
        )
        name = rw.builder.add_func(kernel, "softmax")
        flat = (tasks, rows // tasks, n)
        y = relax.op.call_tir(name, [rw.emit(relax.op.reshape(x, flat))], relax.TensorType(flat, "float32"))
        return relax.op.reshape(rw.emit(y), (*heads, n))

    def steps(self, rw: Rewriter, x: Expr) -> tuple[Expr, float]:
        """The bytes that `x` is dequantized from, and their scale; or `x` itself, and 1. Where zero is gets lost."""
        call = rw.definition(x)
        if op_name(call) != "relax.dequantize" or graph.dtype(call.args[0]) not in INTEGERS:
            return x, 1.0
        scale = graph.value(call.args[1]) if graph.is_const(call.args[1]) else np.zeros(0)
        return (call.args[0], float(scale.reshape(()))) if scale.size == 1 else (x, 1.0)

    def local_response_norm(self, rw, var, expr):
        x, shape = expr.args[0], graph.shape(var)
        if graph.dtype(x) != "float32" or len(shape) < 3 or 0 in shape:
            return None
        size, *numbers = (float(v) for v in graph.value(expr.args[1]))
        flat = (int(np.prod(shape[:-2])), *shape[-2:])
        kernel = normalization.local_response_norm(flat, int(size), *numbers)
        name = rw.builder.add_func(kernel, "local_response_norm")
        x = rw.emit(relax.op.reshape(x, flat))
        y = rw.emit(relax.op.call_tir(name, [x], relax.TensorType(flat, "float32")))
        return relax.op.reshape(y, shape)

    def batched(self, rw, var, x, y):
        dims, n = graph.shape(var), graph.shape(y)[-1]
        self.note(var, "matmul", int(np.prod(dims)) * graph.shape(x)[-1], (graph.dtype(x), graph.dtype(y)), None)
        kinds, k = {graph.dtype(x), graph.dtype(y)}, graph.shape(x)[-1]
        data = kinds.pop() if len(kinds) == 1 else "float32"
        p = matmul_kernel.plan_batched(dims[-2], k, n, int(np.prod(dims[:-2])), self.isa, data, self.choices)
        call = rw.builder.call_te(
            lambda a, b: matmul_kernel.compute_batched(a, b, p),
            self.operand(rw, x, p),
            self.operand(rw, y, p),
            primfunc_name_hint="matmul_batched",
            primfunc_attrs=ANCHOR,
        )
        return cast_back(rw, call, var)


def supported(data: str, weight: str) -> bool:
    return (data in FLOATS and weight in FLOATS) or (data in INTEGERS and weight in ("int8", "int16"))


def cast_back(rw: Rewriter, call: Expr, var: graph.Var) -> Expr:
    """The kernels sum in float32 or int32; the program may have wanted a narrower result."""
    out = rw.emit(call, var.name)
    return out if graph.dtype(out) == graph.dtype(var) else relax.op.astype(out, graph.dtype(var))


def depends_on_constants(rw: Rewriter, expr: Expr) -> bool:
    """Whether an expression reads no input of the program."""
    if graph.is_const(expr):
        return True
    if isinstance(expr, relax.Tuple):
        return all(depends_on_constants(rw, f) for f in expr.fields)
    if isinstance(expr, relax.ShapeExpr | tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return True
    call = rw.definition(expr)
    if isinstance(call, relax.TupleGetItem):
        return depends_on_constants(rw, call.tuple_value)
    return isinstance(call, relax.Call) and all(depends_on_constants(rw, a) for a in call.args)


def anchors(
    mod: tvm.IRModule, isa: Isa, choices: Choices = untuned, neutral: bool = False, keep: Keep = KEEP
) -> tuple[tvm.IRModule, list[dict]]:
    """The program with kernels in place of convolutions and matrix products, and a row for each of these.

    `neutral` keeps weights in the program's own layout: they are packed when a package is loaded.
    """
    visitor = Anchors(mod, isa, choices, neutral, keep)
    mod = graph.rewrite(mod, visitor)
    zeros = {name: row for name, (_, row) in visitor.layers.kept.items() if row}
    return mod, compressed.said(visitor.done, {"sparse": zeros, "shared": visitor.layers.looked_up})
