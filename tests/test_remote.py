"""A package on a board gives what it gives here, also where layers share memory or read it under another shape."""

import sys

import numpy as np
import onnx

import tvmcompress as tc
from tests.arm_board import served
from tests.cli.files import SHAPE, network
from tvmcompress.device import Device


def test_views_of_a_buffer_stay_views(tmp_path):
    onnx.save(network(), tmp_path / "model.onnx")  # flattens between its pool and its classifier
    package = tc.compile(tc.load(tmp_path / "model.onnx"), "native")
    x = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    here = tc.deploy(package)
    command = [sys.executable, "-m", "tvmcompress.serving", "--port", "19290"]
    with served(command) as address, Device.open(address) as device:
        there = tc.deploy(package, device)
        for image in x:
            np.testing.assert_array_equal(there({"x": image})["y"], here({"x": image})["y"])
        assert len(there._program.times([x[0]], 5)) == 5
