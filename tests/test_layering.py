"""Imports point down only. The layers are those of README's architecture, from the top to the ground."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "tvmcompress"

# A row imports from the rows below it, and never from its neighbours, but for rows whose parts are one thing.
LAYERS = [
    ("the door", {"__init__", "__main__"}),
    ("commands", {"cli"}),
    (
        "verbs",
        {"frontend", "compression", "compilation", "deployment", "inspection", "tuning", "comparing", "bundling"}
        | {"breakeven"},
    ),
    ("how a deployment is measured", {"measurement"}),
    ("recipes", {"recipe"}),
    ("what the weights become", {"passes"}),
    ("how they run", {"lower"}),
    ("tensor programs", {"kernels"}),
    ("instruction sets", {"isa"}),
    ("models", {"model"}),
    ("packages and what runs them", {"package", "package_writer", "remote", "runtime", "timing"}),
    (
        "a comparison, and how it is shown",
        {"comparison", "comparison_tables", "comparison_text", "comparison_html", "comparison_charts"}
        | {"breakeven_html"},
    ),
    (
        "nouns",
        {
            "device",
            "target",
            "report",
            "linking",
            "trials",
            "tuning_log",
            "tuning_log_database",
            "tuning_log_repair",
            "tuning_log_metaschedule",
        },
    ),
    ("ways to boards, and their side", {"serving", "tunnels"}),
    (
        "parts of nouns",
        {
            "report_html",
            "report_text",
            "target_forms",
            "manifest",
            "archive",
            "arrays",
            "golden",
            "samples",
        },
    ),
    ("what reports and commands list alike", {"compressed_table"}),
    ("how arrays are stored", {"coding"}),
    ("programs", {"ir"}),
    (
        "facts",
        {"cpu", "cpu_features", "cuda_code", "energy", "external", "llvm", "process", "spec", "threads"}
        | {"bindings", "certificates", "conditions", "wire"},
    ),
    ("ground", {"errors"}),
]
# One thing in several files: these may import their neighbours.
TOGETHER = {
    "the door",
    "packages and what runs them",
    "a comparison, and how it is shown",
    "nouns",
    "ways to boards, and their side",
    "facts",
}

# What the order forbids, and why it is so all the same: (importer, imported).
EXCEPTIONS = {
    ("report_html", "report"): "renders a Report, which imports it only when asked to render",
    ("report_text", "report"): "the same for the terminal",
    ("inspection", "frontend"): "inspecting a file is loading it without failing",
}

# (importer, never imports)
NEVER = [
    ("passes", {"target", "device", "lower", "isa", "kernels"}),  # a pass that asks about hardware belongs in lower
    ("frontend", {"passes", "lower", "target"}),  # else a pass would be written once for each format
    ("lower", {"passes", "frontend"}),
    ("ir", {"model", "target", "lower", "passes"}),
]
# Running a package needs no compiler, no format's library, and nothing that is only for the terminal.
ON_THE_DEVICE = ["deployment", "package", "runtime", "measurement.worker"]
OPTIONAL = {"torch", "tensorflow", "onnxruntime", "openvino", "tflite", "pynvml", "zstandard", "scipy", "tensorly"}


class Import(NamedTuple):
    importer: str  # module, without the package's name: `cli.run`
    imported: str
    line: int
    inside: bool  # a function
    typing: bool  # under TYPE_CHECKING


def imports(path: Path) -> Iterator[Import]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    importer = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)

    def visit(node: ast.AST, inside: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(importer, alias.name, child.lineno, inside, typing)
            if isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path}:{child.lineno}: a relative import"
                for alias in child.names:
                    yield Import(importer, f"{child.module}.{alias.name}", child.lineno, inside, typing)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, inside or function, typing or checking)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False, False)


ALL = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports(path)]
PARTS = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def part(module: str) -> str:
    """`frontend` of `frontend.onnx.files`, and of `tvmcompress.frontend.onnx`."""
    return module.removeprefix("tvmcompress.").split(".")[0]


def ours(found: Import) -> bool:
    return found.imported.startswith("tvmcompress.") and part(found.imported) in PARTS


def level(name: str) -> int:
    return next(number for number, (_, members) in enumerate(LAYERS) if name in members)


def allowed(importer: str, imported: str) -> bool:
    if importer == imported or (importer, imported) in EXCEPTIONS:
        return True
    above, below = level(importer), level(imported)
    return above < below or (above == below and LAYERS[above][0] in TOGETHER)


def test_every_module_has_a_layer():
    assert sorted(PARTS) == sorted(name for _, members in LAYERS for name in members)


@pytest.mark.parametrize("layer", [title for title, _ in LAYERS])
def test_imports_point_down(layer: str):
    members = dict(LAYERS)[layer]
    wrong = [
        f"{found.importer}:{found.line} imports {found.imported}"
        for found in ALL
        if part(found.importer) in members and ours(found) and not found.typing
        if not allowed(part(found.importer), part(found.imported))
    ]
    assert not wrong


def test_every_exception_is_needed():
    used = {(part(found.importer), part(found.imported)) for found in ALL if ours(found)}
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize("importer, never", NEVER)
def test_never_even_inside_a_function(importer: str, never: set[str]):
    wrong = [f for f in ALL if part(f.importer) == importer and ours(f) and part(f.imported) in never]
    assert not wrong


def test_optional_libraries_are_imported_when_they_are_used():
    """At the top only in modules that are themselves imported inside functions: those of the PyTorch frontend."""
    lazy = "frontend.torch."
    wrong = [
        f
        for f in ALL
        if f.imported.split(".")[0] in OPTIONAL and not (f.inside or f.typing or f.importer.startswith(lazy))
    ]
    assert not wrong
    importers = [f for f in ALL if f.imported.startswith(f"tvmcompress.{lazy}") and not f.importer.startswith(lazy)]
    assert importers and all(f.inside or f.typing for f in importers)


@pytest.mark.parametrize("module", ON_THE_DEVICE)
def test_what_runs_on_a_device_needs_no_compiler(module: str):
    """Whatever is imported with `module`, module by module, at the top of files."""
    known = {f.importer for f in ALL}
    seen, todo = set(), [module]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for found in ALL:
            if found.importer == current and not (found.inside or found.typing):
                name = found.imported.removeprefix("tvmcompress.")
                heavy = found.imported.split(".")[0] in {"tvm", "onnx", "rich", "click"}
                assert not heavy, f"{module} needs {found.imported}, by {current}:{found.line}"
                todo += [n for n in (name, name.rpartition(".")[0]) if n in known]
    assert len(seen) > 1
