"""breakeven(target) -> BreakEven: the density at which each sparse format starts to win over the dense kernel there.

On a target that runs here kernels are built and timed in turns with their dense twins; for others the compiler's own
estimate is told, and said to be one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tvm
from tvm import relax

from tvmcompress import linking
from tvmcompress.errors import TargetError
from tvmcompress.ir import graph, ops
from tvmcompress.isa import Isa, isa_of
from tvmcompress.kernels import winograd
from tvmcompress.kernels.choices import Choose
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.lower import twins
from tvmcompress.lower.host import runs_here
from tvmcompress.lower.pipeline import Lowered, lower
from tvmcompress.lower.sparse import Keep
from tvmcompress.spec import numpy_dtype
from tvmcompress.target import Target

T = TypeVar("T")
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# As they are in networks; a matrix product is the convolution of one row of pixels.
LAYERS = {
    "1x1, 256 to 256, 28x28": Conv2d(1, 28, 28, 256, 256, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "3x3, 128 to 128, 28x28": Conv2d(1, 28, 28, 128, 128, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "product 128x384 to 1536": Conv2d(1, 1, 128, 384, 1536, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
}
GROUPS, KERNELS = "N:M groups", "kernels"
LONGEST, SHORTEST = 16, 8  # M in these: of fewer inputs too few densities can be left
Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Curve:
    """Time over that of the dense kernel at each density of one format in one layer."""

    format: str
    dtype: str
    layer: str
    ratios: tuple[tuple[float, float], ...]  # (density, ratio), densities rising

    @property
    def density(self) -> float:
        """Up to which the format wins, between readings by a straight line.

        0 where it never does, the highest density that was tried where it always does.
        """
        won = [(d, r) for d, r in self.ratios if r <= 1]
        lost = [(d, r) for d, r in self.ratios if r > 1 and (not won or d > won[-1][0])]
        if not won or not lost:
            return won[-1][0] if won else 0.0
        (low, below), (high, above) = won[-1], lost[0]
        return low + (high - low) * (1 - below) / (above - below)


@dataclass(frozen=True)
class BreakEven:
    """What was found for a target; `measured` on this machine, else estimated."""

    target: str
    measured: bool
    curves: tuple[Curve, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        rows = [{**vars(curve), "breakeven": curve.density} for curve in self.curves]
        return {"target": self.target, "measured": self.measured, "curves": rows}


@dataclass(frozen=True)
class Linked:
    lowered: Lowered
    library: Path


def breakeven(
    target: Target | str, densities: Sequence[float] = DENSITIES, progress: Progress | None = None
) -> BreakEven:
    """Raises TargetError for GPUs, whose kernels are dense, and for targets of several builds."""
    target = target if isinstance(target, Target) else Target.load(target)
    if target.kind != "cpu" or target.builds:
        raise TargetError(f"breakeven: {target.name} has no sparse kernels of one kind; take one CPU target")
    machine = target.to_tvm()
    isa, here = isa_of(machine, target.l1d, target.l2), runs_here(target)
    found = formats(isa)
    pairs = [(one, layer) for one in found for layer, conv in LAYERS.items() if one.suits(conv, isa)]
    total, done = len(pairs) * (len(densities) + 1), 0
    curves = []
    with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
        side = Side(target, machine, isa, Path(folder) if here else None)
        for one, layer in pairs:
            ratios, conv = [], LAYERS[layer]
            dense = side.build(conv, one, None) if here else None
            for density in sorted(densities):
                done += 1
                if progress:
                    progress(done, total, f"{one.text}, {one.dtype}: {layer}")
                ratios.append((density, side.ratio(conv, one, density, dense)))
            done += 1
            curves.append(Curve(one.text, one.dtype, layer, tuple(ratios)))
    return BreakEven(target.name, here, tuple(curves))


@dataclass(frozen=True)
class Format:
    """What zeros come in: `block` (outputs, inputs) of one tap or all; of N:M the M inputs. `text` is the kernels'."""

    text: str
    dtype: str
    block: tuple[int, int]

    @property
    def through(self) -> bool:
        """Whether a block goes through all taps of a kernel."""
        return self.text.endswith(KERNELS)

    def suits(self, conv: Conv2d, isa: Isa) -> bool:
        return not self.through or winograd.applies(conv, isa)

    def weights(self, conv: Conv2d, density: float) -> np.ndarray:
        if self.text == GROUPS:
            return of_groups(conv, density, self.block[1])
        return emptied(conv, density, self.block, self.through)


