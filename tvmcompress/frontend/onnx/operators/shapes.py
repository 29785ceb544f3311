"""Operators whose result's shape comes from a value: Reshape, Expand, Slice, Split, Tile …

Where that value is not known at load, the shape that the model states for the result decides, if it can.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import clipped, element, int64, integer, take
from tvmcompress.frontend.onnx.values import Value
from tvmcompress.ir import graph
from tvmcompress.spec import numpy_dtype

WHOLE = 1 << 30  # bytes; some models write their weights as one repeated value, and weights must be constants


def to_shape(node: Node, shape: tuple[int, ...], x: graph.Expr | None = None) -> graph.Expr | np.ndarray:
    if 0 in shape:  # TVM compares products, and takes a 0 for "keep"
        return np.zeros(shape, numpy_dtype(node.dtype(0)))
    return relax.op.reshape(node.x(0) if x is None else x, shape)


def axes_of(node: Node, index: int, rank: int, what: str = "axes") -> list[int] | None:
    """Axes from the attribute or from input number `index`, not negative; None where the node gives none."""
    axes = node.attr(what)
    if axes is None and node.has(index):
        axes = node.need(index, what).reshape(-1).tolist()
    return None if axes is None else [int(a) + rank if a < 0 else int(a) for a in np.atleast_1d(axes)]


def reshape(node: Node) -> graph.Expr | Value:
    dims = node.shape(0) if static(node) else None
    target = node.attr("shape") if not node.has(1) else node.known(1)
    if target is None:
        stated = node.declared()
        if stated is not None and dims is not None and math.prod(stated) == math.prod(dims):
            return to_shape(node, stated)
        raise node.unknown(1, "shape")
    wanted = [int(d) for d in np.atleast_1d(target)]
    if not node.attr("allowzero", 0):
        if dims is None and 0 in wanted:
            raise ModelError("the shape of its input depends on data, so 0 (keep) cannot be resolved")
        wanted = [dims[i] if d == 0 and dims is not None else d for i, d in enumerate(wanted)]
    if dims is None:
        return relax.op.reshape(node.x(0), wanted)
    if -1 in wanted:
        rest = math.prod(d for d in wanted if d != -1)
        wanted[wanted.index(-1)] = math.prod(dims) // rest if rest else 0
    if math.prod(wanted) != math.prod(dims):
        raise ModelError(f"cannot reshape {tuple(dims)} to {tuple(wanted)}")
    return to_shape(node, tuple(wanted))


def static(node: Node, index: int = 0) -> bool:
    return graph.has_static_shape(node.x(index))


def squeeze(node: Node) -> graph.Expr:
    if not static(node):
        return NotImplemented
    dims = node.shape(0)
    if node.has(1) and node.known(1) is None:
        return declared_reshape(node, 1, "axes")
    axes = axes_of(node, 1, len(dims))
    if axes is None:
        axes = [i for i, d in enumerate(dims) if d == 1]
    if any(dims[a] != 1 for a in axes):
        raise ModelError(f"cannot squeeze axes {axes} of {dims}")
    return to_shape(node, tuple(d for i, d in enumerate(dims) if i not in axes))


def unsqueeze(node: Node) -> graph.Expr:
    if not static(node):
        return NotImplemented
    dims = node.shape(0)
    if node.has(1) and node.known(1) is None:
        return declared_reshape(node, 1, "axes")
    count = len(node.attr("axes") or node.need(1, "axes").reshape(-1))
    axes = set(axes_of(node, 1, len(dims) + count) or [])
    rest = iter(dims)
    return to_shape(node, tuple(1 if i in axes else next(rest) for i in range(len(dims) + len(axes))))


def declared_reshape(node: Node, index: int, what: str) -> graph.Expr:
    stated = node.declared()
    if stated is None or math.prod(stated) != math.prod(node.shape(0)):
        raise node.unknown(index, what)
    return to_shape(node, stated)


def flatten(node: Node) -> graph.Expr:
    dims = node.shape(0)
    axis = node.attr("axis", 1)
    axis += len(dims) if axis < 0 else 0
    return to_shape(node, (math.prod(dims[:axis]), math.prod(dims[axis:])))


def expand(node: Node) -> graph.Expr:
    dims = node.shape(0)
    target = node.known(1)
    if target is None:
        wanted = node.declared()
        if wanted is None:
            raise node.unknown(1, "shape")
    else:
        wanted = tuple(np.broadcast_shapes(dims, tuple(int(d) for d in target)))
    return broadcast(node, node.x(0), wanted)


def broadcast(node: Node, x: graph.Expr, wanted: tuple[int, ...]) -> graph.Expr:
    return x if graph.shape(x) == tuple(wanted) else relax.op.broadcast_to(x, wanted)


def tile(node: Node) -> graph.Expr:
    dims = node.shape(0)
    repeats = node.known(1)
    if repeats is None:
        stated = node.declared()
        if stated is None or 0 in dims or any(o % i for o, i in zip(stated, dims)):
            raise node.unknown(1, "repeats")
        repeats = np.array([o // i for o, i in zip(stated, dims)])
    return relax.op.tile(node.x(0), [int(r) for r in repeats])


def slice_(node: Node) -> graph.Expr:
    dims = node.shape(0)
    rank = len(dims)
    if node.opset < 10:
        starts, ends = node.attr("starts"), node.attr("ends")
        axes, steps = node.attr("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        parts = [node.known(i) for i in range(1, 5)]
        if any(node.has(i) and p is None for i, p in enumerate(parts, 1)):
            return slice_unknown(node)
        starts, ends = node.need(1, "starts").tolist(), node.need(2, "ends").tolist()
        axes = parts[2].tolist() if parts[2] is not None else list(range(len(starts)))
        steps = parts[3].tolist() if parts[3] is not None else [1] * len(starts)
    x = node.x(0)
    axes = [a + rank if a < 0 else a for a in axes]
    begin, end, stride, used = [], [], [], []
    for axis, start, stop, step in zip(axes, starts, ends, steps):
        low, high, step = slice(start, stop, step).indices(dims[axis])
        count = len(range(low, high, step))
        if count == dims[axis] and step == 1:
            continue
        if count == 0 or step < 0:
            # Empty and backward slices: TVM's strided_slice reads them differently, a gather is plain.
            x = node.emit(take(x, graph.const(np.arange(low, high, step, dtype="int64")), axis), f"axis{axis}")
            continue
        used.append(axis)
        begin.append(low)
        end.append(low + (count - 1) * step + 1)
        stride.append(step)
    return relax.op.strided_slice(x, used, begin, end, stride) if used else x


def slice_unknown(node: Node) -> graph.Expr:
    """Runtime starts and ends: the stated shape says how many, a clipped gather takes them."""
    dims, stated = node.shape(0), node.declared()
    known = node.known(3)
    axes = None if known is None else known.tolist()
    if axes is None and not node.has(3):
        axes = list(range(node.shape(1)[0]))
    if stated is None or axes is None:
        index = next(i for i in (3, 1, 2, 4) if node.has(i) and node.known(i) is None)
        raise node.unknown(index, ("data", "starts", "ends", "axes", "steps")[index])
    x = node.x(0)
    starts = int64(node, 1)
    steps = int64(node, 4) if node.has(4) else None
    for position, axis in enumerate(axes):
        axis += len(dims) if axis < 0 else 0
        size, count = dims[axis], stated[axis]
        start = element(node, starts, position)
        below = relax.op.less(start, integer(0))
        start = node.emit(relax.op.where(below, relax.op.add(start, integer(size)), start), "start")
        step = element(node, steps, position) if steps is not None else integer(1)
        # A backward slice may start beyond the end: ONNX clamps it to the last element, a forward one to the end.
        start = node.emit(relax.op.minimum(relax.op.maximum(start, integer(0)), integer(max(size - 1, 0))), "start")
        steps_taken = relax.op.multiply(graph.const(np.arange(count, dtype="int64")), step)
        indices = node.emit(clipped(relax.op.add(steps_taken, start), 0, max(size - 1, 0)), "indices")
        x = node.emit(take(x, indices, axis), f"axis{axis}")
    return x


def split(node: Node) -> list[graph.Expr]:
    dims = node.shape(0)
    axis = node.attr("axis", 0)
    axis += len(dims) if axis < 0 else 0
    outputs = len(node.proto.output)
    sizes = node.attr("split")
    if sizes is None and node.has(1):
        known = node.known(1)
        stated = [node.declared(i) for i in range(outputs)]
        if known is None and any(s is None for s in stated):
            raise node.unknown(1, "split")
        sizes = [s[axis] for s in stated if s is not None] if known is None else known.tolist()
    if sizes is None:
        count = node.attr("num_outputs", outputs)
        chunk = -(-dims[axis] // count)
        sizes = [min(chunk, dims[axis] - chunk * i) for i in range(count)]
    if sum(sizes) != dims[axis]:
        raise ModelError(f"cannot split {dims[axis]} along axis {axis} into {sizes}")
    if len(sizes) == 1:
        return [node.x(0)]
    if 0 in sizes:
        ends = np.cumsum(sizes)
        return [take(node.x(0), graph.const(np.arange(e - s, e, dtype="int64")), axis) for s, e in zip(sizes, ends)]
    parts = node.emit(relax.op.split(node.x(0), [int(i) for i in np.cumsum(sizes)[:-1]], axis), "parts")
    return [node.emit(relax.TupleGetItem(parts, i)) for i in range(len(sizes))]


def concat(node: Node) -> graph.Expr | Value:
    """Parts without elements are left out: caches start empty, and TVM has no constant or kernel for nothing."""
    full = [i for i in range(len(node.inputs)) if not static(node, i) or 0 not in node.shape(i)]
    if not full:
        dims, axis = list(node.shape(0)), node.attr("axis", 1)
        dims[axis] = sum(node.shape(i)[axis] for i in range(len(node.inputs)))
        return np.zeros(dims, numpy_dtype(node.dtype(0)))
    if len(full) == 1:
        return node.inputs[full[0]]
    return relax.op.concat([node.x(i) for i in full], node.attr("axis", 1))


def constant_of_shape(node: Node) -> graph.Expr | np.ndarray:
    tensor = node.attr("value")
    from onnx import numpy_helper

    value = numpy_helper.to_array(tensor).reshape(-1)[0] if tensor is not None else np.float32(0)
    known = node.known(0)
    shape = tuple(int(d) for d in known) if known is not None else node.declared()
    if shape is None:
        raise node.unknown(0, "shape")
    if math.prod(shape) * value.dtype.itemsize <= WHOLE:
        return np.full(shape, value)
    return relax.op.full(shape, graph.const(np.asarray(value)), value.dtype.name)


def range_(node: Node) -> graph.Expr:
    """start + i * delta; how many is what the model states, where the limit is not known."""
    parts = [node.known(i) for i in range(3)]
    if all(p is not None for p in parts):
        start, limit, delta = (node.need(i, "range").item() for i in range(3))
        return graph.const(np.arange(start, limit, delta, dtype=node.dtype(0)))
    stated = node.declared()
    if stated is None:
        index = next(i for i, p in enumerate(parts) if p is None)
        raise node.unknown(index, ("start", "limit", "delta")[index])
    kind = node.dtype(0)
    steps = relax.op.multiply(graph.const(np.arange(stated[0]).astype(kind)), node.x(2))
    return relax.op.add(node.emit(steps, "steps"), node.x(0))


TABLE = {
    "Reshape": reshape,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Flatten": flatten,
    "Expand": expand,
    "Tile": tile,
    "Slice": slice_,
    "Split": split,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
}
