"""Target: what code is generated for. Its files are `targets/*.toml`; how it may be written is in `target_forms`.

One target may list several builds, for processors of one architecture that differ in features:

    description = "Any x86-64 from AVX2 on"
    builds = ["x86-64-v4", "x86-64-v3"]        # or tables, [[builds]], with the keys of a target file

A package then holds a library for each, and the best that the device can run is taken there.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from tvmcompress import cpu, llvm, process, target_forms
from tvmcompress.errors import TargetError, did_you_mean

if TYPE_CHECKING:
    import tvm

SHIPPED = Path(__file__).parent / "_targets"  # a link to targets/ in a checkout, the files themselves once installed
_CUDA = "50 52 53 60 61 62 70 72 75 80 86 87 89 90 100 103 110 120 121"
CUDA_ARCHS = tuple(f"sm_{number}" for number in _CUDA.split())


@dataclass(frozen=True)
class Target:
    """A processor, or a GPU with the processor that drives it (then `cpu`, `cores` and caches are that one's).

    With `builds` the other fields are those of the last of them, the least demanding.
    """

    name: str
    triple: str  # LLVM's: x86_64-linux-gnu, aarch64-linux-gnu, armv7l-linux-gnueabihf or riscv64-linux-gnu
    cpu: str  # LLVM's -mcpu
    features: tuple[str, ...] = ()  # LLVM's -mattr beyond what `cpu` implies: `dotprod`; `-aes` takes one away
    kind: str = "cpu"  # or "cuda"
    cores: int = 4
    threads: int = 0  # how many a package uses unless told otherwise; 0 in a file means `cores`
    l1d: int = 32768  # bytes, of one core
    l2: int = 524288  # bytes that one core can reach
    l3: int = 0  # bytes that one core can reach
    float_abi: str = ""  # "hard" or "soft"; 32-bit ARM only
    linker: str = ""  # the C compiler that links; empty: the usual one of the triple
    cuda_arch: str = ""  # sm_87
    description: str = ""
    builds: tuple[Target, ...] = ()  # the most demanding first

    @classmethod
    def load(cls, text: str) -> Target:
        """The target that `text` names; raises TargetError of one line.

        That is: the name of a shipped file, the path of a TOML file, a triple (`aarch64-linux-gnu:cortex-a72+crc`),
        TVM's old text form (`llvm -mtriple=… -mcpu=…`), JSON, or `native`; or several of these with commas between
        them, which become the builds of one.
        """
        text = text.strip()
        if len(parts := target_forms.listed(text)) > 1:
            return resolve({"builds": parts})
        if text == "native":
            return native()
        if text in _shipped():
            return _read(SHIPPED / f"{text}.toml")
        if text.endswith(".toml"):
            return _read(Path(text))
        if values := target_forms.parse(text):
            return resolve(values)
        if "/" in text:
            return _read(Path(text))
        raise TargetError(f"no target '{text[:80]}'{_nearest(text)}")

    @classmethod
    def list(cls) -> tuple[Target, ...]:
        """All that are shipped, by name."""
        return tuple(_read(SHIPPED / f"{name}.toml") for name in _shipped())

    @property
    def arch(self) -> str:
        """x86_64, aarch64, armv7l or riscv64: what `cpu.architecture()` says on the device."""
        return self.triple.split("-")[0]

    def describe(self) -> dict:
        """All fields as JSON values, everything resolved; `Target.load(json.dumps(t.describe())) == t`."""
        fields = {**asdict(self), "features": [*self.features], "builds": [b.describe() for b in self.builds]}
        return fields if self.builds else {key: value for key, value in fields.items() if key != "builds"}

    @property
    def each(self) -> tuple[Target, ...]:
        """The builds, the most demanding first; a target without any is its own."""
        return self.builds or (self,)

    def implied_features(self) -> frozenset[str]:
        """Every LLVM feature that code for this target may use."""
        return llvm.implied_features(self.triple, self.cpu, self.features)

    def has(self, feature: str) -> bool:
        """Whether the (host) processor has a feature, by LLVM's name: `avx512vnni`, `dotprod`, `i8mm`."""
        return feature in self.implied_features()

    def features_needed(self) -> frozenset[str]:
        """What the device must have, in the device's own names (`avx512_vnni`, `asimddp`): see `cpu.missing`."""
        return frozenset(cpu.device_names(self.arch, self.implied_features()))

    def to_tvm(self) -> tvm.target.Target:
        """As TVM wants it; a GPU's has its host set."""
        process.import_without_torch("tvm")
        import tvm

        host: dict = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, "num-cores": self.threads}
        if features := self._features_for_tvm():
            host["mattr"] = llvm.attributes(features)
        if self.float_abi:
            host["mfloat-abi"] = self.float_abi
        if self.arch == "riscv64" and self.has("d"):
            host["mabi"] = "lp64d"  # else floats travel in integer registers and the result does not link
        if self.kind == "cpu":
            return tvm.target.Target(host)
        limits = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}
        return tvm.target.Target({"kind": "cuda", "arch": self.cuda_arch, **limits, "host": host})

    def _features_for_tvm(self) -> tuple[str, ...]:
        """RISC-V's `v` as its parts: where TVM sees it, it masks every vector and takes those of sums apart."""
        if self.arch != "riscv64" or not self.has("v"):
            return self.features
        return (*(f for f in self.features if f != "v"), "-v", "zve64d", "zvl128b")


