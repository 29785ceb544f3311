import numpy as np
import pytest
from tvm import relax

from tests.ir_pairs import check_pair, check_unchanged, const, program, run
from tvmcompress.errors import RecipeError
from tvmcompress.ir import ops
from tvmcompress.passes import QuantizeDynamic

op = relax.op
EXACT = QuantizeDynamic(search_weights=False, min_size=0)


def test_pair():
    # Columns up to 127 and 254: scales 1 and 2.
    weight, integers = const([[127, -20], [10, 254]]), const([[127, -10], [10, 127]], "int8")
    zero, levels, tiny = const(0.0), const(255.0), const(np.finfo(np.float32).tiny)

    def after(e, x):
        low, high = e(op.minimum(e(op.min(x)), zero)), e(op.maximum(e(op.max(x)), zero))
        scale = e(op.maximum(e(op.divide(e(op.subtract(high, low)), levels)), tiny))
        point = e(op.clip(e(op.round(e(op.divide(e(op.negative(low)), scale)))), 0, 255))
        point = e(op.astype(point, "uint8"))
        real = e(op.dequantize(e(op.quantize(x, scale, point, -1, "uint8")), scale, point, -1, "float32"))
        return [e(op.matmul(real, e(ops.dequantize(integers, np.float32([1, 2]), np.int8(0), 1))))]

    # `after` binds in the order in which the pass does.
    before = program((1, 2), lambda e, x: [e(op.matmul(x, weight), "fc")])
    outcome = check_pair(EXACT, before, program((1, 2), after))
    assert [(row["layer"], row["quantized"]) for row in outcome.notes] == [("fc", True)]


@pytest.mark.parametrize("x", [[[-1.0, 3.0, 0.5]], [[1.0, 2.0, 3.0]], [[-3.0, -2.0, -1.0]], [[0.0, 0.0, 0.0]]])
def test_numerics(x):
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x = np.array(x, np.float32)
    after = EXACT(program((1, 3), lambda e, v: [e(op.matmul(v, const(weight)))])).module
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32(max((high - low) / 255, np.finfo(np.float32).tiny))
    point = np.clip(np.rint(-low / scale), 0, 255)
    real = (np.clip(np.rint(x / scale) + point, 0, 255) - point) * scale
    steps = np.abs(weight).max(axis=0) / 127
    expected = real @ (np.rint(weight / steps) * steps)
    np.testing.assert_allclose(run(after, x), expected, rtol=1e-5, atol=1e-6)


def test_what_is_left_alone():
    body = lambda e, x: [e(op.nn.conv2d(x, const(np.ones((2, 2, 1, 1)))), "c")]  # noqa: E731
    outcome = check_unchanged(QuantizeDynamic(), program((1, 2, 4, 4), body))
    assert outcome.notes[0]["why"] == "only matrix products are quantized dynamically"
    small = program((1, 2), lambda e, x: [e(op.matmul(x, const(np.ones((2, 2)))), "fc")])
    assert check_unchanged(QuantizeDynamic(), small).notes[0]["why"] == "smaller than min_size = 1024"
    skipped = QuantizeDynamic(min_size=0, skip=("f*",))
    assert check_unchanged(skipped, small).notes[0]["why"] == "skipped by name 'f*'"


def test_a_skip_that_matches_nothing():
    small = program((1, 2), lambda e, x: [e(op.matmul(x, const(np.ones((2, 2)))), "head_fc")])
    with pytest.raises(
        RecipeError, match=r"skip 'head\.fd' matches none of the model's 1 layers; did you mean 'head_fc'"
    ):
        QuantizeDynamic(skip=("head.fd",))(small)
