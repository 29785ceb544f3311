"""The lowering as a list of steps with reasons."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from tvmcompress import threads
from tvmcompress.ir import ops
from tvmcompress.isa import Isa
from tvmcompress.kernels import approximation
from tvmcompress.kernels.choices import Choices, untuned
from tvmcompress.lower.anchors import anchors
from tvmcompress.lower.bfloat16 import share_bits
from tvmcompress.lower.channels_last import channels_last
from tvmcompress.lower.decompose import decompose
from tvmcompress.lower.integer import integer
from tvmcompress.lower.memory import Memory, arena, trusted
from tvmcompress.lower.recurrent import roll
from tvmcompress.lower.reshapes import one_reshape
from tvmcompress.lower.row_blocks import in_blocks
from tvmcompress.lower.schedules import kernels, schedule
from tvmcompress.lower.shared import Shared, config
from tvmcompress.lower.sparse import KEEP, Keep
from tvmcompress.lower.weights import split

Watch = Callable[[str, tvm.IRModule], None]


@dataclass(frozen=True)
class Lowered:
    """A built executable and what belongs to it.

    `main(inputs…, rest…)` returns a tuple; the rest is `stored`, or what `prepare(stored…)` returns when `prepares`.
    `fallbacks` names the tensor programs that got no schedule of a family or none at all; `origin` is what was built.
    """

    executable: relax.VMExecutable
    stored: list[tvm.runtime.Tensor]
    inputs: int
    prepares: bool
    fallbacks: dict[str, str]
    layers: list[dict]
    kernels: list[dict]  # see `schedules.kernels`
    memory: Memory | None = None
    origin: Unbuilt | None = None


@dataclass(frozen=True)
class Unbuilt:
    """A program of scheduled kernels, and a row for each layer that became one. Its machine code is all that is
    missing, which takes most of the time and none of Python's: several may be built at once."""

    module: tvm.IRModule
    programs: dict[str, PrimFunc]
    shared: Shared
    layers: list[dict]
    lowered: Callable[..., Lowered]  # from the executable and `origin`

    def build(self) -> Lowered:
        module = self.module.with_attr("external_mods", self.shared.modules(self.programs))
        built = relax.build(module, self.shared.target, relax_pipeline=tvm.transform.Sequential([]))
        return self.lowered(built, origin=self)


def graph_steps(isa: Isa) -> list[tuple[str, Callable[[tvm.IRModule], tvm.IRModule]]]:
    return [
        # Fewer kinds of operators first: every later step then has fewer cases.
        ("decompose", decompose),
        # Layouts before integers: zero points become vectors along the last axis.
        ("channels_last", channels_last),
        # Integers before anything that could fold a dequantize back into float weights.
        ("integer", lambda mod: integer(mod, isa.integer_data, isa.fused)),
        # Last, when activations lie as kernels read them: blocks are images to these.
        ("blocks", lambda mod: in_blocks(mod, isa)),
    ]


def tensor_steps(target: tvm.target.Target) -> list[tvm.ir.transform.Pass]:
    """TVM's own: tensor programs for the remaining operators, then fusion behind the anchors."""
    return [
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]


def call_steps() -> list[tvm.ir.transform.Pass]:
    """TVM's own: from operators to calls of tensor programs that write into tensors allocated before."""
    return [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
    ]


def machine_steps() -> list[tvm.ir.transform.Pass]:
    """TVM's own: to virtual-machine code, with a plan for the memory that is still allocated with each call."""
    return [
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def lower(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    isa: Isa,
    between: Callable[[str, tvm.IRModule], None] | None = None,
    choices: Choices = untuned,
    neutral: bool = False,
    keep: Keep = KEEP,
) -> Lowered:
    """Compile a program for a CPU. `between(step, module)` is called after each step, for dumps and timing.

    `choices(key)` makes a kernel's decisions (kernels.choices). `neutral` stores weights as the program has them, so
    that builds for several targets share them; `prepare` then packs them when the package is loaded. `keep` says which
    layers with zeros get sparse kernels.
    """
    watch = between or (lambda _step, _mod: None)
    mod, steps = lower_graph(mod, isa, watch, neutral)
    lowered = lower_kernels(mod, target, isa, watch, choices, neutral, keep).build()
    return replace(lowered, layers=[*steps, *lowered.layers])


def lower_graph(mod: tvm.IRModule, isa: Isa, watch: Watch, neutral: bool = False) -> tuple[tvm.IRModule, list[dict]]:
    """The part that no decision of a kernel has a say in; and a row for each layer that is a kernel already."""
    # First, while the steps look as they were imported.
    mod, steps = roll(mod, isa, neutral)
    watch("roll", mod)
    for name, step in graph_steps(isa):
        mod = step(mod)
        watch(name, mod)
    return mod, steps


def lower_kernels(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    isa: Isa,
    watch: Watch,
    choices: Choices = untuned,
    neutral: bool = False,
    keep: Keep = KEEP,
    shared: Shared | None = None,
) -> Unbuilt:
    """From what `lower_graph` leaves to machine code, but for this. `shared`: with other builds for this target."""
    shared = shared or Shared(target, isa)
    approximation.install()
    # Kernels for what costs time; what stays are element-wise operators, data movement and reductions.
    mod, layers = anchors(mod, isa, choices, neutral, keep)
    mod = one_reshape(share_bits(mod))
    mod = ops.expand(mod)
    watch("anchors", mod)
    parts = split(mod)
    mod = parts.module
    with target, tvm.transform.PassContext(opt_level=3, config=config(isa)):
        mod = tvm.transform.Sequential(tensor_steps(target))(mod)
        watch("fuse", mod)
        scheduled = schedule(mod, isa, choices, shared.scheduled)
        watch("schedule", scheduled.module)
        mod = tvm.transform.Sequential(call_steps())(scheduled.module)
        # After the schedules: whether a kernel may write over an operand depends on them.
        mod, memory = arena(mod, parts.inputs)
        watch("arena", mod)
        mod = tvm.transform.Sequential(machine_steps())(mod)
        mod, programs = shared.parted(trusted(mod, parts.inputs))
    lowered = partial(
        Lowered,
        stored=parts.stored,
        inputs=parts.inputs,
        prepares=any(var.name_hint == "prepare" for var in mod.get_global_vars()),
        fallbacks=scheduled.fallbacks,
        layers=layers,
        kernels=kernels(programs),
        memory=memory,
    )
    return Unbuilt(mod, programs, shared, layers, lowered)


def machine(lowered: Lowered, link: Callable[..., None]) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """A lowered program in this process: arrays in, arrays out, in order. `link` makes a library for this machine."""
    with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
        library = Path(folder, "library.so")
        lowered.executable.export_library(str(library), fcompile=link, workspace_dir=folder)
        return loaded(lowered, library)


def loaded(lowered: Lowered, library: Path) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """As `machine`, for a program that is linked already. The file is needed only during the call."""
    module = tvm.runtime.load_module(str(library))
    threads.use(module, threads.count(None))
    vm = relax.VirtualMachine(module, tvm.cpu())
    weights = list(lowered.stored)
    if lowered.prepares:
        weights = list(vm["prepare"](*weights))

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        out = vm["main"](*[tvm.runtime.tensor(np.asarray(a, order="C")) for a in inputs], *weights)
        return [o.numpy() for o in out]

    return run
