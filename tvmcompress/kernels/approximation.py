"""exp, tanh, sigmoid and erf as polynomials that vectorise: LLVM would call libm once an element.

exp: reduction by powers of two and the minimax polynomial of Cephes (expf), relative error below 2e-7. tanh and erf:
rational minimax approximations on a clamped range, errors of a few units in the last place. float32 only: other types
keep TVM's own lowering. `install` registers them as how LLVM targets lower these intrinsics, after vectorisation.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.ir import Op, register_op_attr

LOG2E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
TANH_TOP = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
            1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
TANH_BOTTOM = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
ERF_TOP = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
           -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
ERF_BOTTOM = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def _horner(x, coefficients):
    total = tirx.const(coefficients[0], "float32")
    for c in coefficients[1:]:
        total = total * x + tirx.const(c, "float32")
    return total


def _let(value, body):
    var = tirx.Var("t", value.ty)
    return tirx.Let(var, value, body(var))


def _typed(name: str, lanes: int) -> str:
    return f"{name}x{lanes}" if lanes > 1 else name


def _filled(value: float, lanes: int, kind: str = "float32"):
    one = tirx.const(value, kind)
    return tirx.Broadcast(one, lanes) if lanes > 1 else one


def exp(x, lanes: int):
    """2^k * e^r with x = k ln 2 + r; zero below the smallest normal number, infinity above the largest."""

    def scaled(k):
        def polynomial(r):
            p = _horner(r, EXP) * (r * r) + r + tirx.const(1.0, "float32")
            bits = (k.astype(_typed("int32", lanes)) + tirx.const(127, "int32")) << _filled(23, lanes, "int32")
            return p * tirx.reinterpret(_typed("float32", lanes), bits)

        return polynomial

    def reduced(v):
        nearest = tirx.floor(v * tirx.const(LOG2E, "float32") + tirx.const(0.5, "float32"))
        k = tirx.Min(nearest, _filled(127.0, lanes))  # 2^128 has no float32; the polynomial bears the rest
        return _let(
            k,
            lambda k: _let((v - k * tirx.const(LN2_HIGH, "float32")) - k * tirx.const(LN2_LOW, "float32"), scaled(k)),
        )

    def bounded(v):
        value = _let(tirx.Max(tirx.Min(v, _filled(88.72283, lanes)), _filled(-87.33, lanes)), reduced)
        top = tirx.Select(v > _filled(88.72, lanes), _filled(float("inf"), lanes), value)
        return tirx.Select(v < _filled(-87.33, lanes), _filled(0.0, lanes), top)

    return _let(x, bounded)


def _rational(x, lanes: int, limit: float, top, bottom):
    def ratio(v):
        return _let(v * v, lambda s: v * _horner(s, top) / _horner(s, bottom))

    return _let(tirx.Max(tirx.Min(x, _filled(limit, lanes)), _filled(-limit, lanes)), ratio)


def tanh(x, lanes: int):
    return _rational(x, lanes, 7.99, TANH_TOP, TANH_BOTTOM)


def erf(x, lanes: int):
    return _rational(x, lanes, 3.92, ERF_TOP, ERF_BOTTOM)


def _replace(name: str, approximation: Callable) -> None:
    before = None
    for attribute in ("llvm.FLowerIntrinsic", "default.FLowerIntrinsic"):
        before = before or Op.get(name).get_attr(attribute)

    def lower(call):
        dtype = tvm.DataType(str(call.ty))
        if str(call.ty).split("x")[0] != "float32":
            return before(call)
        return approximation(call.args[0], dtype.lanes)

    register_op_attr(name, "llvm.FLowerIntrinsic", lower, 99)


_installed = False


def install() -> None:
    """Make LLVM targets use the approximations of this file, in this process, from now on."""
    global _installed
    if not _installed:
        _installed = True
        for name, approximation in (("tirx.exp", exp), ("tirx.tanh", tanh), ("tirx.erf", erf)):
            _replace(name, approximation)