def formats(isa: Isa) -> list[Format]:
    depth = isa.dot.depth if isa.dot else 1
    found = [Format("rows", "float32", (1, 1)), Format(f"{isa.lanes}x1 blocks", "float32", (isa.lanes, 1))]
    found.append(Format(f"{isa.lanes}x1 {KERNELS}", "float32", (isa.lanes, 1)))
    if isa.dot and isa.dot.function:
        found.append(Format(f"rows of 1x{depth}", "int8", (1, depth)))
    found.append(Format(f"{isa.lanes}x{depth} blocks", "int8", (isa.lanes, depth)))
    kinds = {32: "float32", **({32 // depth: "int8"} if isa.dot and isa.dot.function else {})}
    if isa.bf16 and isa.bf16.function:
        pair = isa.bf16.depth
        found.append(Format(f"rows of 1x{pair}", "bfloat16", (1, pair)))
        found.append(Format(f"{isa.bf16.lanes}x{pair} blocks", "bfloat16", (isa.bf16.lanes, pair)))
        kinds |= {32 // pair: "bfloat16"}
    reach = {pick.bits: 8 * pick.reach // pick.bits for pick in isa.picks}
    groups = [Format(GROUPS, dtype, (1, min(reach.get(bits, 0), LONGEST))) for bits, dtype in kinds.items()]
    return found + [one for one in groups if one.block[1] >= SHORTEST]


@dataclass(frozen=True)
class Side:
    """Builds single layers for a target; links them in `folder` when they are to be timed."""

    target: Target
    machine: tvm.target.Target
    isa: Isa
    folder: Path | None

    def ratio(self, conv: Conv2d, form: Format, density: float, dense: Linked | None) -> float:
        built = self.build(conv, form, density)
        if dense is not None:
            rng = np.random.default_rng(0)
            shape = (conv.n, conv.h, conv.w, conv.c)
            byte = form.dtype == "int8"
            x = rng.integers(0, 256, shape).astype(np.uint8) if byte else rng.standard_normal(shape).astype(np.float32)
            return twins.ratio(built, dense, [x])
        (row,) = (row["sparse"] for row in built.lowered.layers if row.get("sparse"))
        return float(row["estimate"])

    def build(self, conv: Conv2d, form: Format, density: float | None) -> Linked:
        """`density` None: the dense kernel."""
        keep, full, text = (Keep("never"), 1.0, "") if density is None else (Keep("always"), density, form.text)
        mod = program(conv, form.dtype, form.weights(conv, full))
        lowered = lower(mod, self.machine, self.isa, choices=only(text), keep=keep)
        if self.folder is None:
            return Linked(lowered, Path())
        library = Path(tempfile.mkdtemp(dir=self.folder), "library.so")
        link = linking.linker(self.target)
        lowered.executable.export_library(str(library), fcompile=link, workspace_dir=str(library.parent))
        return Linked(lowered, library)


def only(text: str) -> Callable[[str], Choose]:
    """Choices of one format, and of what the model likes else."""

    def choose(name: str, candidates: Sequence[T]) -> T:
        fitting = (one for one in candidates if name == "format" and str(one).endswith(text.removeprefix("N:M")))
        return next(fitting, candidates[0])

    return lambda _key: choose


def emptied(conv: Conv2d, density: float, block: tuple[int, int], through: bool = False) -> np.ndarray:
    """Normal weights (O, C, KH, KW), of which blocks are zero; `through`: blocks of all taps."""
    rng = np.random.default_rng(0)
    outputs, inputs = block
    taps = (1, 1) if through else conv.kernel
    mask = rng.random((-(-conv.oc // outputs), -(-conv.c // inputs), *taps)) < density
    mask = np.repeat(np.repeat(mask, outputs, 0), inputs, 1)[: conv.oc, : conv.c]
    return (rng.standard_normal((conv.oc, conv.c, *conv.kernel)) * mask).astype(np.float32)


def of_groups(conv: Conv2d, density: float, group: int) -> np.ndarray:
    """Normal weights (O, C, KH, KW): of each `group` of inputs as many are left as come nearest to `density`."""
    rng = np.random.default_rng(0)
    left = min(max(round(density * group), 1), group - 1)
    order = rng.random((conv.oc, -(-conv.c // group), group, *conv.kernel)).argsort(2)
    mask = (order < left).reshape(conv.oc, -1, *conv.kernel)[:, : conv.c]
    return (rng.standard_normal(mask.shape) * mask).astype(np.float32)


def program(conv: Conv2d, dtype: str, weight: np.ndarray) -> tvm.IRModule:
    """A layer by itself, channels last; of int8 quantized on both sides, of bfloat16 with float32 on both."""

    def product(x: graph.Expr, w: graph.Expr) -> graph.Expr:
        strides, padding, dilation = list(conv.strides), list(conv.padding), list(conv.dilation)
        return relax.op.nn.conv2d(x, w, strides, padding, dilation, 1, "NHWC", "OIHW", "NHWC", "float32")

    def body(rw: graph.Rewriter, x: graph.Expr) -> list[graph.Expr]:
        if dtype == "float32":
            return [rw.emit(product(x, graph.const(weight)))]
        if dtype == "bfloat16":
            narrow = rw.emit(relax.op.astype(x, dtype))
            return [rw.emit(product(narrow, graph.const(weight.astype(numpy_dtype(dtype)))))]
        steps = np.clip(np.rint(weight * 32), -127, 127).astype(np.int8)
        steps[(steps == 0) & (weight != 0)] = 1
        data = rw.emit(ops.dequantize(x, 0.05, 128))
        taps = rw.emit(ops.dequantize(graph.const(steps), np.full(conv.oc, 0.03), np.zeros(conv.oc), 0))
        return [rw.emit(ops.quantize(rw.emit(product(data, taps)), 1.0, 128, "uint8"))]

    kind = "uint8" if dtype == "int8" else "float32"
    return graph.program([("x", (conv.n, conv.h, conv.w, conv.c), kind)], body)
