import ml_dtypes
import numpy as np
from tvm import relax

from tests.ir_pairs import check_pair, check_unchanged, const, program, run
from tvmcompress.ir import graph
from tvmcompress.passes import ToBf16

op = relax.op
NARROW = np.dtype(ml_dtypes.bfloat16)


def test_pair():
    weight = [[1.0, 2.0], [3.0, 0.5]]
    before = program((1, 2), lambda e, x: [e(op.nn.softmax(e(op.matmul(x, const(weight)))))])

    def after(e, x):
        narrow = e(op.astype(x, "bfloat16"))
        return [e(op.nn.softmax(e(op.matmul(narrow, graph.const(np.array(weight, NARROW)), out_dtype="float32"))))]

    check_pair(ToBf16(), before, program((1, 2), after))


def test_embeddings_are_stored_narrow():
    table = np.arange(2000).reshape(500, 4) % 100
    before = program((3,), lambda e, x: [e(op.take(const(table), x, 0))], "int64")
    expected = graph.const(table.astype(NARROW))
    after = program((3,), lambda e, x: [e(op.astype(e(op.take(expected, x, 0)), "float32"))], "int64")
    check_pair(ToBf16(), before, after)


def test_numerics():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    transposed = rng.normal(size=(4, 2, 3, 3)).astype(np.float32)

    def body(e, x):
        y = e(op.nn.conv2d(x, const(weight), strides=2, padding=1))
        return [y, e(op.nn.conv2d_transpose(y, const(transposed), strides=2, output_padding=1, groups=2))]

    def rounded(weight):
        return const(weight.astype(NARROW).astype(np.float32))

    def exact(e, x):
        y = e(op.nn.conv2d(x, rounded(weight), strides=2, padding=1))
        return [y, e(op.nn.conv2d_transpose(y, rounded(transposed), strides=2, output_padding=1, groups=2))]

    x = rng.normal(size=(1, 3, 9, 9)).astype(NARROW).astype(np.float32)
    after = ToBf16()(program(x.shape, body)).module
    # Weights and inputs are rounded, sums are not.
    np.testing.assert_allclose(run(after, x), run(program(x.shape, exact), x), rtol=1e-5, atol=1e-5)


def test_no_layers():
    check_unchanged(ToBf16(), program((1, 2), lambda e, x: [e(op.add(x, const([1.0, 2.0])))]))
