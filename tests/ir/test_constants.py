"""What is known of compressed weights in NumPy is what the operators compute."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

from tests.ir_pairs import const, program, run
from tvmcompress.ir import constants, graph, ops

op = relax.op
RNG = np.random.default_rng(0)


def look_up(e, bits, dtype="float32"):
    packed, book = RNG.integers(0, 256, (3, 5)), RNG.integers(-100, 100, (3, 2**bits))
    return e(ops.look_up(const(packed, "uint8"), const(book, dtype)))


EXPRESSIONS = {
    **{f"{bits} bits": lambda e, bits=bits: look_up(e, bits) for bits in (1, 2, 4, 8)},
    "integers": lambda e: e(ops.dequantize(look_up(e, 4, "int8"), np.float32([1, 2, 3]), np.zeros(3, np.int8), 0)),
    "hashed": lambda e: e(ops.hashed(const(RNG.normal(size=7)), (3, 4, 5))),
    "moved": lambda e: e(
        op.permute_dims(e(op.reshape(e(op.strided_slice(look_up(e, 4), [1], [0], [8])), (3, 2, 4))), [2, 0, 1])
    ),
    "backward": lambda e: e(op.strided_slice(look_up(e, 4), [0, 1], [0, 1], [3, 9], [2, 3])),
    "padded": lambda e: e(op.flip(e(op.nn.pad(look_up(e, 4, "int8"), [0, 1, 2, 0])), 1)),
    "reversed axes": lambda e: e(op.permute_dims(look_up(e, 2))),
    "zero point": lambda e: e(ops.dequantize(const([[0, 7], [200, 3]], "uint8"), np.float32(0.5), np.uint8(7))),
    "along columns": lambda e: e(
        ops.dequantize(const([[0, 7], [-9, 3]], "int8"), np.float32([0.5, 2]), np.int8([1, 0]), 1)
    ),
    "half scales": lambda e: e(
        op.dequantize(const([[1], [2]], "int8"), const([0.1, 3], "float16"), const(0, "int8"), 0, "float32")
    ),
    "four bits": lambda e: e(op.astype(e(ops.unpack_int4(const([[0x97, 0x0F]], "uint8"))), "float32")),
    "bfloat16": lambda e: e(op.astype(graph.const(np.ones((2, 2), ml_dtypes.bfloat16)), "float32")),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_known_is_what_is_computed(name):
    found = []

    def body(e, x):
        found.append(EXPRESSIONS[name](e))
        return [found[0], x]

    mod = program((1,), body)
    value = constants.known(found[0], graph.definitions(mod).get)
    computed = run(mod, np.zeros(1, np.float32))
    assert value.dtype == computed.dtype and value.shape == computed.shape
    np.testing.assert_array_equal(value, computed)


def test_what_an_input_has_a_part_in_is_not_known():
    found = {}

    def body(e, x):
        found["input"], found["sum"] = x, e(op.add(const([1.0]), const([2.0])))
        found["reshaped"] = e(op.reshape(x, (1, 1)))
        found["quantized"] = e(ops.dequantize(e(ops.quantize(x, 1.0, 0, "int8")), 1.0, 0))
        return [found["reshaped"], found["sum"], found["quantized"]]

    definition = graph.definitions(program((1,), body)).get
    assert all(constants.known(expr, definition) is None for expr in found.values())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indices_are_packed_from_the_lowest_bits_on(bits):
    indices = RNG.integers(0, 2**bits, (2, 11)).astype(np.uint8)
    packed = ops.pack_indices(indices, bits)
    number = int.from_bytes(packed[1].tobytes(), "little")
    assert [(number >> (bits * i)) & (2**bits - 1) for i in range(11)] == list(indices[1])
    assert packed.shape == (2, -(-11 * bits // 8)) and not number >> (bits * 11)
