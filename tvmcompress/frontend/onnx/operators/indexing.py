"""Choosing and moving elements: TopK, Einsum, OneHot, NonMaxSuppression, ReverseSequence, TensorScatter …"""

from __future__ import annotations

import string

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import integer, scalar, take
from tvmcompress.frontend.onnx.values import Value
from tvmcompress.ir import graph

op = relax.op


def stated_or_known(node: Node, index: int, what: str, axis: int) -> int:
    """A length: the value of an input, or else that axis of the shape that the model states for the result."""
    known, stated = node.known(index), node.declared()
    if known is not None:
        return int(known.reshape(-1)[0])
    if stated is None:
        raise node.unknown(index, what)
    return stated[axis]


def top_k(node: Node) -> list[graph.Expr]:
    dims = node.shape(0)
    axis = node.attr("axis", -1) % len(dims)
    k = node.attr("k")
    if k is None:
        k = stated_or_known(node, 1, "k", axis)
    pair = node.emit(op.topk(node.x(0), k, axis, "both", bool(node.attr("largest", 1)), "int64"), "both")
    return [node.emit(relax.TupleGetItem(pair, 0)), node.emit(relax.TupleGetItem(pair, 1), "indices")]


def one_hot(node: Node) -> graph.Expr:
    """off + (index == position) * (on - off); the depth unknown, the stated shape gives it."""
    dims = node.shape(0)
    axis = node.attr("axis", -1) % (len(dims) + 1)
    depth = stated_or_known(node, 1, "depth", axis)
    index = node.x(0)
    if graph.dtype(index) != "int64":
        index = node.emit(op.astype(index, "int64"), "int64")
    size = graph.const(np.array(depth, "int64"))
    wrapped = op.where(op.less(index, graph.const(np.array(0, "int64"))), op.add(index, size), index)
    index = node.emit(op.expand_dims(node.emit(wrapped, "wrapped"), axis), "index")
    shape = [1] * (len(dims) + 1)
    shape[axis] = depth
    same = node.emit(op.equal(index, graph.const(np.arange(depth, dtype="int64").reshape(shape))), "same")
    off, on = (node.emit(take(node.x(2), graph.const(np.array(i, "int64")), 0), "value") for i in (0, 1))
    return op.where(same, on, off)


def einsum(node: Node) -> graph.Expr:
    """Operands are contracted from left to right, each time as one batched matrix product."""
    equation = node.attr("equation").replace(" ", "")
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    if "..." in equation:
        ranks = [len(node.shape(i)) - len(t.replace("...", "")) if "..." in t else 0 for i, t in enumerate(terms)]
        free = [c for c in string.ascii_uppercase if c not in equation]
        letters = "".join(free[: max(ranks)])
        terms = [t.replace("...", letters[len(letters) - r :] if r else "") for t, r in zip(terms, ranks)]
        output = output.replace("...", letters)
        if "->" not in equation:
            output = letters + "".join(
                sorted(c for c in set("".join(terms)) - set(letters) if "".join(terms).count(c) == 1)
            )
    elif "->" not in equation:
        output = "".join(sorted(c for c in set("".join(terms)) if "".join(terms).count(c) == 1))
    parts = [diagonal(node, node.x(i), t) for i, t in enumerate(terms)]
    value, term = parts[0]
    for index, (other, other_term) in enumerate(parts[1:], 1):
        later = set("".join(t for _, t in parts[index + 1 :])) | set(output)
        value, term = contract(node, value, term, other, other_term, later)
    gone = [i for i, c in enumerate(term) if c not in output]
    if gone:
        value = node.emit(op.sum(value, gone, False), "sum")
        term = "".join(c for c in term if c in output)
    order = [term.index(c) for c in output]
    return value if order == list(range(len(order))) else op.permute_dims(value, order)


def diagonal(node: Node, x: graph.Expr, term: str) -> tuple[graph.Expr, str]:
    """A letter that stands twice in one operand takes the diagonal."""
    for letter in term:
        if term.count(letter) < 2:
            continue
        first, second = [i for i, c in enumerate(term) if c == letter][:2]
        rank, size = len(term), graph.shape(x)[first]
        eye = np.eye(size, dtype=bool)
        shape = [1] * rank
        shape[first] = shape[second] = size
        masked = op.where(graph.const(eye.reshape(shape)), x, scalar(0, graph.dtype(x)))
        x = node.emit(op.sum(node.emit(masked, "masked"), [second], False), "diagonal")
        return diagonal(node, x, term[:second] + term[second + 1 :])
    return x, term


