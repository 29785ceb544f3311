"""Which bindings are layers (convolutions and matrix products), and where their weights and channels are."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.errors import ModelError, RecipeError, did_you_mean
from tvmcompress.ir import graph

CONVOLUTIONS = {f"relax.nn.conv{n}d": "conv" for n in (1, 2, 3)}
TRANSPOSED = {f"relax.nn.conv{n}d_transpose": "conv_transpose" for n in (1, 2, 3)}
LAYERS = {**CONVOLUTIONS, **TRANSPOSED, "relax.matmul": "matmul"}
KINDS = ("conv", "depthwise", "conv_transpose", "matmul", "attention")


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product.

    kind: one of KINDS; `attention` is a matrix product of two live tensors. `weight` is the position of the constant
    operand (None without one), `channel` the axis of it that runs over output channels, `inner` its axis of inputs.
    """

    var: relax.Var
    call: relax.Call
    kind: str
    weight: int | None
    channel: int
    inner: int

    @property
    def name(self) -> str:
        return self.var.name

    @property
    def live(self) -> tuple[graph.Expr, ...]:
        """The operands that are computed at run time."""
        return tuple(a for i, a in enumerate(self.call.args[:2]) if i != self.weight)

    @property
    def input_axis(self) -> int:
        """The axis of the first operand, when that is computed, that runs over input channels."""
        return -1 if self.call.op.name == "relax.matmul" else str(self.call.attrs.data_layout).index("C")

    def weights(self) -> np.ndarray:
        """The constant operand. Raises ModelError when it holds NaN or infinity."""
        assert self.weight is not None
        array = graph.value(self.call.args[self.weight])
        if not np.isfinite(array).all():
            raise ModelError(f"the weights of '{self.name}' hold NaN or infinity; export the model again")
        return array

    def weight_key(self) -> tuple:
        """Equal for layers whose constants are, though these be stored twice."""
        array = np.ascontiguousarray(self.weights())
        return array.shape, self.channel, hashlib.blake2b(array.reshape(-1).view(np.uint8).data).digest()


def layer_of(var: relax.Var, expr: graph.Expr) -> Layer | None:
    """The layer that this binding is, or None."""
    kind = LAYERS.get(graph.op_name(expr))
    if kind is None:
        return None
    if kind == "matmul":
        return matmul_of(var, expr)
    layout = str(expr.attrs.kernel_layout)
    if kind == "conv" and expr.attrs.groups > 1 and graph.shape(expr.args[1])[layout.index("I")] == 1:
        kind = "depthwise"
    weight = 1 if graph.is_const(expr.args[1]) else None
    return Layer(var, expr, kind, weight, layout.index("O"), layout.index("I"))


def matmul_of(var: relax.Var, expr: graph.Expr) -> Layer | None:
    const = [graph.is_const(a) for a in expr.args]
    if all(const):
        return None
    weight = const.index(True) if any(const) else None
    rank = len(expr.args[weight].ty.shape) if weight is not None else 2
    # (K, N) on the right has its channels last, (M, K) on the left last but one; a vector has none.
    channel, inner = (rank - 1, rank - 2) if weight != 0 else (rank - 2, rank - 1)
    if rank < 2:
        channel, inner = -1, 0
    return Layer(var, expr, "attention" if weight is None else "matmul", weight, channel, inner)


def layers(mod: tvm.IRModule) -> Iterator[Layer]:
    for binding in graph.bindings(mod):
        layer = layer_of(binding.var, binding.value)
        if layer is not None:
            yield layer


def sanitized(name: str) -> str:
    """A layer's name as Relax spells it."""
    return re.sub(r"[^0-9A-Za-z_*?\[\]]", "_", name)


def skipped(all_layers: Sequence[Layer], skip: Sequence[str], skip_kinds: Sequence[str], owner: str) -> dict[str, str]:
    """From the name of each layer to be left out to the reason.

    Raises RecipeError for a pattern or kind that matches no layer, with the nearest names.
    """
    names = [layer.name for layer in all_layers]
    reasons: dict[str, str] = {}
    for kind in skip_kinds:
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise RecipeError(
                f"{owner}: no kind of layer is called '{kind}'{did_you_mean(kind, KINDS)} (kinds: {known})"
            )
        reasons.update((layer.name, f"skipped by kind '{kind}'") for layer in all_layers if layer.kind == kind)
    for pattern in skip:
        reasons.update((name, f"skipped by name '{pattern}'") for name in matched(names, pattern, owner, "skip"))
    return reasons


def matched(names: Sequence[str], pattern: str, owner: str, option: str) -> list[str]:
    """The layers' names that a pattern stands for. Raises RecipeError when there is none, with the nearest."""
    found = [name for name in names if fnmatch.fnmatchcase(sanitized(name), sanitized(pattern))]
    if not found:
        near = did_you_mean(sanitized(pattern), names)
        raise RecipeError(f"{owner}: {option} '{pattern}' matches none of the model's {len(names)} layers{near}")
    return found


def macs(layer: Layer) -> int:
    """Multiply-accumulates of one run."""
    out = int(np.prod(graph.shape(layer.call), dtype=np.int64))
    if layer.call.op.name == "relax.matmul":
        return out * graph.shape(layer.call.args[0])[-1]
    kernel = graph.shape(layer.call.args[1])
    if layer.kind == "conv_transpose":
        data = int(np.prod(graph.shape(layer.call.args[0]), dtype=np.int64))
        return data * int(np.prod(kernel, dtype=np.int64)) // kernel[layer.inner]
    return out * int(np.prod(kernel, dtype=np.int64)) // kernel[layer.channel]
