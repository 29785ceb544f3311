"""ONNX's own conformance cases of kind `node` whose inputs and outputs are all plain tensors."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np


@functools.cache
def node_cases() -> dict[str, Any]:
    """Test cases by name; each has `.model` (ModelProto) and `.data_sets` (pairs of input and output lists)."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)

    def plain(case) -> bool:
        return all(
            isinstance(a, np.ndarray) for inputs, outputs in case.data_sets for part in (inputs, outputs) for a in part
        )

    return {case.name: case for case in cases if plain(case)}