def native() -> Target:
    """This machine. A virtual machine may lack features that its CPU's name implies; then the name is not believed."""
    arch, own = cpu.architecture(), cpu.features()
    if arch not in target_forms.TRIPLES:
        raise TargetError(f"this machine is a {arch}: wanted one of {', '.join(target_forms.TRIPLES)}")
    triple = target_forms.TRIPLES[arch]
    candidates = [
        llvm.this_cpu(),
        *(f"x86-64-v{n}" for n in (4, 3, 2) if arch == "x86_64"),
        target_forms.BASELINE[arch],
    ]

    def honest(name: str) -> bool:
        return name in llvm.cpus(triple) and own >= cpu.device_names(arch, llvm.implied_features(triple, name))

    name = next((candidate for candidate in candidates if honest(candidate)), target_forms.BASELINE[arch])
    more = cpu.llvm_names(arch, own) - llvm.implied_features(triple, name)
    values = {"name": "native", "triple": triple, "cpu": name, "features": sorted(more), "cores": cpu.usable()}
    sizes = {level: size for level, size in cpu.caches().items() if size}
    return resolve({**values, **sizes, "description": f"This machine: {cpu.model_name()}"})


def resolve(values: dict, where: str = "target") -> Target:
    """A Target from its fields, checked against what LLVM knows; raises TargetError. `where` begins its message."""
    values = _typed(values, where)
    if builds := values.pop("builds", None):
        return _several(builds, values, where)
    if values.get("kind", "cpu") not in ("cpu", "cuda"):
        raise TargetError(f"{where}: kind is 'cpu' or 'cuda', got '{values['kind']}'")
    if "triple" not in values:
        raise TargetError(f"{where}: 'triple' is missing; for instance triple = \"aarch64-linux-gnu\"")
    triple = values["triple"] = target_forms.canonical_triple(values["triple"], where)
    arch = triple.split("-")[0]
    if not values.get("cpu"):
        values["cpu"] = target_forms.BASELINE[arch]
        if arch == "riscv64":
            values["features"] = [*"mafdc", *values.get("features", ())]  # what every Linux for it takes for granted
    known = llvm.cpus(triple)
    if values["cpu"] not in known:
        raise TargetError(
            f"{where}: LLVM has no CPU '{values['cpu']}' for {triple}{did_you_mean(values['cpu'], known)}"
        )
    for feature in values.get("features", ()):
        if feature.removeprefix("-") not in llvm.known_features(triple):
            near = did_you_mean(feature.removeprefix("-"), llvm.known_features(triple))
            raise TargetError(f"{where}: LLVM has no feature '{feature}' for {triple}{near}")
    values["features"] = tuple(dict.fromkeys(values.get("features", ())))
    if arch == "armv7l":
        values.setdefault("float_abi", "hard")
    if values.get("kind") == "cuda" and values.get("cuda_arch") not in CUDA_ARCHS:
        wrong = values.get("cuda_arch", "")
        raise TargetError(f"{where}: wanted cuda_arch like 'sm_87', got '{wrong}'{did_you_mean(wrong, CUDA_ARCHS)}")
    values = {**_facts(triple, values["cpu"]), **values}
    values["threads"] = values.get("threads") or values.get("cores", Target.cores)
    values.setdefault("name", f"{triple}:{values['cpu']}" if not values.get("cuda_arch") else values["cuda_arch"])
    return Target(**values)