def contract(
    node: Node, a: graph.Expr, a_term: str, b: graph.Expr, b_term: str, later: set[str]
) -> tuple[graph.Expr, str]:
    """a and b over the letters that only they have: batch, then rows of a, then columns of b."""
    shared = [c for c in a_term if c in b_term]
    summed = [c for c in shared if c not in later]
    batch = [c for c in shared if c in later]
    rows = [c for c in a_term if c not in b_term]
    columns = [c for c in b_term if c not in a_term]
    sizes = dict(zip(a_term, graph.shape(a))) | {
        c: s for c, s in zip(b_term, graph.shape(b)) if s != 1 or c not in a_term
    }

    def arranged(x: graph.Expr, term: str, left: list[str], right: list[str]) -> graph.Expr:
        order = [term.index(c) for c in (*batch, *left, *right)]
        if order != list(range(len(order))):
            x = node.emit(op.permute_dims(x, order), "ordered")
        have = dict(
            zip(
                term,
                graph.shape(x) if order == list(range(len(order))) else [graph.shape(x)[i] for i in np.argsort(order)],
            )
        )
        full = tuple(sizes[c] for c in (*batch, *left, *right))
        if tuple(have[c] for c in (*batch, *left, *right)) != full:
            x = node.emit(op.broadcast_to(x, full), "broadcast")
        shape = (
            *(sizes[c] for c in batch),
            int(np.prod([sizes[c] for c in left])),
            int(np.prod([sizes[c] for c in right])),
        )
        return node.emit(op.reshape(x, shape), "matrix")

    product = node.emit(op.matmul(arranged(a, a_term, rows, summed), arranged(b, b_term, summed, columns)))
    term = [*batch, *rows, *columns]
    return node.emit(op.reshape(product, tuple(sizes[c] for c in term)), "shaped"), "".join(term)


def reverse_sequence(node: Node) -> graph.Expr:
    """Element t of sample n comes from length[n] - 1 - t where t < length[n], else from t."""
    dims = node.shape(0)
    time, batch = node.attr("time_axis", 0), node.attr("batch_axis", 1)
    steps = np.arange(dims[time], dtype="int64")
    lengths = node.x(1) if node.dtype(1) == "int64" else node.emit(op.astype(node.x(1), "int64"), "lengths")
    lengths = node.emit(op.reshape(lengths, (dims[batch], 1)), "column")
    t = graph.const(steps.reshape(1, -1))
    last = op.subtract(lengths, graph.const(np.array(1, "int64")))
    index = node.emit(op.where(op.less(t, lengths), op.subtract(last, t), t), "index")  # (N, T)
    if time < batch:
        index = node.emit(op.permute_dims(index, [1, 0]), "by_time")
    shape = [dims[a] if a in (time, batch) else 1 for a in range(len(dims))]
    index = node.emit(op.broadcast_to(node.emit(op.reshape(index, shape), "aligned"), dims), "everywhere")
    return op.gather_elements(node.x(0), index, time)


def tensor_scatter(node: Node) -> graph.Expr:
    """past_cache, update, write_indices: `update` is written along an axis from a position for each sample."""
    dims, update = node.shape(0), node.shape(1)
    rank = len(dims)
    axis = node.attr("axis", -2) % rank
    size, length = dims[axis], update[axis]
    starts = node.x(2) if node.has(2) else graph.const(np.zeros(dims[0], "int64"))
    starts = node.emit(op.reshape(starts, (dims[0], 1)), "starts")
    t = graph.const(np.arange(size, dtype="int64").reshape(1, -1))
    offset = node.emit(op.subtract(t, starts), "offset")  # where in the update each position of the cache lies
    if node.attr("mode", "linear") == "circular":
        offset = node.emit(op.floor_mod(offset, graph.const(np.array(size, "int64"))), "wrapped")
    zero, end = graph.const(np.array(0, "int64")), graph.const(np.array(length, "int64"))
    written = node.emit(op.logical_and(op.greater_equal(offset, zero), op.less(offset, end)), "written")
    index = node.emit(op.minimum(op.maximum(offset, zero), graph.const(np.array(length - 1, "int64"))), "index")
    shape = [dims[a] if a in (0, axis) else 1 for a in range(rank)]
    index = node.emit(op.broadcast_to(node.emit(op.reshape(index, shape), "aligned"), dims), "everywhere")
    new = node.emit(op.gather_elements(node.x(1), index, axis), "new")
    return op.where(node.emit(op.reshape(written, shape), "mask"), new, node.x(0))


