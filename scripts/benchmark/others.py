"""What is compared with: ONNX Runtime and OpenVINO, each with its own quantizer, and TVM as it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import tvmcompress as tc
from scripts.benchmark.subjects import Sample


def stock_package(model: tc.Model, proto: onnx.ModelProto, folder: Path) -> tc.Package:
    """TVM's own default: its importer, its pipeline, no schedules, in the same package format."""
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    from tvmcompress import golden, linking
    from tvmcompress.ir import graph

    target = tc.Target.load("native")
    module = graph.rewrite(from_onnx(proto), lambda *_: None)
    library = folder / "stock.so"
    tvm.compile(module, target=target.to_tvm()).export_library(str(library), fcompile=linking.linker(target))
    inputs = golden.example_inputs(model.inputs)
    contents = tc.compile(model, target).manifest
    kept = {k: contents[k] for k in ("name", "target", "needs", "inputs", "outputs", "source", "applied", "notes")}
    manifest = {**kept, "layers": [], "entry": {"prepare": False}}
    return tc.Package.build(library=library, weights=[], manifest=manifest, golden_inputs=inputs, golden_outputs={})


def quantized_by_onnxruntime(proto: onnx.ModelProto, samples: list[Sample], folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> dict | None:
            return next(self.rest, None)

    source, out = folder / "model.onnx", folder / "ort-int8.onnx"
    onnx.save(proto, source)
    quantize_static(
        source, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


def quantized_by_openvino(path: Path, samples: list[Sample], folder: Path) -> Path:
    import nncf
    import openvino

    out = folder / "openvino-int8.xml"
    calibration = nncf.Dataset(samples)
    quantized = nncf.quantize(openvino.convert_model(str(path)), calibration, subset_size=len(samples))
    openvino.save_model(quantized, str(out))
    return out


def run_onnx(path: Path, sample: Sample) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, sample)[0]
