"""ONNX Runtime as the reference of a measurement, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tvmcompress.errors import MissingDependencyError, ModelError


def installed() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


def session(path: str, threads: int) -> Any:
    """An inference session on the CPU with `threads` threads. Raises ModelError, MissingDependencyError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("ONNX Runtime is not installed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class below this one
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error


def runner(path: str, threads: int) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The session as a function from {input name: array} to {output name: array}."""
    opened = session(path, threads)
    names = [output.name for output in opened.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(names, opened.run(names, dict(inputs))))
        except Exception as error:
            raise ModelError(f"{path}: ONNX Runtime cannot run it: {str(error).splitlines()[0]}") from error

    return run
