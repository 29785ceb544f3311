"""What is measured: networks of tests/networks.py, and as light_NAME those of the onnx package, with random samples."""

from __future__ import annotations

import numpy as np
import onnx

import tvmcompress as tc
from tests import networks

Sample = dict[str, np.ndarray]
USUAL = "resnet18,resnet50,mobilenet_v2,efficientnet,vision_transformer,keyword_spotter,recurrent"
MORE = (
    "encoder,detector,unet,squeeze,shuffle,light_bvlc_alexnet,light_densenet121,light_inception_v1,light_inception_v2,"
    "light_resnet50,light_shufflenet,light_squeezenet,light_vgg19,light_zfnet512"
)
# Larger than in the tests, where small ones do.
LARGER: dict[str, dict] = {"unet": {"size": 128, "width": 32}, "detector": {"size": 256}}
LARGER |= {name: {"size": 224} for name in ("squeeze", "shuffle")}


def network(name: str) -> onnx.ModelProto:
    if name.startswith("light_"):
        return networks.light(name.removeprefix("light_"))
    return getattr(networks, name)(**LARGER.get(name, {}))


def random_samples(model: tc.Model, count: int, seed: int = 0) -> list[Sample]:
    """Normal numbers, or for integers numbers of words."""
    rng = np.random.default_rng(seed)

    def values(spec) -> np.ndarray:
        if spec.dtype.startswith("int"):
            return rng.integers(0, 1000, spec.shape).astype(spec.dtype)
        return rng.standard_normal(spec.shape).astype(spec.dtype)

    return [{spec.name: values(spec) for spec in model.inputs} for _ in range(count)]
