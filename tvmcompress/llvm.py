"""What the bundled LLVM knows: the CPUs of a triple, the features a CPU implies, and every feature there is."""

from __future__ import annotations

from functools import cache

from tvmcompress import process


def _tvm():
    """TVM, imported when it is first asked: it takes seconds."""
    process.import_without_torch("tvm")
    import tvm

    return tvm.target


@cache
def cpus(triple: str) -> frozenset[str]:
    """The names that -mcpu takes."""
    return frozenset(
        str(name) for name in _tvm().codegen.llvm_get_cpu_archlist(_tvm().Target({"kind": "llvm", "mtriple": triple}))
    )


@cache
def implied_features(triple: str, cpu: str, features: tuple[str, ...] = ()) -> frozenset[str]:
    """All features that code for `cpu` may use, with `features` added (`name`) or taken away (`-name`)."""
    target: dict = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    if features:
        target["mattr"] = attributes(features)
    return frozenset(str(name) for name in _tvm().codegen.llvm_get_cpu_features(_tvm().Target(target)))


@cache
def known_features(triple: str) -> frozenset[str]:
    """The features that any CPU of the triple implies.

    LLVM has no list of all features, and only warns of one that it does not know.
    """
    return frozenset().union(*(implied_features(triple, cpu) for cpu in cpus(triple)))


def attributes(features: tuple[str, ...]) -> list[str]:
    """`dotprod`, `-aes` as LLVM writes them: `+dotprod`, `-aes`."""
    return [feature if feature.startswith("-") else f"+{feature}" for feature in features]


def this_cpu() -> str:
    """LLVM's name of this machine's processor; a virtual machine may lack features that the name implies."""
    return str(_tvm().codegen.llvm_get_system_cpu())
