"""This machine's processor: what it can do, how many of its cores this process may use, and its caches.

Feature names are the device's own: the `flags` of /proc/cpuinfo on x86, the `Features` names of the kernel on ARM,
the letters and extensions of the `isa` line on RISC-V. `cpu_features` says which of them a feature of LLVM needs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tvmcompress.cpu_features import DEVICE_NAMES, HWCAP

_AT_HWCAP, _AT_HWCAP2 = 16, 26


def architecture() -> str:
    """x86_64, aarch64, armv7l or riscv64, as this process sees it (an emulator's guest sees the guest's)."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "aarch64" if struct.calcsize("P") == 8 else "armv7l"  # a 32-bit system on a 64-bit kernel
    if machine.startswith("arm"):
        return "armv7l"
    return "x86_64" if machine in ("x86_64", "amd64") else machine


def features() -> frozenset[str]:
    """The features that this machine has, in its own naming; of several kinds of cores, what all have in common.

    On ARM and RISC-V the kernel is asked through getauxval: under user-mode emulation /proc/cpuinfo is the host's.
    """
    arch = architecture()
    if arch in HWCAP:
        words = (_auxval(_AT_HWCAP), _auxval(_AT_HWCAP2))
        return frozenset().union(*(parse_hwcap(word, names) for word, names in zip(words, HWCAP[arch])))
    if arch == "riscv64":
        letters = {chr(ord("a") + i) for i in range(26) if _auxval(_AT_HWCAP) >> i & 1}
        return frozenset(letters) | parse_riscv_isa(_cpuinfo_field("isa"))
    return frozenset(_cpuinfo_field("flags").split())


def missing(needed: Iterable[str]) -> list[str]:
    """Those of `needed` (the device's own names) that this machine lacks, sorted: the reason to refuse a package."""
    return sorted(set(needed) - features())


def device_names(arch: str, llvm_features: Iterable[str]) -> set[str]:
    """What LLVM's features are called on the device; those that no code generator emits by itself are left out."""
    table = DEVICE_NAMES.get(arch, {})
    return {name for feature in llvm_features for name in table.get(feature, ())}


def llvm_names(arch: str, own: Iterable[str]) -> set[str]:
    """The LLVM features that a device with the features `own` can run."""
    own = set(own)
    return {feature for feature, names in DEVICE_NAMES.get(arch, {}).items() if own.issuperset(names)}


def model_name() -> str:
    """The processor's (x86) or the board's (ARM device tree) name, or the architecture."""
    if name := _cpuinfo_field("model name") if architecture() == "x86_64" else "":
        return name
    try:
        return Path("/proc/device-tree/model").read_text().rstrip("\0\n")
    except OSError:
        return architecture()


def usable() -> int:
    """How many CPUs this process may use at once: its affinity, cut down by a control group's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(allowed, int(quota))) if quota else allowed


def caches() -> dict[str, int]:
    """Bytes of `l1d`, `l2`, `l3` that the first usable CPU sees; 0 for a level that it lacks or does not show."""
    sizes = {"l1d": 0, "l2": 0, "l3": 0}
    first = min(os.sched_getaffinity(0))
    for index in Path(f"/sys/devices/system/cpu/cpu{first}/cache").glob("index*"):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        name = "l1d" if level == "1" else f"l{level}"
        if kind in ("Data", "Unified") and name in sizes:
            sizes[name] = parse_size(size)
    return sizes


def describe() -> dict:
    """All of the above as JSON values."""
    return {
        "architecture": architecture(),
        "model": model_name(),
        "cores": usable(),
        **caches(),
        "features": sorted(features()),
    }


def parse_size(text: str) -> int:
    """Bytes of sysfs's `48K`, `2M`; 0 for what is not a size."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0


def parse_riscv_isa(isa: str) -> frozenset[str]:
    """`rv64imafdc_zba_zbb` to {i, m, a, f, d, c, zba, zbb}; g stands for imafd."""
    letters, *extensions = isa.lower().removeprefix("rv64").removeprefix("rv32").replace("g", "imafd").split("_")
    return frozenset(letters) | frozenset(e for e in extensions if e)


def parse_hwcap(word: int, names: str) -> frozenset[str]:
    """The names whose bits are set; `names` begins with that of bit 0."""
    return frozenset(name for bit, name in enumerate(names.split()) if word >> bit & 1 and name != "-")


def _auxval(kind: int) -> int:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return getauxval(kind)


@cache
def _cpuinfo_field(name: str) -> str:
    """The first CPU's value of a field of /proc/cpuinfo, or an empty string."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    match = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def _cgroup_quota() -> float:
    """CPUs' worth of time that the control groups above this process allow; 0 when there is no limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0.0
    limits = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += [_quota_v2(folder) for folder in _upwards(Path("/sys/fs/cgroup"), path)]
        elif "cpu" in controllers.split(","):
            limits += [_quota_v1(folder) for folder in _upwards(Path("/sys/fs/cgroup/cpu"), path)]
    return min((limit for limit in limits if limit > 0), default=0.0)


def _upwards(root: Path, path: str) -> list[Path]:
    """`root`/a/b, `root`/a and `root`: a group is also held by the limits of those around it."""
    inner = root / path.lstrip("/")
    return [inner, *(parent for parent in inner.parents if parent.is_relative_to(root))]


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return 0.0
    return 0.0 if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return 0.0
    return max(0.0, quota / period)
