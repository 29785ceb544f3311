"""Which layers become sparse kernels or look their weights up, and which activations between these are planes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels.choices import Choices
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.sparse_rows_plan import PIXELS, PLANES, SPREAD
from tvmcompress.lower import compressed, shared_rows, sparse, sparse_formats
from tvmcompress.lower.compressed import Row
from tvmcompress.lower.layer_shapes import convolution, row_of_pixels
from tvmcompress.lower.planes import Views, images, in_planes
from tvmcompress.lower.sparse import Keep


class SparseLayers:
    """Decides once for each layer. `kept`: by the layer's name its kernel and its row for the report; `looked_up`: the
    rows of those whose weights share values."""

    def __init__(self, isa: Isa, choices: Choices, keep: Keep) -> None:
        self.isa, self.choices, self.keep = isa, choices, keep
        self.kept: dict[str, tuple[sparse_formats.Sparse | None, dict]] = {}
        self.looked_up: dict[str, Row] = {}
        self.shapes: dict[str, Conv2d] = {}
        self.views = Views(set())

    def look(self, mod: tvm.IRModule) -> None:
        """Finds the planes of a program, before any layer of it is rewritten."""
        data_of = partial(self.data_of, graph.definitions(mod))
        self.views = Views(in_planes(mod, data_of, self.cycles))
        for binding in graph.bindings(mod):
            # With pixels on both sides a sparse kernel may be no gain.
            if not {binding.var, *data_of(binding.var, binding.value)} & self.views.members:
                self.kept.pop(binding.var.name, None)

    def decide(
        self, name: str, value: np.ndarray, conv: Conv2d, kinds: tuple[str, str], planes: bool = False,
        arrays: Sequence[np.ndarray] = (),
    ) -> sparse_formats.Sparse | None:  # fmt: skip
        """The sparse kernel for a layer with the weights `value` (oc, ic, kh, kw); None for the dense one."""
        if name not in self.kept:
            self.kept[name] = sparse.kept(value, conv, self.isa, kinds, self.keep, name, self.choices, planes, arrays)
        return self.kept[name][0]

    def look_up(
        self, rw: Rewriter, name: str, x: Expr, weight: Expr, kinds: tuple[str, str], several: bool
    ) -> shared_rows.Shared | None:
        """The weights of a product x times weight to look up, where nothing faster leaves out their zeros. `several`:
        the package has builds for other targets too."""
        found, row = shared_rows.kept(rw, x, weight, self.isa, self.keep, name, several)
        known = sparse.stored(rw, weight) if found else None
        conv = row_of_pixels(graph.shape(x), graph.shape(weight))
        if found and known and conv:
            other = self.decide(name, known[0].T[:, :, None, None], conv, kinds, arrays=known[1])
            if other is not None and other.cycles < found.cycles:
                found = None
                row = compressed.lost("shared", row, f"{other.text} that leave out zeros are faster")
            elif other is not None:
                zeros = compressed.lost("sparse", self.kept[name][1], "looking values up is faster")
                self.kept[name] = None, zeros
        if row:
            self.looked_up[name] = row
        return found

    def cycles(self, var: Var, source: bool, result: bool) -> float:
        """Of a layer that can read and write planes, where it does one or the other."""
        (kernel, _), conv = self.kept[var.name], self.shapes[var.name]
        assert kernel is not None
        layouts = PLANES if source else PIXELS, PLANES if result else PIXELS
        found = sparse_formats.by_layout(kernel, conv, self.isa, self.choices, *layouts)
        # Estimates leave out what dense kernels take for their results, too; planes are written at once.
        written = 0 if result else 2 * SPREAD * conv.n * math.prod(conv.out) * conv.oc / self.isa.cores
        return found.cycles + written if found else math.inf

    def data_of(self, definitions: Mapping[Var, Expr], var: Var, expr: Expr) -> list[Var]:
        """What a layer reads whose kernel takes and gives planes: see `planes.in_planes`."""
        if op_name(expr) not in ("relax.nn.conv2d", "relax.matmul") or not graph.has_static_shape(var):
            return []
        x, weight = expr.args
        if not graph.is_const(weight) or not graph.has_static_shape(x) or graph.dtype(x) != "float32":
            return []
        if graph.dtype(weight) != "float32" or 0 in graph.shape(var):
            return []
        image, value, conv = x, graph.value(weight), None
        if op_name(expr) == "relax.matmul":
            conv = row_of_pixels(graph.shape(x), graph.shape(weight))
            value = value.T[:, :, None, None] if conv else value
        elif found := convolution(definitions.get, expr):
            image, conv, _ = found
        if conv is None or conv.groups > 1 or not isinstance(image, relax.Var) or conv.n != images(graph.shape(image)):
            return []
        kernel = self.decide(var.name, value, conv, ("float32", "float32"), planes=True)
        if kernel is None or sparse_formats.by_layout(kernel, conv, self.isa, self.choices, PLANES, PLANES) is None:
            return []
        self.shapes[var.name] = conv
        return [image] if image is x else [image, x]
