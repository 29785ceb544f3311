"""Channels last for the whole graph, decided once.

    conv2d(x NCHW, w) -> permute(conv2d(permute(x), w) NHWC)

and the permutes are carried through everything that does not care, so that they remain only at the borders and around
operators that need NCHW. Convolutions keep their weights in OIHW: the kernels pack those themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name

LAST = (0, 2, 3, 1)  # NCHW -> NHWC
FIRST = (0, 3, 1, 2)  # NHWC -> NCHW
AXIS = {0: 0, 1: 3, 2: 1, 3: 2}

ELEMENTWISE = {
    f"relax.{name}"
    for name in [
        "abs",
        "acos",
        "asin",
        "atan",
        "ceil",
        "clip",
        "cos",
        "erf",
        "exp",
        "floor",
        "log",
        "negative",
        "round",
        "rsqrt",
        "sigmoid",
        "sign",
        "sin",
        "sqrt",
        "square",
        "tan",
        "tanh",
        "trunc",
        "astype",
        "add",
        "subtract",
        "multiply",
        "divide",
        "floor_divide",
        "power",
        "maximum",
        "minimum",
        "greater",
        "greater_equal",
        "less",
        "less_equal",
        "equal",
        "not_equal",
        "logical_and",
        "logical_or",
        "logical_not",
        "where",
        "nn.relu",
        "nn.gelu",
        "nn.gelu_tanh",
        "nn.silu",
        "nn.leakyrelu",
        "nn.selu",
        "nn.softplus",
        "nn.dropout",
    ]
}


class ChannelsLast:
    """The visitor; `last` holds the channels-last twin of a channels-first expression."""

    def __init__(self) -> None:
        self.last: dict[Expr, Expr] = {}
        self.handlers: dict[str, Callable] = {
            "relax.nn.conv2d": self.conv2d,
            "relax.nn.max_pool2d": self.spatial,
            "relax.nn.avg_pool2d": self.spatial,
            "relax.nn.adaptive_avg_pool2d": self.spatial,
            "relax.image.resize2d": self.resize2d,
            "relax.nn.pad": self.pad,
            "relax.concat": self.concat,
            "relax.split": self.split,
            "relax.take": self.take,
            "relax.quantize": self.quantize,
            "relax.dequantize": self.quantize,
            "relax.nn.softmax": self.axis,
            "relax.nn.log_softmax": self.axis,
            "relax.mean": self.reduce,
            "relax.sum": self.reduce,
            "relax.max": self.reduce,
            "relax.min": self.reduce,
            "relax.reshape": self.reshape,
            "relax.squeeze": self.reshape,
            "relax.nn.batch_flatten": self.reshape,
            "relax.flatten": self.reshape,
            "relax.permute_dims": self.permute_dims,
            "relax.nn.prelu": self.prelu,
        }

    def __call__(self, rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        name = op_name(expr)
        if not name or not graph.has_static_shape(var):
            return None
        if name in self.handlers:
            return self.handlers[name](rw, var, expr)
        if name in ELEMENTWISE:
            return self.elementwise(rw, var, expr)
        return None

    # -- helpers ---------------------------------------------------------------------------------------------------

    def to_last(self, rw: Rewriter, expr: Expr) -> Expr:
        """The channels-last form of a 4-D expression."""
        if expr in self.last:
            return self.last[expr]
        if graph.is_const(expr):
            return graph.const(graph.value(expr).transpose(LAST))
        self.last[expr] = rw.emit(relax.op.permute_dims(expr, LAST))
        return self.last[expr]

    def done(self, rw: Rewriter, var: graph.Var, result: Expr) -> Expr:
        """Bind the channels-last result; its channels-first view disappears unless something reads it."""
        last = rw.emit(result, var.name)
        first = rw.emit(relax.op.permute_dims(last, FIRST))
        self.last[first] = last
        return first

    def is_last(self, expr: Expr) -> bool:
        return expr in self.last and len(expr.ty.shape) == 4

    # -- operators -------------------------------------------------------------------------------------------------

    def conv2d(self, rw, var, expr):
        a = expr.attrs
        if a.data_layout != "NCHW" or a.kernel_layout != "OIHW":
            return None
        x = self.to_last(rw, expr.args[0])
        call = relax.op.nn.conv2d(
            x, expr.args[1], list(a.strides), list(a.padding), list(a.dilation), a.groups, "NHWC", "OIHW", "NHWC",
            str(a.out_dtype) if a.out_dtype else None,
        )  # fmt: skip
        return self.done(rw, var, call)

    def spatial(self, rw, var, expr):
        if expr.attrs.layout != "NCHW":
            return None
        x = self.to_last(rw, expr.args[0])
        return self.done(rw, var, attrs.changed(expr, [x], layout="NHWC", out_layout="NHWC"))

    def resize2d(self, rw, var, expr):
        if expr.attrs.layout != "NCHW" or not self.is_last(expr.args[0]):
            return None
        return self.done(rw, var, attrs.changed(expr, [self.to_last(rw, expr.args[0]), *expr.args[1:]], layout="NHWC"))

    def elementwise(self, rw, var, expr):
        if not any(self.is_last(a) for a in expr.args):
            return None
        if len(var.ty.shape) != 4:
            return None
        args = [self.operand(rw, a) for a in expr.args]
        if any(a is None for a in args):
            return None
        return self.done(rw, var, relax.Call(expr.op, args, expr.attrs, expr.ty_args))

    def operand(self, rw, arg):
        """An operand of an element-wise operator in channels-last form, broadcasting included; None if it has none."""
        if not isinstance(arg.ty, relax.TensorType):
            return arg
        rank = len(arg.ty.shape)
        if rank == 4:
            return self.to_last(rw, arg)
        if rank == 0 or graph.shape(arg) == (1,):
            return arg
        if graph.is_const(arg):
            value = graph.value(arg)
            return graph.const(value.reshape((1,) * (4 - rank) + value.shape).transpose(LAST))
        wide = rw.emit(relax.op.reshape(arg, (1,) * (4 - rank) + graph.shape(arg)))
        return self.to_last(rw, wide)

    def prelu(self, rw, var, expr):
        x, slope = expr.args
        if not self.is_last(x) or expr.attrs.axis not in (1, -3):
            return None
        return self.done(rw, var, relax.op.nn.prelu(self.to_last(rw, x), slope, 3))

    def pad(self, rw, var, expr):
        x = expr.args[0]
        if not self.is_last(x):
            return None
        width = [int(w) for w in expr.attrs.pad_width]
        pairs = [width[2 * i : 2 * i + 2] for i in range(4)]
        moved = [w for axis in LAST for w in pairs[axis]]
        return self.done(rw, var, attrs.changed(expr, [self.to_last(rw, x), *expr.args[1:]], pad_width=moved))

    def concat(self, rw, var, expr):
        fields = list(expr.args[0].fields) if isinstance(expr.args[0], relax.Tuple) else []
        if not any(self.is_last(f) for f in fields) or expr.attrs.axis is None:
            return None
        axis = AXIS[int(expr.attrs.axis) % 4]
        return self.done(rw, var, relax.op.concat([self.to_last(rw, f) for f in fields], axis))

    def split(self, rw, var, expr):
        x = expr.args[0]
        if not self.is_last(x):
            return None
        sections = expr.attrs.indices_or_sections
        sections = int(sections) if isinstance(sections, tvm.tirx.IntImm | int) else [int(s) for s in sections]
        parts = rw.emit(relax.op.split(self.to_last(rw, x), sections, AXIS[int(expr.attrs.axis) % 4]))
        count = len(parts.ty.fields)
        return relax.Tuple([self.done(rw, var, relax.TupleGetItem(parts, i)) for i in range(count)])

    def take(self, rw, var, expr):
        x, indices = expr.args
        if not self.is_last(x) or expr.attrs.axis is None or len(indices.ty.shape) != 1:
            return None
        axis = AXIS[int(expr.attrs.axis) % 4]
        return self.done(rw, var, attrs.changed(expr, [self.to_last(rw, x), indices], axis=axis))

    def quantize(self, rw, var, expr):
        x, scale, zero = expr.args
        make = relax.op.quantize if op_name(expr) == "relax.quantize" else relax.op.dequantize
        if x in self.last and graph.shape(scale) == graph.shape(zero) == ():
            return self.parted(rw, rw.emit(make(self.last[x], scale, zero, -1, str(expr.attrs.out_dtype)), var.name))
        if not self.is_last(x):
            return None
        axis = AXIS[int(expr.attrs.axis) % 4]
        return self.done(rw, var, make(self.to_last(rw, x), scale, zero, axis, str(expr.attrs.out_dtype)))

    def axis(self, rw, var, expr):
        if not self.is_last(expr.args[0]):
            return None
        make = relax.op.nn.softmax if op_name(expr) == "relax.nn.softmax" else relax.op.nn.log_softmax
        return self.done(rw, var, make(self.to_last(rw, expr.args[0]), AXIS[int(expr.attrs.axis) % 4]))

    def reduce(self, rw, var, expr):
        x = expr.args[0]
        if not self.is_last(x) or expr.attrs.axis is None:
            return None
        axes = sorted(int(a) % 4 for a in expr.attrs.axis)
        moved = [AXIS[a] for a in axes]
        if expr.attrs.keepdims:
            return self.done(rw, var, attrs.changed(expr, [self.to_last(rw, x)], axis=moved))
        kept = [a for a in LAST if a not in axes]
        if kept != sorted(kept):
            return None
        return attrs.changed(expr, [self.to_last(rw, x)], axis=moved)

    def reshape(self, rw, var, expr):
        """With one pixel, both layouts are the same memory: no permute. Else channels alone may be taken apart."""
        x, dims = expr.args[0], graph.shape(var)
        if x not in self.last:
            return None
        before = graph.shape(x)
        if len(before) == 4 and before[2:] == (1, 1):
            return relax.op.reshape(self.last[x], list(dims))
        if len(dims) < 4 or (dims[0], *dims[-2:]) != (before[0], *before[-2:]):
            return None
        last = rw.emit(relax.op.reshape(self.last[x], (dims[0], *dims[-2:], *dims[1:-2])), var.name)
        return self.parted(rw, last)

    def parted(self, rw: Rewriter, last: Expr) -> Expr:
        """The channels-first view of (n, h, w, channels in any number of axes)."""
        rank = len(graph.shape(last))
        first = rw.emit(relax.op.permute_dims(last, (0, *range(3, rank), 1, 2)))
        self.last[first] = last
        return first

    def permute_dims(self, rw, var, expr):
        """A user's own change of layout meets ours: use what is there already."""
        x = expr.args[0]
        axes = tuple(int(a) for a in expr.attrs.axes) if expr.attrs.axes is not None else ()
        rank = len(axes)
        if x in self.last and rank > 4 and (axes[0], *axes[-2:]) == (0, rank - 2, rank - 1):
            shuffled = rw.emit(relax.op.permute_dims(self.last[x], (0, 1, 2, *(a + 2 for a in axes[1:-2]))), var.name)
            return self.parted(rw, shuffled)
        if self.is_last(x) and axes == LAST:
            return self.last[x]
        if axes == FIRST:
            first = rw.emit(expr, var.name)
            self.last[first] = x
            return first
        return None


def channels_last(mod: tvm.IRModule) -> tvm.IRModule:
    """The program with convolutions, pooling and all between them in NHWC."""
    return graph.rewrite(mod, ChannelsLast())
