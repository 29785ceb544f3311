"""Integer execution: from the quantized form to operators on integers.

    conv2d(dequantize(q, sx, zx), dequantize(W, sw)) -> dequantize(conv2d_i32(pad(q, zx), W) - zx * sum(W), sx * sw)
    add(dequantize(i32, s), bias)                    -> dequantize(i32 + round(bias / s), s)
    quantize(relu(dequantize(i32, s)), sy, zy)       -> requantize(i32, s / sy, zy, clip at zy)
    move(dequantize(q, s, z))                        -> dequantize(move(q), s, z)        reshape, max_pool, pad …
    quantize(f(dequantize(q, s, z)), sy, zy)         -> table[q]                         f element-wise: 256 entries

The result is again a Relax program; its int32 convolutions and matrix products are what `kernels` runs on dot-product
instructions. Padding holds the zero point, so that its correction is one constant a channel. Requantization is one
float32 multiplication by s / sy, rounded half to even, as ONNX Runtime has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.kernels import quantized
from tvmcompress.lower import elementwise, tables
from tvmcompress.lower.elementwise import channel_vector

BYTES = ("int8", "uint8")
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
MOVES = {
    f"relax.{name}"
    for name in [
        "nn.max_pool1d",
        "nn.max_pool2d",
        "nn.max_pool3d",
        "nn.pixel_shuffle",
        "max",
        "min",
        "take",
        "gather_elements",
        "gather_nd",
        "reshape",
        "permute_dims",
        "squeeze",
        "expand_dims",
        "strided_slice",
        "flip",
        "tile",
        "repeat",
        "broadcast_to",
        "flatten",
        "nn.batch_flatten",
    ]
}
RESHAPES = {"relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten", "relax.nn.batch_flatten"}


def ints(values) -> list[int]:
    return [int(v) for v in values]


@dataclass(frozen=True)
class Quantized:
    """What a dequantize reads: the integer expression, its scale and zero point, and their axis (None: one for all).

    `scale` and `zero` are NumPy arrays, or expressions when they are computed at run time.
    """

    q: Expr
    scale: np.ndarray | Expr
    zero: np.ndarray | Expr
    axis: int | None

    @property
    def constant(self) -> bool:
        return isinstance(self.scale, np.ndarray) and isinstance(self.zero, np.ndarray)

    @property
    def per_tensor(self) -> bool:
        return self.axis is None


class Integer:
    """The visitor. `prefer` is the dtype in which the target's kernels read activations, `fused` whether it multiplies
    and adds floats in one instruction."""

    def __init__(self, prefer: str, fused: bool) -> None:
        self.fused = fused
        self.prefer = prefer if prefer in BYTES else ""
        self.shifted: dict[Expr, tuple[Expr, int]] = {}  # q -> the same values in the preferred dtype, and the offset
        self.handlers: dict[str, Callable] = {
            "relax.quantize": self.quantize,
            "relax.dequantize": self.dequantize,
            "relax.nn.conv2d": self.conv2d,
            "relax.matmul": self.matmul,
            "relax.add": self.add,
            "relax.subtract": self.subtract,
            "relax.multiply": self.multiply,
            "relax.astype": self.astype,
            "relax.nn.pad": self.pad,
            "relax.split": self.split,
            "relax.concat": self.concat,
            "relax.mean": self.mean,
            "relax.nn.adaptive_avg_pool2d": self.adaptive_avg_pool2d,
            "relax.nn.avg_pool2d": self.avg_pool2d,
            "relax.image.resize2d": self.resize2d,
        }

    def __call__(self, rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        name = op_name(expr)
        if name in self.handlers:
            return self.handlers[name](rw, var, expr)
        if name in MOVES:
            return self.move(rw, var, expr)
        return None

    # -- reading the quantized form --------------------------------------------------------------------------------

    def read(self, rw: Rewriter, expr: Expr) -> Quantized | None:
        """The Quantized behind an expression, None when it is not a dequantize into float32."""
        call = rw.definition(expr)
        if call is None or op_name(call) != "relax.dequantize" or graph.dtype(expr) != "float32":
            return None
        q, scale, zero = call.args
        if not graph.is_const(scale) or not graph.is_const(zero):
            return Quantized(q, scale, zero, None) if graph.shape(scale) in ((), (1,)) else None
        s, z = graph.value(scale).astype(np.float32), graph.value(zero).astype(np.int64)
        if s.size == 1 and z.size == 1:
            return Quantized(q, s.reshape(()), z.reshape(()), None)
        rank = len(q.ty.shape)
        axis = int(call.attrs.axis) % rank
        size = graph.shape(q)[axis]
        return Quantized(q, np.broadcast_to(s, (size,)), np.broadcast_to(z, (size,)), axis)

    def byte(self, rw: Rewriter, expr: Expr) -> Quantized | None:
        """Like `read`, for one scale and an 8-bit integer known at compile time."""
        found = self.read(rw, expr)
        if found is None or not found.per_tensor or not found.constant or graph.dtype(found.q) not in BYTES:
            return None
        return found

    def sums(self, rw: Rewriter, expr: Expr) -> Quantized | None:
        """Like `read`, for int32 sums with zero point 0, along the last axis."""
        found = self.read(rw, expr)
        if found is None or not found.constant or graph.dtype(found.q) != "int32" or np.any(found.zero):
            return None
        return found if found.axis is None or found.axis == len(found.q.ty.shape) - 1 else None

    def make(self, rw: Rewriter, q: Expr, like: Quantized, var: graph.Var | None = None) -> Expr:
        """dequantize(q) with the parameters of `like`."""
        dtype = graph.dtype(rw.emit(q))
        q = rw.emit(q)
        scale = graph.const(like.scale.astype(np.float32)) if isinstance(like.scale, np.ndarray) else like.scale
        zero = graph.const(like.zero.astype(dtype)) if isinstance(like.zero, np.ndarray) else like.zero
        axis = -1 if like.axis is None else like.axis
        return rw.emit(relax.op.dequantize(q, scale, zero, axis), "" if var is None else var.name)

    # -- borders ---------------------------------------------------------------------------------------------------

    def quantize(self, rw, var, expr):
        x, scale, zero = expr.args
        dtype = str(expr.attrs.out_dtype)
        if dtype not in BYTES or not (graph.is_const(scale) and graph.is_const(zero)):
            return None
        s, z = graph.value(scale), graph.value(zero)
        if s.size != 1 or z.size != 1:
            return None
        s, z = np.float32(s.reshape(())), int(z.reshape(()))
        wanted = self.prefer or dtype
        offset = 0 if dtype == wanted else 128 if wanted == "uint8" else -128
        q = self.requantized(rw, x, s, z + offset, wanted, var.name)
        if not offset:
            return q
        back = rw.emit(quantized.shift(rw.builder, q, -offset, dtype))
        self.shifted[back] = (q, offset)
        return back

    def requantized(self, rw: Rewriter, x: Expr, s: np.float32, z: int, dtype: str, name: str) -> Expr:
        """x as integers of scale s and zero point z, by the shortest way."""
        inner, low, high = self.bounds(rw, x)
        qmin, qmax = LIMITS[dtype]
        lo = qmin if low == -np.inf else int(np.clip(np.rint(low / s) + z, qmin, qmax))
        hi = qmax if high == np.inf else int(np.clip(np.rint(high / s) + z, qmin, qmax))
        found = self.sums(rw, inner)
        if found is not None:
            factor = (found.scale.astype(np.float64) / np.float64(s)).astype(np.float32)
            return rw.emit(quantized.requantize(rw.builder, found.q, factor, z, lo, hi, dtype), name)
        found = self.byte(rw, inner)
        if found is not None:
            same = found.scale == s and int(found.zero) == z and graph.dtype(found.q) == dtype
            if same and (lo, hi) == (qmin, qmax):
                return found.q
            if same:
                return rw.emit(relax.op.clip(found.q, lo, hi), name)
        call = rw.definition(x)
        out = elementwise.Out(s, z, lo, hi, dtype)
        whole = elementwise.add(rw, inner, self.byte, out, self.fused)
        whole = elementwise.affine(rw, inner, self.byte, out) if whole is None else whole
        if whole is not None:
            return rw.emit(whole, name)
        if op_name(call) == "relax.concat" and isinstance(call.args[0], relax.Tuple):
            fields = [self.requantized(rw, f, s, z, dtype, "") for f in call.args[0].fields]
            return rw.emit(relax.op.concat(fields, call.attrs.axis), name)
        table = tables.table(rw, x, self.byte, s, z, dtype)
        if table is not None:
            return rw.emit(quantized.look_up(rw.builder, *table), name)
        return rw.emit(relax.op.quantize(x, graph.const(s), graph.const(z, dtype), -1, dtype), name)

    def bounds(self, rw: Rewriter, x: Expr) -> tuple[Expr, float, float]:
        """What x is before relu and clip, and the bounds these set."""
        low, high = -np.inf, np.inf
        while True:
            call = rw.definition(x)
            name = op_name(call) if call is not None else ""
            if name == "relax.nn.relu":
                inner = (0.0, np.inf)
            elif name == "relax.clip":
                inner = (graph.number(call.args[1]), graph.number(call.args[2]))
            else:
                return x, low, high
            low, high = max(min(inner[0], high), low), min(max(inner[1], low), high)
            x = call.args[0]

    def dequantize(self, rw, var, expr):
        q, scale, zero = expr.args
        if q in self.shifted:
            inner, offset = self.shifted[q]
            return relax.op.dequantize(
                inner,
                scale,
                graph.const((graph.value(zero).astype(int) + offset).astype(graph.dtype(inner))),
                expr.attrs.axis,
                str(expr.attrs.out_dtype),
            )
        if graph.dtype(var) != "float32":
            return None
        if graph.is_const(q) and graph.dtype(q) == "int32" and graph.is_const(scale) and graph.is_const(zero):
            # A bias: not worth integers of its own, `add` folds it into the sums.
            rank = len(q.ty.shape)
            s, z = graph.value(scale), graph.value(zero)
            if s.size > 1:
                form = [1] * rank
                form[int(expr.attrs.axis) % rank] = -1
                s, z = s.reshape(form), z.reshape(form) if z.size > 1 else z
            return graph.const(((graph.value(q).astype(np.float64) - z) * s).astype(np.float32))
        return None

    # -- products --------------------------------------------------------------------------------------------------

    def weights(self, rw: Rewriter, expr: Expr, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Constant weights with their zero point taken off (int8, or int16 if it must be) and scales along `axis`."""
        found = self.read(rw, expr)
        if found is None or not found.constant or not graph.is_const(found.q) or graph.dtype(found.q) not in BYTES:
            return None
        rank = len(found.q.ty.shape)
        if found.axis is not None and found.axis != axis % rank:
            return None
        w, z = graph.value(found.q), found.zero
        if np.any(z) or w.dtype == np.uint8:
            form = [1] * rank
            if found.axis is not None:
                form[found.axis] = -1
            w = w.astype(np.int16) - z.reshape(form).astype(np.int16)
            if w.min() >= -128 and w.max() <= 127:
                w = w.astype(np.int8)
        return w, np.broadcast_to(found.scale, (w.shape[axis],))

    def operands(self, rw, expr, axis):
        """(data, weights, scales) of an integer product, None when it has to stay in float."""
        data = self.read(rw, expr.args[0])
        if data is None or not data.per_tensor or graph.dtype(data.q) not in BYTES:
            return None
        weights = self.weights(rw, expr.args[1], axis)
        return (self.preferred(rw, data), *weights) if weights else None

    def preferred(self, rw: Rewriter, data: Quantized) -> Quantized:
        """The same values in the dtype that the target's dot product reads."""
        kind = graph.dtype(data.q)
        if not self.prefer or kind == self.prefer:
            return data
        offset = 128 if self.prefer == "uint8" else -128
        q = rw.emit(quantized.shift(rw.builder, data.q, offset, self.prefer))
        if isinstance(data.zero, np.ndarray):
            return Quantized(q, data.scale, np.asarray(data.zero + offset), None)
        zero = rw.emit(relax.op.add(rw.emit(relax.op.astype(data.zero, "int32")), graph.const(offset, "int32")))
        return Quantized(q, data.scale, zero, None)

    def finish(self, rw, var, acc: Expr, data: Quantized, sums: np.ndarray, scales: np.ndarray) -> Expr:
        """dequantize(acc - zero * sums), the zero point's part being one constant a channel.

        The layer's name stays with the integer product: it is what the report lists.
        """
        acc = rw.emit(acc, var.name)
        if data.constant:
            correction = -(int(data.zero) * sums.astype(np.int64))
            if np.any(correction):
                acc = rw.emit(relax.op.add(acc, graph.const(correction.astype(np.int32))))
            scale = (np.float64(data.scale) * scales.astype(np.float64)).astype(np.float32)
            return self.make(rw, acc, Quantized(acc, scale, np.zeros(len(scale), np.int64), len(acc.ty.shape) - 1))
        zero = rw.emit(relax.op.astype(data.zero, "int32"))
        acc = rw.emit(relax.op.subtract(acc, rw.emit(relax.op.multiply(zero, graph.const(sums.astype(np.int32))))))
        scale = rw.emit(relax.op.multiply(data.scale, graph.const(scales.astype(np.float32))))
        return relax.op.multiply(rw.emit(relax.op.astype(acc, "float32")), scale)

    def conv2d(self, rw, var, expr):
        a = expr.attrs
        if a.data_layout != "NHWC" or a.kernel_layout != "OIHW":
            return None
        found = self.operands(rw, expr, 0)
        if found is None:
            return None
        data, w, scales = found
        padding, x = [int(p) for p in a.padding], data.q
        if any(padding):
            if not data.constant:
                return None
            top, left, bottom, right = padding
            x = rw.emit(relax.op.nn.pad(x, [0, 0, top, bottom, left, right, 0, 0], "constant", float(data.zero)))
        acc = relax.op.nn.conv2d(
            x, graph.const(w), list(a.strides), 0, list(a.dilation), a.groups, "NHWC", "OIHW", "NHWC", "int32"
        )
        return self.finish(rw, var, acc, data, w.sum((1, 2, 3), dtype=np.int64), scales)

    def matmul(self, rw, var, expr):
        if len(expr.args[1].ty.shape) != 2 or len(expr.args[0].ty.shape) < 2:
            return None
        found = self.operands(rw, expr, 1)
        if found is None:
            return None
        data, w, scales = found
        acc = relax.op.matmul(data.q, graph.const(w), "int32")
        return self.finish(rw, var, acc, data, w.sum(0, dtype=np.int64), scales)

    # -- constants into the sums -----------------------------------------------------------------------------------

    def add(self, rw, var, expr, sign=1):
        a, b = expr.args
        if sign > 0 and graph.is_const(a):
            a, b = b, a
        sums = self.sums(rw, a)
        bias = channel_vector(sums.q, b) if sums else None
        if bias is None:
            return None
        steps = np.rint(sign * bias.astype(np.float64) / sums.scale)
        if not np.all(np.abs(steps) < 2**30):
            return None
        acc, steps = sums.q, steps.astype(np.int64)
        before = rw.definition(acc)
        if op_name(before) == "relax.add" and graph.is_const(before.args[1]):
            total = steps + graph.value(before.args[1])
            if np.all(np.abs(total) < 2**31 - 1):
                acc, steps = before.args[0], total
        acc = rw.emit(relax.op.add(acc, graph.const(np.broadcast_to(steps, (graph.shape(acc)[-1],)).astype(np.int32))))
        return self.make(rw, acc, sums, var)

    def subtract(self, rw, var, expr):
        return self.add(rw, var, expr, -1)

    def multiply(self, rw, var, expr):
        a, b = expr.args
        if graph.is_const(a):
            a, b = b, a
        sums = self.sums(rw, a)
        factor = channel_vector(sums.q, b) if sums else None
        if factor is None:
            return None
        scale = (sums.scale.astype(np.float64) * factor).astype(np.float32)
        if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
            return None  # a scale is positive: what follows (relu, bias) relies on it
        return self.make(
            rw, sums.q, Quantized(sums.q, scale, np.zeros(len(scale), np.int64), len(sums.q.ty.shape) - 1), var
        )

    def astype(self, rw, var, expr):
        sums = self.sums(rw, expr.args[0])
        if sums is None or str(expr.attrs.dtype) != "int32" or np.any(sums.scale != 1):
            return None
        return sums.q

    # -- data movement ---------------------------------------------------------------------------------------------

    def move(self, rw, var, expr):
        if graph.is_const(expr.args[0]) and graph.has_static_shape(var):
            return self.move_constant(expr, graph.shape(var))
        found = self.byte(rw, expr.args[0])
        if found is None:
            return self.move_weights(rw, var, expr)
        return self.make(rw, relax.Call(expr.op, [found.q, *expr.args[1:]], expr.attrs, expr.ty_args), found, var)

    def move_constant(self, expr, dims: tuple[int, ...]) -> Expr | None:
        """An imported bias on its way to `add`: reshaped and permuted now."""
        value, name = graph.value(expr.args[0]), op_name(expr)
        if name == "relax.permute_dims" and expr.attrs.axes is not None:
            return graph.const(value.transpose(ints(expr.attrs.axes)))
        return graph.const(value.reshape(dims)) if name in RESHAPES else None

    def move_weights(self, rw, var, expr):
        """permute_dims of quantized weights: done at compile time, the axis of the scales moved along."""
        found = self.read(rw, expr.args[0])
        if op_name(expr) != "relax.permute_dims" or found is None or not found.constant or not graph.is_const(found.q):
            return None
        rank = len(found.q.ty.shape)
        axes = [int(x) % rank for x in expr.attrs.axes] if expr.attrs.axes is not None else list(range(rank))[::-1]
        axis = None if found.axis is None else axes.index(found.axis)
        q = graph.const(np.ascontiguousarray(graph.value(found.q).transpose(axes)))
        return self.make(rw, q, Quantized(q, found.scale, found.zero, axis), var)

    def pad(self, rw, var, expr):
        found = self.byte(rw, expr.args[0])
        if found is None or str(expr.attrs.pad_mode) not in ("constant", "reflect", "replicate"):
            return None
        steps = float(expr.attrs.pad_value) / float(found.scale)
        low, high = LIMITS[graph.dtype(found.q)]
        filled = round(steps) + int(found.zero)
        if str(expr.attrs.pad_mode) == "constant" and (abs(steps - round(steps)) > 1e-4 or not low <= filled <= high):
            return None
        return self.make(rw, attrs.changed(expr, [found.q], pad_value=float(filled)), found, var)

    def split(self, rw, var, expr):
        found = self.byte(rw, expr.args[0])
        if found is None:
            return None
        parts = rw.emit(relax.Call(expr.op, [found.q], expr.attrs))
        return relax.Tuple(
            [self.make(rw, rw.emit(relax.TupleGetItem(parts, i)), found) for i in range(len(parts.ty.fields))]
        )

    def concat(self, rw, var, expr):
        if not isinstance(expr.args[0], relax.Tuple):
            return None
        found = [self.byte(rw, f) for f in expr.args[0].fields]
        if not found or any(f is None for f in found):
            return None
        first = found[0]
        if any(
            f.scale != first.scale or f.zero != first.zero or graph.dtype(f.q) != graph.dtype(first.q) for f in found
        ):
            return None
        return self.make(rw, relax.op.concat([f.q for f in found], expr.attrs.axis), first, var)

    def resize2d(self, rw, var, expr):
        found = self.byte(rw, expr.args[0])
        if found is None or expr.attrs.method != "nearest_neighbor":
            return None
        return self.make(rw, relax.Call(expr.op, [found.q, *expr.args[1:]], expr.attrs, expr.ty_args), found, var)

    # -- averages --------------------------------------------------------------------------------------------------

    def averaged(self, rw, var, found: Quantized, acc: Expr, count: int) -> Expr:
        acc = rw.emit(acc)
        if int(found.zero):
            steps = np.full((graph.shape(acc)[-1],), -int(found.zero) * count, np.int32)
            acc = rw.emit(relax.op.add(acc, graph.const(steps)))
        scale = np.float32(np.float64(found.scale) / count)
        return self.make(rw, acc, Quantized(acc, np.asarray(scale), np.zeros((), np.int64), None), var)

    def mean(self, rw, var, expr):
        found = self.byte(rw, expr.args[0])
        if found is None or expr.attrs.axis is None:
            return None
        dims = graph.shape(found.q)
        axes = [int(a) % len(dims) for a in expr.attrs.axis]
        count = int(np.prod([dims[a] for a in axes]))
        wide = rw.emit(relax.op.astype(found.q, "int32"))
        total = relax.op.sum(wide, axes, bool(expr.attrs.keepdims))
        if not graph.shape(var) or count > 2**22:
            return None
        return self.averaged(rw, var, found, total, count)

    def adaptive_avg_pool2d(self, rw, var, expr):
        found = self.byte(rw, expr.args[0])
        if found is None or expr.attrs.layout != "NHWC" or graph.shape(var)[1:3] != (1, 1):
            return None
        _, h, w, _ = graph.shape(found.q)
        wide = rw.emit(relax.op.astype(found.q, "int32"))
        return self.averaged(rw, var, found, relax.op.sum(wide, [1, 2], True), h * w)

    def avg_pool2d(self, rw, var, expr):
        found, a = self.byte(rw, expr.args[0]), expr.attrs
        if found is None or a.layout != "NHWC" or a.ceil_mode or [int(d) for d in a.dilation] != [1, 1]:
            return None
        padding, x = [int(p) for p in a.padding], found.q
        if any(padding):
            if not a.count_include_pad:
                return None
            top, left, bottom, right = padding
            x = rw.emit(relax.op.nn.pad(x, [0, 0, top, bottom, left, right, 0, 0], "constant", float(found.zero)))
        kernel, strides = [int(k) for k in a.pool_size], [int(s) for s in a.strides]
        acc = quantized.sum_pool(rw.builder, x, kernel, strides, graph.shape(var))
        return self.averaged(rw, var, found, acc, kernel[0] * kernel[1])


def separate(mod: tvm.IRModule) -> tvm.IRModule:
    """One dequantize for each reader, so that each is fused into its reader and no float tensor is written."""

    def visit(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        if not isinstance(expr, relax.Call) or op_name(expr) == "relax.dequantize":
            return None

        def own(arg: Expr) -> Expr:
            if isinstance(arg, relax.Tuple):
                return relax.Tuple([own(f) for f in arg.fields])
            call = rw.definition(arg)
            return rw.emit(call) if call is not None and op_name(call) == "relax.dequantize" else arg

        args = [own(a) for a in expr.args]
        return (
            None
            if all(a is b for a, b in zip(args, expr.args))
            else relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        )

    return graph.rewrite(mod, visit)


def integer(mod: tvm.IRModule, prefer: str = "uint8", fused: bool = True) -> tvm.IRModule:
    """The program with its quantized layers on integers; `prefer`: uint8 for x86's dot products, int8 for ARM's.

    `fused`: whether the target multiplies and adds floats in one instruction.
    """
    return separate(graph.rewrite(mod, Integer(prefer, fused)))
