"""tvmcompress: a compression compiler for edge inference on Apache TVM.

    import tvmcompress as tc
    model = tc.load("resnet18.onnx")
    small = tc.compress(model, tc.Recipe.load("int8"), samples=images)
    log = tc.tune(small, tc.Target.load("native"), budget_s=600)
    package = tc.compile(small, tc.Target.load("native"), log=log)
    report = tc.deploy(package).measure(images, reference=model)
    tc.compare(model, ["native", "rpi4@192.168.1.20:9090"], ["float", "int8"], images).save_html("compare.html")

Every name is imported when it is first used: a device that only runs packages needs no compiler.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmcompress import process

__version__ = "0.1.0"

_WHERE = {
    "load": "frontend",
    "compress": "compression",
    "compile": "compilation",
    "tune": "tuning",
    "inspect": "inspection",
    "Model": "model",
    "Recipe": "recipe",
    "Target": "target",
    "Package": "package",
    "Deployment": "deployment",
    "Report": "report",
    "Comparison": "comparison",
    "TuningLog": "tuning_log",
    "errors": "",
}

_COMPILER = {
    "load",
    "compress",
    "tune",
    "compile",
    "inspect",
    "Model",
    "Recipe",
}  # what cannot do without TVM's compiler

__all__ = ["Comparison", "Deployment", "Model", "Package", "Recipe", "Report", "Target", "TuningLog", "compare", "compile", "compress", "deploy", "errors", "inspect", "load", "tune"]  # fmt: skip  # noqa: E501

if TYPE_CHECKING:
    from tvmcompress import errors
    from tvmcompress.comparison import Comparison
    from tvmcompress.compilation import compile
    from tvmcompress.compression import compress
    from tvmcompress.deployment import Deployment
    from tvmcompress.frontend import load
    from tvmcompress.inspection import inspect
    from tvmcompress.model import Model
    from tvmcompress.package import Package
    from tvmcompress.recipe import Recipe
    from tvmcompress.report import Report
    from tvmcompress.target import Target
    from tvmcompress.tuning import tune
    from tvmcompress.tuning_log import TuningLog


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tvmcompress' has no attribute '{name}'")
    process.prepare()
    if name in _COMPILER:
        process.import_without_torch("tvm")
    module = importlib.import_module(f"tvmcompress.{_WHERE[name]}" if _WHERE[name] else "tvmcompress.errors")
    value = getattr(module, name) if _WHERE[name] else module
    globals()[name] = value
    return value


def deploy(package: Any, device: Any = None, threads: int | None = None, *, build: str | None = None) -> Deployment:
    """Load a package where it is to run. See `tvmcompress.deployment.deploy`.

    A Model given to `Deployment.measure(reference=…)` is compiled in float for the package's target.
    """
    from tvmcompress import deployment

    def compiled(model: Any, target: dict) -> Package:
        import json

        from tvmcompress.compilation import compile
        from tvmcompress.frontend import load
        from tvmcompress.model import Model
        from tvmcompress.target import Target

        return compile(model if isinstance(model, Model) else load(model), Target.load(json.dumps(target)))

    return deployment.deploy(package, device, threads, build=build, compile=compiled)


def compare(
    model: Any,
    on: Sequence[str] = ("native",),
    recipes: Sequence[str] = ("float",),
    samples: Any = None,
    **options: Any,
) -> Comparison:
    """One model, in several variants, on several boards. See `tvmcompress.comparing.compare` for the options.

    model: a Model, or what `load` takes. on: `native`, a target that runs here, or TARGET@HOST:PORT. recipes: names or
    files, and "float" for the model as it is.
    """
    process.prepare()
    process.import_without_torch("tvm")
    from tvmcompress import comparing
    from tvmcompress.compilation import compile
    from tvmcompress.compression import compress
    from tvmcompress.frontend import load
    from tvmcompress.model import Model

    given = model if isinstance(model, Model) else load(model)
    return comparing.compare(given, on, recipes, samples, compile=compile, compress=compress, **options)
