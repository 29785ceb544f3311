"""The main job on a network trained here: run by `scripts/demo`, which sees to what is installed.

Trains a small convolutional network on scikit-learn's handwritten digits, writes it as ONNX, and takes it through the
commands that a user would type. Exit code 1 when int8 loses more than a point of accuracy against float.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from tvmcompress import Report

FOLDER = Path(__file__).resolve().parents[1] / "build" / "demo"
SEED = 0
SIZE = 16  # the digits are 8x8; drawn larger they make a network with some work in it
EPOCHS = 12
CALIBRATION = 200  # images of the training set
FLOAT_ACCURACY = 0.97  # at least
MOST_LOST = 0.01  # of accuracy, by int8

COMMANDS = """
tvmcompress inspect model.onnx --target native
tvmcompress compress model.onnx --recipe int8 --samples calib.npz -o small.model
tvmcompress compile small.model --target native -o small.tar
tvmcompress compile model.onnx --target native -o float.tar
tvmcompress verify small.tar
tvmcompress run small.tar --inputs x.npz --outputs y.npz
tvmcompress measure small.tar --reference float.tar --samples test.npz --json report.json --html report.html
"""


class Block(nn.Module):
    """Two convolutions around which the input is carried: `relu(x + f(x))`."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = convolution(channels, channels), convolution(channels, channels, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(self.first(x)))


def convolution(inputs: int, outputs: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


def network() -> nn.Module:
    """Plain, strided, residual and depthwise convolutions with batch norms: (N, 1, 16, 16) to (N, 10)."""
    return nn.Sequential(
        convolution(1, 32),
        convolution(32, 64, stride=2),
        Block(64),
        convolution(64, 128, stride=2),
        convolution(128, 128, groups=128),
        Block(128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images float32 (N, 1, 16, 16) in 0 … 1 and classes: of the training set, then of the test set."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, 1, 8, 8) / 16
    images = nn.functional.interpolate(images, size=SIZE, mode="bilinear")
    chosen = train_test_split(np.arange(len(classes)), test_size=500, random_state=SEED, stratify=classes)
    train, test = map(torch.from_numpy, chosen)
    labels = torch.from_numpy(classes)
    return images[train], labels[train], images[test], labels[test]


def train(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums in one order everywhere, and work as small as this is no faster with more
    model = network()
    steps = EPOCHS * -(-len(images) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """As ONNX, for one image at a time: `image` to `scores`."""
    warnings.filterwarnings("ignore")  # the exporter's, about itself
    logging.disable(logging.WARNING)
    example = (torch.zeros(1, 1, SIZE, SIZE),)
    torch.onnx.export(
        model, example, path, input_names=["image"], output_names=["scores"], external_data=False, verbose=False
    )


def command(line: str) -> None:
    """One line of `COMMANDS`, shown as it would be typed."""
    print(f"\n$ {line}", flush=True)
    environment = {**os.environ, "COLUMNS": os.environ.get("COLUMNS", "120")}
    done = subprocess.run(shlex.split(line), cwd=FOLDER, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def prepare() -> None:
    """model.onnx, calib.npz, test.npz (with labels) and x.npz in `FOLDER`."""
    start = time.perf_counter()
    images, labels, test_images, test_labels = digits()
    model = train(images, labels)
    with torch.inference_mode():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    print(
        f"trained on {len(images)} digits in {time.perf_counter() - start:.0f} s: "
        f"{accuracy:.1%} of {len(test_images)} others are read rightly"
    )
    if accuracy < FLOAT_ACCURACY:
        sys.exit(f"demo: the network learned too little: {accuracy:.1%}, wanted {FLOAT_ACCURACY:.0%}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    export(model, FOLDER / "model.onnx")
    np.savez(FOLDER / "calib.npz", image=images[:CALIBRATION].numpy())
    np.savez(FOLDER / "test.npz", image=test_images.numpy(), labels=test_labels.numpy())
    np.savez(FOLDER / "x.npz", image=test_images[:1].numpy())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    prepare()
    print(f"\nIn {os.path.relpath(FOLDER)}:")
    for line in COMMANDS.strip().splitlines():
        command(line)
    report = Report.load(FOLDER / "report.json")
    accuracy = report.quality["accuracy"]
    lost = accuracy["reference"] - accuracy["package"]
    print(f"\nint8 reads {accuracy['package']:.1%} of the digits rightly, float {accuracy['reference']:.1%}.")
    print(f"The report with charts: {os.path.relpath(FOLDER / 'report.html')}")
    if lost > MOST_LOST:
        sys.exit(f"demo: int8 loses {lost:.1%} of accuracy, at most {MOST_LOST:.0%} is allowed")


if __name__ == "__main__":
    main()
