"""Relax operators by what they mean for integers."""

from __future__ import annotations


def relax_names(*names: str) -> frozenset[str]:
    return frozenset(f"relax.{name}" for name in names)


# The result holds values of the operand and nothing else (but zeros): it shares the operand's parameters.
MOVES = relax_names(
    "reshape",
    "permute_dims",
    "flatten",
    "squeeze",
    "expand_dims",
    "strided_slice",
    "split",
    "broadcast_to",
    "tile",
    "repeat",
    "flip",
    "take",
    "gather_elements",
    "gather_nd",
    "layout_transform",
    "nn.batch_flatten",
    "nn.pixel_shuffle",
    "nn.pad",
    "image.resize2d",
    "nn.max_pool1d",
    "nn.max_pool2d",
    "nn.max_pool3d",
    "max",
)

# Of two computed tensors.
BINARY = relax_names(
    "add",
    "subtract",
    "multiply",
    "maximum",
    "minimum",
)

# Of one computed tensor, with a range of its own.
POOLS = relax_names(
    "nn.avg_pool1d",
    "nn.avg_pool2d",
    "nn.avg_pool3d",
    "nn.adaptive_avg_pool1d",
    "nn.adaptive_avg_pool2d",
    "nn.adaptive_avg_pool3d",
    "mean",
    "image.resize2d",
    "image.resize3d",
    "nn.softmax",
    "nn.pad",
)

# Tables. Not here: exp, sqrt, rsqrt. They belong to normalisations, which 8 bits would ruin.
POINTWISE = relax_names(
    "nn.relu",
    "nn.relu6",
    "clip",
    "nn.leakyrelu",
    "nn.prelu",
    "nn.selu",
    "nn.silu",
    "nn.gelu",
    "nn.gelu_tanh",
    "nn.softplus",
    "sigmoid",
    "tanh",
    "erf",
    "square",
    "abs",
    "negative",
)

POINTWISE_BINARY = BINARY | relax_names("divide", "power")

# What a layer's kernel does on the way out, with one constant a channel.
EPILOGUE = relax_names(
    "nn.relu",
    "nn.relu6",
    "clip",
    "add",
    "subtract",
    "multiply",
)

MULTIPLY = "relax.multiply"
LINEAR_RESIZE = ("linear", "cubic")
