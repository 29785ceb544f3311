"""ONNX models: `load_onnx` reads a file, `import_proto` takes what is in memory, `unsupported_operators` only looks."""

from tvmcompress.frontend.onnx.files import open_model
from tvmcompress.frontend.onnx.model import import_proto, load_onnx
from tvmcompress.frontend.onnx.support import unsupported_operators

__all__ = ["import_proto", "load_onnx", "open_model", "unsupported_operators"]
