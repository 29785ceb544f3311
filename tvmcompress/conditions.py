"""What a machine tells of its state: temperature, frequency, governor; and whether it is emulated."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from tvmcompress import cpu

EMULATED = "TVMCOMPRESS_EMULATED"  # set where a server is started under an emulator
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
THERMAL = Path("/sys/class/thermal")


def conditions() -> dict[str, float | str]:
    """`temperature_c` (of the hottest sensor), `mhz`, `mhz_most` and `governor`, as far as the machine tells."""
    found: dict[str, float | str] = {}
    degrees = [value / 1000 for zone in THERMAL.glob("thermal_zone*/temp") if (value := _number(zone)) is not None]
    if plausible := [value for value in degrees if 0 < value < 150]:
        found["temperature_c"] = max(plausible)
    for name, file in (("mhz", "scaling_cur_freq"), ("mhz_most", "cpuinfo_max_freq")):
        if (khz := _number(CPUFREQ / file)) is not None:
            found[name] = khz / 1000
    with contextlib.suppress(OSError):
        found["governor"] = (CPUFREQ / "scaling_governor").read_text().strip()
    return found


def emulated() -> bool:
    """Whether an emulator runs this: then its times mean nothing.

    User-mode QEMU lets /proc/cpuinfo of the host through, or makes one up; QEMU's own processors name themselves.
    """
    if os.environ.get(EMULATED):
        return True
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    foreign = "CPU implementer" if cpu.architecture() == "x86_64" else "vendor_id"
    return foreign in text or "QEMU TCG" in text or "QEMU Virtual CPU" in text


def disk_free() -> int:
    """Bytes where temporary files go."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
