import ml_dtypes
import numpy as np
from tvm import relax

from tests.ir_pairs import check_pair, check_unchanged, const, program, run
from tvmcompress.ir import graph, ops
from tvmcompress.passes import FoldConstants

op = relax.op


def test_a_transposed_weight():
    before = program((1, 2), lambda e, x: [e(op.matmul(x, e(op.permute_dims(const([[1, 2], [3, 4]])))))])
    after = program((1, 2), lambda e, x: [e(op.matmul(x, const([[1, 3], [2, 4]])))])
    check_pair(FoldConstants(), before, after)


def test_a_chain_with_a_tuple():
    def before(e, x):
        halves = e(op.split(e(op.add(const([1, 2, 3, 4]), const(10.0))), 2))
        return [e(op.add(x, e(relax.TupleGetItem(halves, 1))))]

    after = program((2,), lambda e, x: [e(op.add(x, const([13, 14])))])
    check_pair(FoldConstants(), program((2,), before), after)


def test_a_constant_result():
    before = program((2,), lambda e, x: [e(op.add(const([1, 2]), const([3, 4]))), x])
    after = program((2,), lambda e, x: [const([4, 6]), x])
    check_pair(FoldConstants(), before, after)


def test_compressed_weights_stay():
    packed = ops.pack_int4(np.arange(-8, 8, dtype=np.int8).reshape(2, 8))

    def body(e, x):
        eight = e(ops.dequantize(const([[1, 2]], "int8"), np.float32(0.5), np.int8(0)))
        four = e(ops.dequantize(e(ops.unpack_int4(const(packed, "uint8"))), np.float32([1, 2]), np.int8(0), 0))
        half = e(op.astype(graph.const(np.ones((2, 2), ml_dtypes.bfloat16)), "float32"))
        return [e(op.add(x, eight)), e(op.reshape(four, (16,))), half]

    check_unchanged(FoldConstants(), program((1, 2), body))


def test_what_would_grow_stays():
    before = program((1,), lambda e, x: [e(op.broadcast_to(const([1.0]), (1000,))), x])
    check_unchanged(FoldConstants(growth=0), before)
    check_pair(FoldConstants(growth=4000), before, program((1,), lambda e, x: [const(np.ones(1000)), x]))


def test_numerics():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    before = program((3, 4), lambda e, x: [e(op.multiply(x, e(op.exp(e(op.subtract(const(a), const(b)))))))])
    x = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(run(FoldConstants()(before).module, x), np.exp(a - b), rtol=1e-5)
