"""Makes the `.tflite` files here, with inputs and the outputs of TensorFlow's own interpreter beside them.

Needs TensorFlow, which the tests do not: `pip install tensorflow-cpu tf_keras`, then
`python tests/frontend/data/make_tflite.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
rng = np.random.default_rng(0)


def weights(*shape):
    return tf.constant(rng.normal(0, 0.4, shape).astype(np.float32))


W3, W1, B8 = weights(3, 3, 4, 8), weights(1, 1, 8, 6), weights(8)
DW, D2, T3 = weights(3, 3, 8, 1), weights(3, 3, 4, 2), weights(3, 3, 5, 4)
FC, FB, GW = weights(8, 5), weights(5), weights(3, 3, 2, 8)
ALPHA, TABLE, ROW, CONST4 = weights(1, 1, 4), weights(11, 6), weights(6), weights(1, 1, 1, 4)


def convnet(x):
    """Strided SAME convolution, depthwise, pooling, a residual sum, a dense layer."""
    x = tf.nn.relu6(tf.nn.conv2d(x, W3, 2, "SAME") + B8)
    y = tf.nn.relu(tf.nn.depthwise_conv2d(x, DW, [1, 1, 1, 1], "SAME"))
    x = tf.nn.max_pool2d(x + y, 2, 2, "VALID")
    return tf.nn.softmax(tf.matmul(tf.reduce_mean(x, [1, 2]), FC) + FB)


def convs(x):
    dilated = tf.nn.conv2d(x, W3, 1, "VALID", dilations=2)
    multiplied = tf.nn.depthwise_conv2d(x, D2, [1, 1, 1, 1], "VALID")
    grouped = tf.nn.conv2d(x, GW, 1, "SAME")
    raised = tf.nn.conv2d_transpose(x, T3, [1, 14, 14, 5], 2, "SAME")
    valid = tf.nn.conv2d_transpose(x, T3, [1, 15, 15, 5], 2, "VALID")
    return dilated, multiplied, grouped, raised, valid


def pools(x):
    return tf.nn.avg_pool2d(x, 3, 2, "SAME"), tf.nn.max_pool2d(x, 3, 2, "SAME"), tf.nn.avg_pool2d(x, 2, 1, "VALID")


def activations(x):
    prelu = tf.nn.relu(x) + ALPHA * -tf.nn.relu(-x)
    hard = x * tf.nn.relu6(x + 3) * (1 / 6)
    return [
        prelu,
        hard,
        *(f(x) for f in (tf.nn.sigmoid, tf.nn.tanh, tf.nn.leaky_relu, tf.nn.relu, tf.nn.relu6, tf.nn.elu)),
    ]


def more_activations(x):
    return tf.nn.gelu(x, True), tf.clip_by_value(x, -1.0, 1.0), tf.nn.log_softmax(x)


def unary(x):
    p = tf.abs(x) + 0.5
    return [f(p) for f in (tf.exp, tf.math.log, tf.sqrt, tf.math.rsqrt, tf.square, tf.sin, tf.cos)] + [
        f(x) for f in (tf.abs, tf.negative, tf.floor, tf.math.ceil, tf.round, tf.sign)
    ]


def binary(x, y):
    p = tf.abs(y) + 0.5
    return [f(x, y) for f in (tf.add, tf.subtract, tf.multiply, tf.maximum, tf.minimum, tf.math.squared_difference)] + [
        x / p,
        tf.pow(p, x),
        x * CONST4,
        CONST4 - x,
        tf.math.floordiv(x, p),
        tf.math.floormod(x, p),
    ]


def quantized_binary(x, y):
    return [f(x, y) for f in (tf.add, tf.subtract, tf.multiply, tf.maximum, tf.minimum)] + [x * CONST4, x + CONST4]


def comparisons(x, y):
    less, equal = x < y, tf.equal(tf.floor(x), tf.floor(y))
    return tf.where(tf.logical_and(less, tf.logical_not(equal)), x, y), tf.cast(x >= y, tf.float32), less | equal


def movement(x):
    channels = tf.nn.conv2d(x, W3, 1, "SAME")
    a, b = tf.split(channels, 2, 3)
    c, d, e = tf.split(channels, [1, 5, 2], 3)
    return [
        tf.reshape(channels, [-1, 8]),
        tf.transpose(channels, [0, 3, 1, 2]),
        tf.concat([a, d], 3),
        tf.concat([c, e], 3)[:, 1:-1, ::2, 0],
        tf.pad(a, [[0, 0], [1, 2], [0, 1], [0, 0]]),
        tf.slice(b, [0, 1, 0, 2], [-1, 3, 2, 2]),
        tf.stack([a, b], 1),
        tf.unstack(b, axis=3)[1],
        tf.squeeze(tf.expand_dims(a, 0)[..., :1], -1),
        tf.strided_slice(b, [0, 5, 0, 0], [1, 0, 4, 3], [1, -2, 3, 1]),
        tf.tile(a, [1, 1, 2, 1]),
        tf.gather(b, [2, 0, 3], axis=3),
        tf.nn.depth_to_space(channels, 2),
        tf.nn.space_to_depth(a[:, :6, :6], 2),
        tf.pad(a, [[0, 0], [1, 1], [2, 1], [0, 0]], "REFLECT"),
    ]


def quantized_movement(x):
    """Without the joins that the converter's quantizer refuses."""
    channels = tf.nn.conv2d(x, W3, 1, "SAME")
    doubled = tf.concat([channels, tf.nn.relu(tf.nn.conv2d(x, W3 * 2, 1, "SAME"))], 3)
    return [
        *tf.split(x, 2, 3),
        *tf.split(tf.nn.relu(x), [1, 3], 3),
        doubled[:, 1:-1, ::2, 0],
        tf.pad(channels, [[0, 0], [1, 2], [0, 1], [0, 0]]),
        tf.slice(channels, [0, 1, 0, 2], [-1, 3, 2, 2]),
        tf.transpose(channels, [0, 3, 1, 2]),
        tf.stack([x, x], 1),
        tf.unstack(x, axis=3)[1],
        tf.strided_slice(x, [0, 5, 0, 0], [1, 0, 4, 3], [1, -2, 3, 1]),
        tf.gather(channels, [2, 0, 3], axis=3),
        tf.nn.depth_to_space(channels, 2),
        tf.pad(x, [[0, 0], [1, 1], [2, 1], [0, 0]], "REFLECT"),
        tf.reshape(x, [7, 28]),
    ]


