"""Integer execution: from the quantized form to operators on integers.

    conv2d(dequantize(q, sx, zx), dequantize(W, sw)) -> dequantize(conv2d_i32(pad(q, zx), W) - zx * sum(W), sx * sw)
    add(dequantize(i32, s), bias)                    -> dequantize(i32 + round(bias / s), s)
    quantize(relu(dequantize(i32, s)), sy, zy)       -> requantize(i32, s / sy, zy, clip at zy)
    quantize(dequantize(i32, s) + real(q, t), sy)    -> clip(round(i32 * (s / sy) + q * (t / sy)))
    move(dequantize(q, s, z))                        -> dequantize(move(q), s, z)        reshape, max_pool, pad …
    quantize(f(dequantize(q, s, z)), sy, zy)         -> table[q]                         f element-wise: 256 entries

The result is again a Relax program; its int32 convolutions and matrix products are what `kernels` runs on dot-product
instructions. Padding holds the zero point, so that its correction is one constant a channel. Requantization is one
float32 multiplication by s / sy, rounded half to even, as ONNX Runtime has it.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.kernels import quantized
from tvmcompress.lower import elementwise, integer_moves, tables
from tvmcompress.lower.integer_products import Products
from tvmcompress.lower.quantized_form import BYTES, LIMITS, byte, greatest, sums_of


class Integer:
    """The visitor. `prefer` is the dtype in which the target's kernels read activations, `fused` whether it multiplies
    and adds floats in one instruction."""

    def __init__(self, prefer: str, fused: bool) -> None:
        self.fused = fused
        self.prefer = prefer if prefer in BYTES else ""
        self.shifted: dict[Expr, tuple[Expr, int]] = {}  # q -> the same values in the preferred dtype, and the offset
        self.handlers = integer_moves.HANDLERS | Products(prefer).handlers
        self.handlers |= {"relax.quantize": self.quantize, "relax.dequantize": self.dequantize}

    def __call__(self, rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        handler = self.handlers.get(op_name(expr))
        return handler(rw, var, expr) if handler else None

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
        found = sums_of(rw, inner)
        if found is not None:
            factor = (found.scale.astype(np.float64) / np.float64(s)).astype(np.float32)
            small = bool(np.all(greatest(rw, found.q) * factor <= quantized.LARGEST))
            return rw.emit(quantized.requantize(rw.builder, found.q, factor, z, lo, hi, dtype, small), name)
        found = byte(rw, inner)
        if found is not None:
            same = found.scale == s and int(found.zero) == z and graph.dtype(found.q) == dtype
            if same and (lo, hi) == (qmin, qmax):
                return found.q
            if same:
                return rw.emit(relax.op.clip(found.q, lo, hi), name)
            given = float(found.scale), int(found.zero)
            return rw.emit(quantized.rescale(rw.builder, found.q, *given, (float(s), z, lo, hi, dtype)), name)
        call = rw.definition(x)
        out = elementwise.Out(s, z, lo, hi, dtype)
        whole = elementwise.add(rw, inner, out, self.fused)
        whole = elementwise.affine(rw, inner, out) if whole is None else whole
        if whole is not None:
            return rw.emit(whole, name)
        if op_name(call) == "relax.concat" and isinstance(call.args[0], relax.Tuple):
            fields = [self.requantized(rw, f, s, z, dtype, "") for f in call.args[0].fields]
            return rw.emit(relax.op.concat(fields, call.attrs.axis), name)
        table = tables.table(rw, x, s, z, dtype)
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
