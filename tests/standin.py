"""A package made without the compiler: a small Relax program built by TVM's stock pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvmcompress import cpu, linking
from tvmcompress.package import Package
from tvmcompress.target import Target

SHAPE = (2, 16)


def weights(seed: int = 0) -> list[tuple[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [
        ("fc.weight", random.normal(size=(16, 5)).astype(np.float32)),
        ("fc.bias", random.normal(size=(5,)).astype(np.float32)),
    ]


def expected(x: np.ndarray, stored: list[tuple[str, np.ndarray]], prepare: bool = False) -> np.ndarray:
    return x @ stored[0][1] * (2 if prepare else 1) + stored[1][1]


def library(folder: Path, prepare: bool = False) -> Path:
    """`main(x, w, b) -> (x @ w + b,)`, and `prepare(w, b) -> (2 * w, b)`."""
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    tensor = relax.TensorType
    x, w, b = (relax.Var(n, tensor(s, "float32")) for n, s in (("x", SHAPE), ("w", (16, 5)), ("b", (5,))))
    with builder.function("main", [x, w, b]):
        with builder.dataflow():
            y = builder.emit(relax.op.add(builder.emit(relax.op.matmul(x, w)), b))
            out = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(out)
    if prepare:
        w, b = relax.Var("w", tensor((16, 5), "float32")), relax.Var("b", tensor((5,), "float32"))
        with builder.function("prepare", [w, b]):
            with builder.dataflow():
                out = builder.emit_output(relax.Tuple([builder.emit(relax.op.add(w, w)), b]))
            builder.emit_func_output(out)
    built = tvm.compile(builder.finalize(), target=tvm.target.Target({"kind": "llvm"}))
    path = Path(folder, "stand-in.so")
    built.export_library(str(path), fcompile=linking.linker(Target.load("native")))
    return path


def manifest(prepare: bool = False, **changes) -> dict:
    return {
        "name": "stand-in",
        "target": {"name": "native"},
        "needs": {"arch": cpu.architecture(), "features": [], "gpu": None},
        "inputs": [{"name": "x", "shape": list(SHAPE), "dtype": "float32"}],
        "outputs": [{"name": "y", "shape": [2, 5], "dtype": "float32"}],
        "source": {"name": "stand-in.onnx", "format": "onnx", "bytes": 4000, "sha256": "0" * 64},
        "applied": [],
        "notes": [{"layer": "fc", "snr_db": 38.2}],
        "layers": [{"name": "fc", "kind": "matmul", "macs": 160, "bytes": 340, "integer": False}],
        "entry": {"prepare": prepare},
        **changes,
    }


def package(code: Path, prepare: bool = False, **changes) -> Package:
    stored = weights()
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(SHAPE)
    return Package.build(
        library=code,
        weights=stored,
        manifest=manifest(prepare, **changes),
        golden_inputs={"x": x},
        golden_outputs={"y": expected(x, stored, prepare)},
    )


def save_onnx(path: Path) -> None:
    """The same computation as an ONNX file with weights of its own names."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"], "fc"), helper.make_node("Add", ["xw", "b"], ["y"], "bias")],
        "stand-in",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 5))],
        [numpy_helper.from_array(array, name) for (_, array), name in zip(weights(), "wb")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