def float_movement(x):
    return [
        tf.pad(x, [[0, 0], [1, 1], [2, 1], [0, 0]], "SYMMETRIC"),
        tf.pad(x, [[0, 0], [1, 1], [2, 1], [0, 0]], constant_values=1.5),
        tf.space_to_batch(x, [2, 2], [[1, 0], [0, 1]]),
        tf.batch_to_space(tf.tile(x, [4, 1, 1, 1]), [2, 2], [[1, 0], [0, 1]]),
        tf.reverse(x, [1, 2]),
        tf.cumsum(x, 2),
        tf.broadcast_to(x[:, :1], [1, 3, 7, 4]),
        tf.gather_nd(x, [[0, 1, 2], [0, 3, 4]]),
        tf.reshape(x, tf.stack([tf.shape(x)[0] * tf.shape(x)[3], -1])),
        tf.cast(x * 3, tf.int32) // 2,
        tf.cast(tf.one_hot(tf.argmax(x, 3, tf.int32), 4), tf.float32),
        *tf.math.top_k(x, 2),
    ]


def reductions(x):
    return [
        f(x, a, keepdims=k)
        for f in (tf.reduce_mean, tf.reduce_sum, tf.reduce_max)
        for a, k in (([1, 2], True), ([3], False))
    ]


def float_reductions(x):
    y = tf.nn.conv2d(x, W3, 1, "SAME")
    return (
        tf.reduce_mean(y, [1], keepdims=False),
        tf.reduce_min(x, 2),
        tf.reduce_prod(x, 3),
        tf.nn.l2_normalize(y, -1, 1e-6),
    )


def argmax(x):
    return tf.argmax(x, 3), tf.argmin(x, 1, tf.int32)


def resizes(x):
    v1, v2 = tf.compat.v1.image, tf.image
    return [
        v2.resize(x, [13, 15]),
        v1.resize_bilinear(x, [13, 13], align_corners=True),
        v1.resize_bilinear(x, [14, 14]),
        v2.resize(x, [14, 3], "nearest"),
        v1.resize_nearest_neighbor(x, [14, 3]),
        v1.resize_nearest_neighbor(x, [13, 13], align_corners=True),
    ]


def quantized_resizes(x):
    return tf.image.resize(x, [13, 15]), tf.image.resize(x, [14, 14], "nearest")


def attention(x):
    q = tf.transpose(tf.reshape(tf.matmul(x, weights_8x8[0]), [1, 5, 2, 4]), [0, 2, 1, 3])
    k = tf.transpose(tf.reshape(tf.matmul(x, weights_8x8[1]), [1, 5, 2, 4]), [0, 2, 1, 3])
    y = tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * 0.5), k)
    return x + tf.reshape(tf.transpose(y, [0, 2, 1, 3]), [1, 5, 8])


weights_8x8 = [weights(8, 8), weights(8, 8)]


BIG, BIG_CONV = weights(64, 32), weights(3, 3, 8, 24)


def weights_only(x, image):
    """Large enough for the converter to quantize the weights."""
    return tf.nn.relu(tf.matmul(x, BIG)), tf.nn.conv2d(image, BIG_CONV, 1, "SAME")


def embedding(ids):
    return tf.gather(TABLE, ids) * ROW


