"""Integer execution of convolutions and matrix products, and of the constants in their sums; see `integer`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmcompress.ir import constants, graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.kernels import quantized
from tvmcompress.lower.elementwise import channel_vector
from tvmcompress.lower.quantized_form import BYTES, Quantized, make, read, sums_of


class Products:
    """Handlers as in `integer_moves`. `prefer` is the dtype in which the target's kernels read activations."""

    def __init__(self, prefer: str) -> None:
        self.prefer = prefer if prefer in BYTES else ""
        self.handlers: dict[str, Callable] = {
            "relax.nn.conv2d": self.conv2d,
            "relax.matmul": self.matmul,
            "relax.add": self.add,
            "relax.subtract": self.subtract,
            "relax.multiply": self.multiply,
            "relax.astype": self.astype,
        }

    def weights(self, rw: Rewriter, expr: Expr, axis: int) -> tuple[Expr, np.ndarray, np.ndarray] | None:
        """Constant weights with their zero point taken off (int8, or int16 if it must be), and scales along `axis`.

        The weights as an expression, stored as the program stores them where nothing is taken off; and their values.
        """
        found = read(rw, expr)
        if found is None or not found.constant or graph.dtype(found.q) not in BYTES:
            return None
        rank, w, z = len(found.q.ty.shape), constants.known(found.q, rw.definition), found.zero
        if w is None or (found.axis is not None and found.axis != axis % rank):
            return None
        q = found.q
        if np.any(z) or w.dtype == np.uint8:
            form = [1] * rank
            if found.axis is not None:
                form[found.axis] = -1
            w = w.astype(np.int16) - z.reshape(form).astype(np.int16)
            if w.min() >= -128 and w.max() <= 127:
                w = w.astype(np.int8)
            q = graph.const(w)
        return q, w, np.broadcast_to(found.scale, (w.shape[axis],))

    def operands(self, rw, expr, axis):
        """(data, weights, their values, scales) of an integer product, None when it has to stay in float."""
        data = read(rw, expr.args[0])
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
            return make(rw, acc, Quantized(acc, scale, np.zeros(len(scale), np.int64), len(acc.ty.shape) - 1))
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
        data, q, w, scales = found
        padding, x = [int(p) for p in a.padding], data.q
        if any(padding):
            if not data.constant:
                return None
            top, left, bottom, right = padding
            x = rw.emit(relax.op.nn.pad(x, [0, 0, top, bottom, left, right, 0, 0], "constant", float(data.zero)))
        acc = relax.op.nn.conv2d(x, q, list(a.strides), 0, list(a.dilation), a.groups, "NHWC", "OIHW", "NHWC", "int32")
        return self.finish(rw, var, acc, data, w.sum((1, 2, 3), dtype=np.int64), scales)

    def matmul(self, rw, var, expr):
        if len(expr.args[1].ty.shape) != 2 or len(expr.args[0].ty.shape) < 2:
            return None
        found = self.operands(rw, expr, 1)
        if found is None:
            return None
        data, q, w, scales = found
        acc = relax.op.matmul(data.q, q, "int32")
        return self.finish(rw, var, acc, data, w.sum(0, dtype=np.int64), scales)

    # -- constants into the sums -----------------------------------------------------------------------------------

    def add(self, rw, var, expr, sign=1):
        a, b = expr.args
        if sign > 0 and graph.is_const(a):
            a, b = b, a
        sums = sums_of(rw, a)
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
        return make(rw, acc, sums, var)

    def subtract(self, rw, var, expr):
        return self.add(rw, var, expr, -1)

    def multiply(self, rw, var, expr):
        a, b = expr.args
        if graph.is_const(a):
            a, b = b, a
        sums = sums_of(rw, a)
        factor = channel_vector(sums.q, b) if sums else None
        if factor is None:
            return None
        scale = (sums.scale.astype(np.float64) * factor).astype(np.float32)
        if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
            return None  # a scale is positive: what follows (relu, bias) relies on it
        return make(rw, sums.q, Quantized(sums.q, scale, np.zeros(len(scale), np.int64), len(sums.q.ty.shape) - 1), var)

    def astype(self, rw, var, expr):
        sums = sums_of(rw, expr.args[0])
        if sums is None or str(expr.attrs.dtype) != "int32" or np.any(sums.scale != 1):
            return None
        return sums.q
