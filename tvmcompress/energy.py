"""Energy sensors: counters of joules that this machine offers. No sensor, no number.

RAPL (`/sys/class/powercap`), hardware monitors (`/sys/class/hwmon`: `energy*_input`; `power*_input`, sampled), and
NVIDIA GPUs through NVML when `pynvml` is installed. They count the whole machine or GPU, not one process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SYSFS = Path("/sys/class")
SAMPLE_S = 0.01


@dataclass
class Sensor:
    """`read` gives joules since some moment; `wraps` is where the counter starts again (0: it does not)."""

    name: str
    read: Callable[[], float]
    wraps: float = 0.0
    close: Callable[[], None] = field(default=lambda: None)


def sensors(root: Path = SYSFS) -> tuple[list[Sensor], str]:
    """All that can be read here, and when there are none, why."""
    reasons: list[str] = []
    found = _rapl(root / "powercap", reasons) + _hwmon(root / "hwmon", reasons) + _nvml(reasons)
    return found, "" if found else "; ".join(reasons)


def read(found: Sequence[Sensor]) -> dict[str, float]:
    return {sensor.name: sensor.read() for sensor in found}


def since(before: dict[str, float], found: Sequence[Sensor]) -> dict[str, float]:
    """Joules since `before = read(found)`."""
    used = {}
    for sensor in found:
        joules = sensor.read() - before[sensor.name]
        used[sensor.name] = joules + sensor.wraps if joules < 0 else joules
    return used


def _number(path: Path) -> float:
    return float(path.read_text())


def _rapl(root: Path, reasons: list[str]) -> list[Sensor]:
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") > 1:
            continue  # a part of a package that is counted already
        try:
            counter, wraps = folder / "energy_uj", _number(folder / "max_energy_range_uj") / 1e6
            _number(counter)
            name = (folder / "name").read_text().strip()
        except (OSError, ValueError) as error:
            reasons.append(f"RAPL: {folder.name} cannot be read ({getattr(error, 'strerror', None) or error})")
            continue
        found.append(Sensor(f"RAPL {name}", lambda c=counter: _number(c) / 1e6, wraps))  # type: ignore[misc]
    if not found and not reasons:
        reasons.append("no RAPL counters")
    return found


def _hwmon(root: Path, reasons: list[str]) -> list[Sensor]:
    found = []
    for folder in sorted(root.glob("hwmon*")):
        try:
            chip = (folder / "name").read_text().strip()
        except OSError:
            continue
        for counter in sorted(folder.glob("energy*_input")):
            if _readable(counter):
                found.append(Sensor(f"{chip} {counter.name}", lambda c=counter: _number(c) / 1e6))  # type: ignore[misc]
        if not any(sensor.name.startswith(chip) for sensor in found):
            for power in sorted(folder.glob("power*_input")):
                if _readable(power):
                    found.append(_integrated(f"{chip} {power.name}", power))
    if not found:
        reasons.append("no hwmon power sensors")
    return found


def _readable(path: Path) -> bool:
    try:
        _number(path)
    except (OSError, ValueError):
        return False
    return True


def _integrated(name: str, power: Path) -> Sensor:
    """A sensor of microwatts, summed up over time by a thread."""
    total, stop, lock = [0.0, time.monotonic()], threading.Event(), threading.Lock()

    def update() -> float:
        with lock:
            now = time.monotonic()
            try:
                total[0] += _number(power) / 1e6 * (now - total[1])
            except (OSError, ValueError):
                pass  # a reading that failed once; the next one covers its time
            else:
                total[1] = now
            return total[0]

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            update()

    threading.Thread(target=sample, daemon=True).start()
    return Sensor(name, update, close=stop.set)


def _nvml(reasons: list[str]) -> list[Sensor]:
    try:
        import pynvml
    except ImportError:
        reasons.append("no NVML (pip install nvidia-ml-py)")
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        reasons.append(f"NVML: {error}")
        return []
    return [
        Sensor(f"NVML GPU {i}", lambda h=h: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3)  # type: ignore[misc]
        for i, h in enumerate(handles)
    ]