IMAGE = ("x", (1, 7, 7, 4), tf.float32)
IMAGE2 = ("y", (1, 7, 7, 4), tf.float32)
CASES = {  # name: function, inputs, modes
    "convnet": (convnet, [("x", (1, 12, 12, 4), tf.float32)], ["float", "int8", "fp16", "int16", "uint8io"]),
    "convs": (convs, [IMAGE], ["float", "int8"]),
    "pools": (pools, [IMAGE], ["float", "int8"]),
    "activations": (activations, [IMAGE], ["float", "int8"]),
    "more_activations": (more_activations, [IMAGE], ["float"]),
    "unary": (unary, [IMAGE], ["float"]),
    "binary": (binary, [IMAGE, IMAGE2], ["float"]),
    "quantized_binary": (quantized_binary, [IMAGE, IMAGE2], ["int8"]),
    "comparisons": (comparisons, [IMAGE, IMAGE2], ["float"]),
    "movement": (movement, [IMAGE], ["float"]),
    "quantized_movement": (quantized_movement, [IMAGE], ["int8"]),
    "float_movement": (float_movement, [IMAGE], ["float"]),
    "reductions": (reductions, [IMAGE], ["float", "int8"]),
    "float_reductions": (float_reductions, [IMAGE], ["float"]),
    "argmax": (argmax, [IMAGE], ["float", "int8"]),
    "resizes": (resizes, [IMAGE], ["float"]),
    "quantized_resizes": (quantized_resizes, [IMAGE], ["int8"]),
    "attention": (attention, [("x", (1, 5, 8), tf.float32)], ["float", "int8"]),
    "embedding": (embedding, [("ids", (2, 3), tf.int32)], ["float"]),
    "weights_only": (weights_only, [("x", (1, 64), tf.float32), ("image", (1, 4, 4, 8), tf.float32)], ["dynamic"]),
}


def sample(shape, dtype):
    if dtype == tf.int32:
        return rng.integers(0, 11, shape).astype(np.int32)
    return rng.normal(0, 1, shape).astype(np.float32)


def convert(converter, specs, mode):
    if mode != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if mode in ("int8", "int16", "uint8io"):
        converter.representative_dataset = lambda: ({n: sample(s, d) for n, s, d in specs} for _ in range(20))
        ops = tf.lite.OpsSet
        converter.target_spec.supported_ops = (
            [ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
            if mode == "int16"
            else [ops.TFLITE_BUILTINS_INT8]
        )
        kind = {"int8": tf.int8, "uint8io": tf.uint8, "int16": tf.int16}[mode]
        converter.inference_input_type = converter.inference_output_type = kind
    return converter.convert()


def module_for(function, specs, dynamic_batch=False):
    signature = [tf.TensorSpec((None, *s[1:]) if dynamic_batch else s, d, name=n) for n, s, d in specs]
    module = tf.Module()

    def call(*inputs):
        result = function(*inputs)
        result = list(result) if isinstance(result, list | tuple) else [result]
        return {f"out_{i:02}": r for i, r in enumerate(result)}

    module.call = tf.function(call, input_signature=signature)
    return module


def write(name, content, specs):
    """Outputs of the interpreter's plain kernels, by the names of the signature."""
    kernels = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    runner = interpreter.get_signature_runner()
    details = runner.get_input_details()
    inputs = {}
    for spec_name, shape, dtype in specs:
        value = sample(shape, dtype)
        scale, zero = details[spec_name]["quantization"]
        kind = details[spec_name]["dtype"]
        if scale:
            limits = np.iinfo(kind)
            value = np.clip(np.round(value / scale) + zero, limits.min, limits.max).astype(kind)
        inputs[spec_name] = value
    outputs = runner(**inputs)
    (HERE / f"{name}.tflite").write_bytes(content)
    arrays = {**{f"in {k}": v for k, v in inputs.items()}, **{f"out {k}": v for k, v in outputs.items()}}
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    print(name, len(content), "bytes")


def keras_models():
    """Of Keras 2 (`pip install tf_keras`), whose LSTM is converted to one operator."""
    import tf_keras

    layers = tf_keras.layers
    recurrent = tf_keras.Sequential([tf_keras.Input((5, 3), batch_size=1), layers.LSTM(4, return_sequences=True)])
    flat = tf_keras.Sequential(
        [tf_keras.Input((6, 6, 2)), layers.Conv2D(3, 3, activation="relu"), layers.Flatten(), layers.Dense(4)]
    )
    return {"keras_lstm": (recurrent, (1, 5, 3)), "keras_flatten": (flat, (1, 6, 6, 2))}


def main(wanted):
    for name, (function, specs, modes) in CASES.items():
        for mode in modes:
            if wanted and name not in wanted:
                continue
            module = module_for(function, specs)
            converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
            write(f"{name}-{mode}", convert(converter, specs, mode), specs)
    for name, (model, shape) in keras_models().items():
        if wanted and name not in wanted:
            continue
        content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
        runner = tf.lite.Interpreter(model_content=content).get_signature_runner()
        write(name, content, [(next(iter(runner.get_input_details())), shape, tf.float32)])


if __name__ == "__main__":
    main(sys.argv[1:])
