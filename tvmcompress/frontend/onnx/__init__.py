"""ONNX models: `load_onnx`, and what of a model cannot be imported."""

from tvmcompress.frontend.onnx.support import unsupported_operators

__all__ = ["unsupported_operators"]
