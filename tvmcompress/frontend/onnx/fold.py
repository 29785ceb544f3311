"""Evaluating at load what is known at load, with ONNX's own reference implementation."""

from __future__ import annotations

import warnings

import numpy as np
import onnx

# Folding these would undo compression (DequantizeLinear), freeze chance, or lose what only the runtime knows.
NEVER = {
    "DequantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial", "If", "Loop", "Scan", "Dropout",
}  # fmt: skip
SMALL = 1 << 16  # bytes; a result up to this size is always folded
GROWTH = 4  # a larger one only if it is not this many times larger than what it was made of
EVALUATED = 1 << 28  # bytes that an operator may ask for, which looks at them and keeps none


def fold(
    node: onnx.NodeProto, arrays: list[np.ndarray | None], opset: int, small: int = SMALL
) -> list[np.ndarray | None] | None:
    """The outputs of a node whose inputs are all known, or None where it is better computed at run time: more bytes
    than `small`, and many more than its inputs."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type in NEVER or any(a is not None and a.dtype.kind in "OUS" for a in arrays):
        return None
    if node.op_type == "Constant" or any(len(a.graphs) or a.HasField("g") for a in node.attribute):
        return None
    outputs = [o for o in node.output if o]
    function = onnx.helper.make_function(
        "fold",
        "one",
        [i for i in dict.fromkeys(node.input) if i],
        outputs,
        [node],
        [onnx.helper.make_opsetid(node.domain, opset)],
    )
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            evaluator = ReferenceEvaluator(function)
            results = evaluator.run(None, {n: a for n, a in zip(node.input, arrays) if n}, attributes={})
    except Exception:  # of any kind: the operator is then imported, and a fault of the model named there
        return None
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return None
    results = [np.asarray(r) for r in results]
    made, given = sum(r.nbytes for r in results), sum(a.nbytes for a in arrays if a is not None)
    if (made > small and made > GROWTH * given) or any(r.dtype.kind in "OUS" for r in results):
        return None
    named = dict(zip(outputs, results))
    return [named.get(o) for o in node.output]
