"""Eight bits by our recipe against eight bits by ONNX Runtime's tools: same network, same samples."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests import networks
from tests.ir_pairs import snr_db
from tvmcompress.compression import compress, host_executor
from tvmcompress.frontend import load


def theirs(path, folder, samples, test):
    """ONNX Runtime's outputs in float, and those of its quantize_static by its best settings."""
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(samples)

        def get_next(self):
            return next(self.left, None)

    def run(file):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, sample)[0] for sample in test])

    quant_pre_process(str(path), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    exact, found = run(path), []
    for source in (path, folder / "prepared.onnx"):
        for method in (quantization.CalibrationMethod.MinMax, quantization.CalibrationMethod.Percentile):
            quantization.quantize_static(
                str(source), str(folder / "q.onnx"), Reader(), per_channel=True, calibrate_method=method
            )
            found.append(snr_db(exact, run(folder / "q.onnx")))
    return exact, max(found)


LONG = ["resnet18", "mobilenet_v2", "squeeze", "shuffle", "unet", "detector", "transformer"]


@pytest.mark.parametrize("name", ["small", *[pytest.param(name, marks=pytest.mark.long) for name in LONG]])
def test_no_worse_than_onnxruntime(name, tmp_path):
    build = getattr(networks, name)
    proto = build() if name in ("small", "transformer") else build(64)
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    model = load(path)
    rng = np.random.default_rng(3)
    draw = lambda: {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in model.inputs}  # noqa: E731
    samples, test = [draw() for _ in range(16)], [draw() for _ in range(8)]
    exact, bar = theirs(path, tmp_path, samples, test)
    small = compress(model, "int8", samples=samples)
    run = host_executor(small.module)
    ours = np.concatenate([run([sample[s.name] for s in model.inputs])[0] for sample in test])
    assert snr_db(exact, ours) > bar - 1
    rows = [row for row in small.notes if "layer" in row]
    assert all(row["quantized"] for row in rows)
