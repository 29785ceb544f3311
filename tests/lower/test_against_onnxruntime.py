"""Quantized ONNX models here and in ONNX Runtime: the same file, the same input.

Every output is within one quantum, or at least 40 dB away where float operators lie between quantized ones. ONNX
Runtime itself differs from itself: by default it replaces dequantize-operator-quantize groups by integer operators,
unoptimised it computes them in float. Where its two results are less than 40 dB apart, ours is that of the file as
written.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

import tvmcompress as tc
from tests import networks
from tvmcompress.compilation import simplified
from tvmcompress.lower import host

ort = pytest.importorskip("onnxruntime")

NETWORKS = networks.SMALL | {
    "resnet": lambda: networks.resnet((1, 1, 1, 1), False, 64),
    "mobilenet": lambda: networks.mobilenet_v2(64),
}


@dataclass(frozen=True)
class Case:
    network: str
    form: str = "QDQ"
    per_channel: bool = True
    activation: str = "QUInt8"
    weight: str = "QInt8"
    symmetric: bool = False


CASES = [
    Case("small"),
    Case("small", "QDQ", False, "QInt8", "QInt8", True),
    Case("small", "QDQ", False, "QUInt8", "QUInt8"),  # weights with a zero point
    Case("small", "QOperator", True, "QInt8"),
    Case("squeeze"),
    Case("shuffle", "QOperator"),
    Case("unet", "QDQ", True, "QInt8", "QInt8", True),
    Case("detector", "QDQ", False, "QUInt8", "QUInt8"),
    Case("transformer"),
    Case("resnet"),
    Case("mobilenet", "QDQ", True, "QInt8"),
]
# What ONNX Runtime does on integers by default is done the same way here, to the last bit.
IDENTICAL = {"small", "squeeze", "shuffle", "unet", "detector", "resnet", "mobilenet"}
MORE = [
    Case(network, form, per_channel, *kinds)
    for network, form, per_channel, kinds in itertools.product(
        NETWORKS,
        ("QDQ", "QOperator"),
        (True, False),
        (("QUInt8", "QInt8"), ("QInt8", "QInt8"), ("QInt8", "QInt8", True), ("QUInt8", "QUInt8")),
    )
    # ONNX Runtime has no kernel for uint8 weights with a scale for each channel.
    if not (per_channel and kinds[1] == "QUInt8")
]


def shape_of(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)


def quantize(case: Case, folder: Path) -> Path:
    """The network with quantize_static of ONNX Runtime, four random images for calibration."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, shape) -> None:
            rng = np.random.default_rng(0)
            self.samples = iter([{"input": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)])

        def get_next(self):
            return next(self.samples, None)

    original, prepared, result = (folder / name for name in ("float.onnx", "prepared.onnx", "quantized.onnx"))
    model = NETWORKS[case.network]()
    onnx.save(model, original)
    quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(result),
        Reader(shape_of(model)),
        quant_format=QuantFormat[case.form],
        per_channel=case.per_channel,
        activation_type=QuantType[case.activation],
        weight_type=QuantType[case.weight],
        extra_options={"ActivationSymmetric": case.symmetric, "WeightSymmetric": case.weight == "QInt8"},
    )
    return result


def run_ort(path: Path, x: np.ndarray, level: str) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def output_scale(path: Path) -> float:
    """The scale of the dequantize that makes the output; 0 when something else makes it."""
    graph = onnx.load(path).graph
    values = {i.name: i for i in graph.initializer}
    (last,) = (n for n in graph.node if graph.output[0].name in n.output)
    return float(onnx.numpy_helper.to_array(values[last.input[1]])) if last.op_type == "DequantizeLinear" else 0.0


def snr(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = float(((wanted.astype(np.float64) - got) ** 2).sum())
    return 10 * np.log10(float((wanted.astype(np.float64) ** 2).sum()) / noise) if noise else np.inf


def close(wanted: np.ndarray, got: np.ndarray, step: float) -> bool:
    return np.abs(wanted - got).max() <= 1.001 * step or snr(wanted, got) >= 40


def check(case: Case, folder: Path) -> None:
    path = quantize(case, folder)
    model = tc.load(path)
    x = np.random.default_rng(9).standard_normal(model.inputs[0].shape).astype(np.float32)
    default, written = (run_ort(path, x, level) for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"))
    (got,) = host.executor(simplified(model.module))([x])
    assert got.shape == default.shape
    if case.network in IDENTICAL:
        assert snr(default, got) > 200, f"{snr(default, got):.1f} dB"  # one float32 rounding of the output at most
    step = output_scale(path)
    if not close(default, written, step) and not close(default, got, step):
        default = written
    assert close(default, got, step), (
        f"{snr(default, got):.1f} dB, {np.abs(default - got).max() / (step or 1):.2f} steps"
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_numbers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("case", MORE, ids=str)
def test_same_numbers_for_every_kind_of_quantization(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