def scatter_nd(node: Node) -> Value:
    """Of a box of known places, which is what a slice that is assigned to becomes, parts set one behind the other."""
    index = node.evaluated(1) if node.attr("reduction", "none") == "none" else None
    box = box_of(index, node.shape(0)) if index is not None else None
    if box is None:
        return NotImplemented
    data, dims = node.x(0), node.shape(0)
    ends = [begin + length for begin, length in box]
    made = op.reshape(node.x(2), [length for _, length in box] + list(dims[len(box) :]))
    made = node.emit(made, "box")
    for axis in reversed(range(len(box))):
        begin, end = box[axis][0], ends[axis]
        # Of the data what lies before and behind, as wide as the box along the axes before this one.
        outer = [(a, box[a][0], ends[a]) for a in range(axis)]
        parts = [
            node.emit(slice_of(data, [*outer, (axis, *limits)]), "beside") if limits[0] < limits[1] else None
            for limits in ((0, begin), (end, dims[axis]))
        ]
        beside = [part for part in (parts[0], made, parts[1]) if part is not None]
        made = node.emit(op.concat(beside, axis), "placed") if len(beside) > 1 else made
    return made


def slice_of(data: graph.Expr, limits: list[tuple[int, int, int]]) -> graph.Expr:
    """`limits`: of axes, where they begin and end."""
    axes, begins, ends = zip(*limits)
    return op.strided_slice(data, axes, begins, ends)


def box_of(index: np.ndarray, dims: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Where it begins and how long it is along the first axes of `dims`, if the rows of `index` are all the places of a
    box, each once and in order."""
    rows = index.reshape(-1, index.shape[-1]).astype(np.int64)
    sizes = np.array(dims[: rows.shape[1]])
    if not rows.size or ((rows < -sizes) | (rows >= sizes)).any():
        return None
    rows = np.where(rows < 0, rows + sizes, rows)
    first, lengths = rows[0], rows[-1] - rows[0] + 1
    if (lengths < 1).any() or lengths.prod() != len(rows):
        return None
    same = rows.reshape(*lengths, -1) == np.moveaxis(np.indices(lengths), 0, -1) + first
    return [(int(b), int(n)) for b, n in zip(first, lengths)] if same.all() else None


def non_max_suppression(node: Node) -> Value:
    """TVM's operator, with thresholds and the limit known."""
    node.need_all({2: "max_output_boxes_per_class", 3: "iou_threshold", 4: "score_threshold"})
    if not node.has(2):
        raise ModelError("max_output_boxes_per_class is absent, so nothing is selected")
    return NotImplemented


def roi_align(node: Node) -> Value:
    """The average is TVM's operator; its maximum is another one than ONNX's (which weighs the corners first)."""
    if node.attr("mode", "avg") != "avg":
        raise ModelError("mode 'max' is not supported")
    return NotImplemented


def bit_cast(node: Node) -> graph.Expr:
    """The same bits under another dtype of the same width: only between integers is TVM's cast such a one."""
    from onnx.helper import tensor_dtype_to_np_dtype

    given, wanted = node.dtype(0), tensor_dtype_to_np_dtype(node.attr("to")).name
    if given == "bool":
        return op.astype(node.x(0), wanted)
    if wanted == "bool":
        return NotImplemented
    from tvm import te, tirx

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: tirx.reinterpret(wanted, x(*i)), name="bit_cast")

    return node.importer.builder.call_te(compute, node.x(0), primfunc_name_hint="bit_cast")


def gather(node: Node) -> graph.Expr:
    """Negative indices count from the end; those beyond it are clipped."""
    dims = node.shape(0)
    axis = node.attr("axis", 0) % len(dims)
    known = node.known(1)
    if known is not None:
        if known.size and (known.min() < -dims[axis] or known.max() >= dims[axis]):
            raise ModelError(f"an index is outside the {dims[axis]} elements of axis {axis}")
        index = graph.const(np.where(known < 0, known + dims[axis], known).astype("int64"))
    else:
        index = node.x(1) if node.dtype(1) == "int64" else node.emit(op.astype(node.x(1), "int64"), "int64")
        from_end = op.add(index, integer(dims[axis]))
        index = node.emit(op.where(op.less(index, integer(0)), from_end, index), "index")
    return take(node.x(0), index, axis)


def affine_grid(node: Node) -> list | object:
    """The size unknown, the stated shape gives it; the number of channels plays no part."""
    stated = node.declared()
    if node.known(1) is not None or stated is None:
        return NotImplemented
    size = np.array([stated[0], 1, *stated[1:-1]], "int64")
    return node.call("AffineGrid", [node.inputs[0], size], align_corners=node.attr("align_corners", 0))


TABLE = {
    "Gather": gather,
    "AffineGrid": affine_grid,
    "TopK": top_k,
    "OneHot": one_hot,
    "Einsum": einsum,
    "ReverseSequence": reverse_sequence,
    "TensorScatter": tensor_scatter,
    "ScatterND": scatter_nd,
    "NonMaxSuppression": non_max_suppression,
    "RoiAlign": roi_align,
    "BitCast": bit_cast,
}
