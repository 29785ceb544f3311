"""Weights that share 16 values: looked up in each product of few rows, against unpacked once when a package is loaded.

`python -m scripts.benchmark.look_up` prints a table, with the estimate by which `compile` decides (see
`kernels.few_rows.cycles`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
from tvm import relax

import tvmcompress as tc
from tvmcompress.deployment import Deployment
from tvmcompress.ir import graph
from tvmcompress.model import Model, Source
from tvmcompress.passes import ClusterWeights
from tvmcompress.spec import TensorSpec

SHAPES = [(256, 256), (512, 512), (768, 768), (1024, 1024), (2048, 1000), (2048, 2048), (4096, 4096), (9216, 4096)]
ROWS = (1, 2, 4)
ROUNDS, CALLS = 60, 5


def model(rows: int, depth: int, columns: int) -> Model:
    weight = np.random.default_rng(0).standard_normal((depth, columns), np.float32)
    body = lambda _, x: [relax.op.matmul(x, graph.const(weight))]  # noqa: E731
    mod = graph.program([("x", (rows, depth), "float32")], body)
    specs = (TensorSpec("x", (rows, depth), "float32"),), (TensorSpec("y", (rows, columns), "float32"),)
    return Model(ClusterWeights()(mod).module, *specs, Source("product", "made", 0, ""))


def deployed(product: Model) -> tuple[list[Deployment], float]:
    """Unpacked and looked up; and what is estimated of the second: its time over the other's."""
    both = [tc.compile(product, "native", keep=keep) for keep in ("never", "always")]
    (estimate,) = (row["shared"]["estimate"] for row in both[1].manifest["layers"])
    return [tc.deploy(package) for package in both], estimate


def times(product: Model, rows: int, depth: int) -> Iterator[float]:
    """Median ms of both, unpacked first, in turns; and the estimate."""
    x = {"x": np.random.default_rng(1).standard_normal((rows, depth), np.float32)}
    both, estimate = deployed(product)
    found: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for deployment, seen in zip(both, found):
            deployment(x)
            start = time.perf_counter()
            for _ in range(CALLS):
                deployment(x)
            seen.append((time.perf_counter() - start) / CALLS * 1e3)
    yield from map(statistics.median, found)
    yield estimate


def main() -> None:
    print("rows  weight        floats     unpacked    looked up     of it  estimated")
    for rows in ROWS:
        for depth, columns in SHAPES:
            unpacked, looked_up, estimate = times(model(rows, depth, columns), rows, depth)
            size = f"{4 * depth * columns / 2**20:.2f} MiB"
            shape = f"{depth} x {columns}"
            print(
                f"{rows:4}  {shape:12} {size:>10} {unpacked:9.4f} ms {looked_up:9.4f} ms {looked_up / unpacked:9.2f}"
                f"  {estimate:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
