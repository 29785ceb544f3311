"""Peak memory of compiling a large model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx

from tests import networks

ROOT = Path(__file__).parents[2]


def memory(folder: Path, megabytes: int = 400) -> dict:
    """Peak memory of a process that loads, compresses and compiles a model of that size, against its file."""
    path = folder / "large.onnx"
    onnx.save(large(megabytes), path)
    found = {"file": path.stat().st_size}
    for recipe in ("float32", "int8", "int4-weights"):
        code = (
            "import numpy as np, tvmcompress as tc\n"
            f"model = tc.load({str(path)!r})\n"
            f"samples = [np.random.default_rng(0).standard_normal(model.inputs[0].shape).astype('float32')]\n"
            + (f"model = tc.compress(model, {recipe!r}, samples=samples)\n" if recipe != "float32" else "")
            + f"tc.compile(model, tc.Target.load('native')).save({str(folder / 'large.tar')!r})\n"
            "status = open('/proc/self/status').read()\n"
            "print(int(status.split('VmHWM:')[1].split()[0]) * 1024)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        found[recipe] = int(done.stdout.split()[-1]) if done.returncode == 0 else done.stderr[-300:]
    return found


def large(megabytes: int) -> onnx.ModelProto:
    net = networks.Net()
    width, x = 2048, "input"
    for _ in range(max(1, megabytes * 2**20 // (width * width * 4))):
        x = net.node("Relu", [net.linear(x, width, width)])
    return net.model((1, width), x, (1, width))
