"""The nine `light_*` networks that the onnx package carries give the outputs shipped beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conformance.harness import run_model

NETWORKS = [
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
    "vgg19", "zfnet512",
]  # fmt: skip


def light_folder() -> Path:
    import onnx.backend.test

    return Path(onnx.backend.test.__file__).parent / "data" / "light"


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_light_network(name):
    """The input is the one that onnx's own runner makes: 0, 1, 2 … over the size, in float32."""
    from tvmcompress.frontend import load

    folder = light_folder()
    model = load(folder / f"light_{name}.onnx")
    (spec,) = model.inputs
    x = (np.arange(spec.size).reshape(spec.shape) / spec.size).astype("float32")
    wanted = onnx.numpy_helper.to_array(onnx.load_tensor(str(folder / f"light_{name}_output_0.pb")))
    (got,) = run_model(model, {spec.name: x})
    np.testing.assert_allclose(got, wanted, rtol=2e-2, atol=1e-4)