def _several(given: list, common: dict, where: str) -> Target:
    """One target of several builds. A build that is a table takes from `common` what it does not say itself."""
    shared = {key: value for key, value in common.items() if key not in ("name", "description")}
    if shared and all(isinstance(build, str) for build in given):
        raise TargetError(f"{where}: '{min(shared)}' is said by the builds themselves, as they are given by name")
    try:
        builds = [
            Target.load(build) if isinstance(build, str) else resolve({**shared, **build}, f"{where}: builds[{i}]")
            for i, build in enumerate(given)
        ]
    except RecursionError:
        raise TargetError(f"{where}: one of its builds is itself") from None
    _check_builds(builds, where)
    # Whatever needs more comes first; where neither has all that the other needs, it is the greater number.
    builds.sort(key=lambda build: -len(build.features_needed()))
    named = {key: common[key] for key in ("name", "description") if key in common}
    return replace(
        builds[-1], **{"name": ",".join(b.name for b in builds), "description": "", **named}, builds=tuple(builds)
    )


def _check_builds(builds: list[Target], where: str) -> None:
    for build in builds:
        if build.kind != "cpu" or build.builds:
            raise TargetError(f"{where}: '{build.name}' cannot be one of several builds: wanted a single processor")
        if not _NAME.fullmatch(build.name):
            raise TargetError(f"{where}: a build's name is letters, digits and . _ - + :, got '{build.name[:80]}'")
    for one, other in combinations(builds, 2):
        if (one.arch, one.float_abi) != (other.arch, other.float_abi):
            raise TargetError(f"{where}: builds are for one architecture, got {one.arch} and {other.arch}")
        if one.name == other.name:
            raise TargetError(f"{where}: two builds are called '{one.name}'")
        if one.features_needed() == other.features_needed():
            both = f"'{one.name}' and '{other.name}'"
            raise TargetError(f"{where}: {both} need the same features; the second would never be chosen")


def _facts(triple: str, name: str) -> dict:
    """Cores and caches of the shipped target that is called like the CPU, for targets that do not give their own."""
    path = SHIPPED / f"{name}.toml"
    known = tomllib.loads(path.read_text()) if name in _shipped() else {}
    return {key: known[key] for key in ("cores", "l1d", "l2", "l3") if known.get("triple") == triple and key in known}


_TYPES = {"str": str, "int": int, "tuple[str, ...]": list, "tuple[Target, ...]": list}
_NAME = re.compile(r"[\w.:+-]{1,80}", re.ASCII)  # it is part of a file name in the package


def _typed(values: dict, where: str) -> dict:
    """`values` if every key is a field and every value of its type and range."""
    wanted = {field.name: str(field.type) for field in fields(Target)}
    for key, value in values.items():
        if key not in wanted:
            raise TargetError(f"{where}: unknown key '{key}'{did_you_mean(key, wanted)}")
        kind = _TYPES[wanted[key]]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TargetError(f"{where}: '{key}' wants {_say(kind)}, got {value!r}")
        items = (str, dict) if key == "builds" else str
        if isinstance(value, list) and not all(isinstance(item, items) for item in value):
            what = "a list of targets" if key == "builds" else _say(kind)
            raise TargetError(f"{where}: '{key}' wants {what}, got {value!r}")
        if isinstance(value, int) and not (1 if key == "cores" else 0) <= value < 2**40:
            raise TargetError(f"{where}: '{key}' is out of range: {value}")
    return dict(values)


def _say(kind: type) -> str:
    return {str: "text", int: "a whole number", list: "a list of texts"}[kind]


def _read(path: Path) -> Target:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise TargetError(f"target file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"target file {path}: not TOML: {error}") from error
    return resolve({"name": path.stem, **values}, where=f"target file {path.name}")


def _shipped() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def _nearest(text: str) -> str:
    """What `text` may have meant: a shipped target, or a CPU of LLVM's, which wants its triple."""
    for triple in target_forms.TRIPLES.values():
        if re.fullmatch(r"[\w.-]+", text) and text in llvm.cpus(triple):
            return f"; for the CPU of that name write '{triple}:{text}'"
    return did_you_mean(text, ["native", *_shipped()]) or "; 'tvmcompress target list' shows all"
