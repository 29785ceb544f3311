"""examine(address) -> what is well with a board, what is not, and what to do about it."""

from __future__ import annotations

import secrets
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tvmcompress import cpu
from tvmcompress.device import CONNECT_SECONDS, connect, find, lease
from tvmcompress.errors import TargetError, TvmcompressError
from tvmcompress.target import Target
from tvmcompress.timing.nursery import Nursery
from tvmcompress.tuning.bench import verdict
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.crew import health_job
from tvmcompress.tuning.workshop import Workshop
from tvmcompress.tunnels import Route, Tunnels
from tvmcompress.wire import Control

SLOW_LINK_MS = 20.0
HOT_C = 75.0
DRIFT_S = 2.0
DISK = 200e6  # bytes
GOVERNORS = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"


@dataclass(frozen=True)
class Finding:
    """`verdict`: good, doubtful or bad. `advice`: what to do, empty where nothing is to be done."""

    what: str
    found: str
    verdict: str = "good"
    advice: str = ""


def examine(address: str, target: str | None = None, route: Route | None = None) -> list[Finding]:
    """Looks a board over. Raises BoardError when it cannot be reached or is in use, TargetError for no such target."""
    with Tunnels(route or Route()) as tunnels:
        board = find(address, tunnels, CONNECT_SECONDS)[0]
        control = connect(board, tunnels, CONNECT_SECONDS)
        try:
            key = lease(control, secrets.token_hex(8), 300.0)
            findings = [link(control), versions(control), *state(control)]
            wanted = target_of(target, control)
            if isinstance(wanted, Finding):
                return [*findings, wanted]
            suits = features(control, wanted)
            findings.append(suits)
            if suits.verdict != "bad":
                host, port = tunnels.to(board.host, board.port)
                findings.append(kernel(control, wanted, host, port, key))
            return findings
        finally:
            control.close()


def target_of(name: str | None, control: Control) -> Target | Finding:
    """The target to examine for; without a name the board's own, or the one of this machine's if it is its like."""
    if name:
        return Target.load(name)
    own, described = control.status["name"], control.status["cpu"]
    try:
        if own:
            return Target.load(own)
        if described["architecture"] == cpu.architecture() and described["features"] == sorted(cpu.features()):
            return Target.load("native")
    except TargetError:
        pass
    return Finding("target", "none is known for it", "doubtful", "give --target to check features and a kernel")


def link(control: Control) -> Finding:
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        control.request("status")
        times.append((time.perf_counter() - begun) * 1e3)
    ms = statistics.median(times)
    advice = (
        "each measurement takes about forty round trips: a cable is better than a radio" if ms > SLOW_LINK_MS else ""
    )
    return Finding("link", f"{ms:.2g} ms for a question and its answer", "doubtful" if advice else "good", advice)


def versions(control: Control) -> Finding:
    theirs, ours = control.status["versions"], {n: metadata.version(n) for n in ("apache-tvm", "tvmcompress")}
    found = f"TVM {theirs['tvm']}, tvmcompress {theirs['tvmcompress']}"
    if theirs["tvm"] != ours["apache-tvm"]:
        advice = f"TVM is {ours['apache-tvm']} here: `tvmcompress device bundle` makes what the board needs"
        return Finding("versions", found, "bad", advice)
    if theirs["tvmcompress"] != ours["tvmcompress"]:
        return Finding("versions", found, "doubtful", f"tvmcompress is {ours['tvmcompress']} here")
    return Finding("versions", found)


def state(control: Control) -> list[Finding]:
    """Cores, governor, temperature, clock, disk."""
    asked = time.time()
    status = control.request("status")
    drift = status["time"] - (asked + time.time()) / 2
    told, cores = status["conditions"], status["cpu"]["cores"]
    findings = [
        Finding("cores", f"{cores} that may be used, {status['cpu']['model'] or status['cpu']['architecture']}")
    ]
    if status["emulated"]:
        findings.append(Finding("emulated", "yes", "doubtful", "results can be checked there, times mean nothing"))
    governor = told.get("governor")
    if governor is None:
        findings.append(Finding("governor", "the board does not tell"))
    else:
        steady = governor in ("performance", "userspace")
        advice = (
            ""
            if steady
            else "for steady times: echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        )
        mhz = f", {told['mhz']:.0f} of {told.get('mhz_most', 0):.0f} MHz" if "mhz" in told else ""
        findings.append(Finding("governor", f"{governor}{mhz}", "good" if steady else "doubtful", advice))
    degrees = told.get("temperature_c")
    hot = degrees is not None and degrees > HOT_C
    found = "the board does not tell" if degrees is None else f"{degrees:.0f} °C"
    advice = "it may slow down: a fan, a heat sink, or a pause" if hot else ""
    findings.append(Finding("temperature", found, "doubtful" if hot else "good", advice))
    late = abs(drift) > DRIFT_S
    advice = "times of records will be off: set the clock, as with timedatectl set-ntp true" if late else ""
    findings.append(Finding("clock", f"{drift:+.2g} s from here", "doubtful" if late else "good", advice))
    full = status["disk_free"] < DISK
    advice = "kernels and weights go to its temporary folder: make room there, or set TMPDIR" if full else ""
    findings.append(Finding("disk", f"{status['disk_free'] / 1e6:.0f} MB free", "bad" if full else "good", advice))
    return findings


def features(control: Control, target: Target) -> Finding:
    described = control.status["cpu"]
    if described["architecture"] != target.arch:
        advice = f"choose a target for it: {target.name} is for {target.arch}"
        return Finding("features", described["architecture"], "bad", advice)
    missing = sorted(set(target.features_needed()) - set(described["features"]))
    if missing:
        advice = f"{target.name} needs them: choose another target"
        return Finding("features", f"lacks {', '.join(missing)}", "bad", advice)
    return Finding("features", f"all that {target.name} needs")


def kernel(control: Control, target: Target, host: str, port: int, key: str) -> Finding:
    """A kernel of the target's that must give the right answer."""
    folder = Path(tempfile.mkdtemp(prefix="tvmcompress-"))
    try:
        job = health_job(Workshop(target, folder, cpu.usable()))
        cores = control.status["cpu"]["cores"]
        nursery = Nursery()
        try:
            ended = nursery.run(job.work(host, port, key, cores), job.seconds, lambda: False)
        finally:
            nursery.close()
        outcome = verdict(Outcome(*ended))
    except TvmcompressError as error:
        return Finding("kernel", str(error), "bad", "repair this machine first: it is built here")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if outcome.status != "ok":
        advice = "believe nothing that this board computes: is its target the right one, its memory sound?"
        return Finding("kernel", f"{outcome.status}: {outcome.error}", "bad", advice)
    if control.status["emulated"]:
        return Finding("kernel", "right")
    gflops = 2 * job.task.macs / (min(outcome.value[0]) * 1e6)
    return Finding("kernel", f"right, {gflops:.3g} GFLOP/s of float32 on {cores} threads")
