"""Transfer: the best of another target is tried first, and what that saves is counted as it is."""

from __future__ import annotations

import onnx
import pytest

import tvmcompress as tc
from tests import networks
from tests.tuning.test_tuning import found
from tvmcompress import cpu, trials, tuning
from tvmcompress.errors import TargetError, UsageError
from tvmcompress.kernels.choices import versions
from tvmcompress.target import Target
from tvmcompress.trials import Trial, board_key, digest, target_key
from tvmcompress.tuning.kernel import Kernel, Place
from tvmcompress.tuning.tasks import Task
from tvmcompress.tuning.transfer import SEEDS, Seed, Transfer
from tvmcompress.tuning_log import TuningLog

PLACE = Place(target_key(Target.load("rpi5")), "here", versions())
WORKLOAD = "matmul float32 1x1x8 to 8"


def there(number: int, ms: float, **changes) -> Trial:
    """Of an rpi4; number 0 is its untuned form."""
    values = {"target": target_key(Target.load("rpi4")), "workload": WORKLOAD, "board": "there", "versions": versions()}
    return Trial(**{**values, "decisions": {"tile": number}, "times_ms": (ms,), **changes})


def here(number: int, ms: float) -> Trial:
    return there(number, ms, target=PLACE.target, board="here")


def test_the_best_come_first_and_know_when_they_were_found(tmp_path) -> None:
    with TuningLog.open(tmp_path / "log.db") as log:
        for number, ms in enumerate((9.0, 5.0, 8.0, 1.0, 2.0, 3.0)):
            log.add(there(number, ms))
        log.add(there(6, 0.1, status="wrong_result", times_ms=()))
        log.add(there(7, 0.1, board="another"))
        log.confirm(there(4, 2.0))
        transfer = Transfer.between("rpi4", PLACE, log, [WORKLOAD, "another"])
    assert transfer.seeds == {WORKLOAD: [Seed({"tile": 4}, 4), Seed({"tile": 3}, 3), Seed({"tile": 5}, 5)]}
    assert len(transfer.seeds[WORKLOAD]) == SEEDS


def grown(*measured: Trial, seeds: list[Seed], known: int = 1) -> dict:
    """What a transfer says after `measured`, of which the first is the untuned form and `known` are of earlier runs."""
    kernel = Kernel(Task(WORKLOAD, None, 1, 1), trials=list(measured[:known]), untuned=dict(measured[0].decisions))  # type: ignore[arg-type]
    transfer = Transfer("rpi4:1", {WORKLOAD: seeds})
    transfer.sow([kernel])
    assert kernel.seeds == [seed.decisions for seed in seeds]
    kernel.trials += measured[known:]
    kernel.aliases[digest({"tile": 100})] = digest({"tile": 1})  # 100 is not offered here
    found = transfer.harvest([kernel])
    return {name: found[name] for name in ("seeds", "kernels", "saved")}


@pytest.mark.parametrize(
    ("measured", "seeds", "said"),
    [
        ((5.0, 2.0, 3.0), [Seed({"tile": 1}, 40), Seed({"tile": 2}, 30)], {"seeds": 2, "kernels": 1, "saved": 38}),
        ((5.0, 2.0, 2.01), [Seed({"tile": 1}, 40), Seed({"tile": 2}, 30)], {"seeds": 2, "kernels": 1, "saved": 28}),
        ((5.0, 2.0, 1.0), [Seed({"tile": 1}, 40)], {"seeds": 1, "kernels": 0, "saved": -1}),  # better was found here
        ((5.0, 4.99), [Seed({"tile": 1}, 40)], {"seeds": 1, "kernels": 0, "saved": -1}),  # nothing to be gained
        ((5.0, 2.0), [Seed({"tile": 100}, 40)], {"seeds": 1, "kernels": 1, "saved": 39}),  # mapped to what is offered
        ((5.0, 2.0), [Seed({"tile": 0}, 0)], {"seeds": 0, "kernels": 0, "saved": 0}),  # untuned there and here
    ],
)
def test_what_was_saved(measured: tuple, seeds: list[Seed], said: dict) -> None:
    assert grown(*(here(number, ms) for number, ms in enumerate(measured)), seeds=seeds) == said


def test_what_earlier_runs_measured_is_no_saving() -> None:
    known = (here(0, 5.0), here(1, 2.0))
    assert grown(*known, seeds=[Seed({"tile": 1}, 40)], known=2) == {"seeds": 0, "kernels": 0, "saved": 0}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("rpi44", TargetError, "did you mean"),
        ("rpi5", UsageError, "the target that is tuned for"),
        ("rpi3", UsageError, "no trials of it; others there: rpi4:"),
        ("x86-64-any", UsageError, "several builds"),
        ("rpi4", UsageError, "no trials of these kernels"),
    ],
)
def test_what_cannot_be_started_from(text: str, error, said: str, tmp_path) -> None:
    with TuningLog.open(tmp_path / "log.db") as log:
        log.add(there(0, 1.0, workload="another"))
        log.add(there(0, 1.0, target=target_key(Target.load("rpi3")), versions="older"))
        with pytest.raises(error, match=said):
            Transfer.between(text, PLACE, log, [WORKLOAD])


def test_records_that_ship_are_seeds_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trials, "SHIPPED", tmp_path)
    with TuningLog.open(tmp_path / "log.db") as log:
        (tmp_path / "rpi4").mkdir()
        log.export(tmp_path / "rpi4" / "base.jsonl", [there(3, 1.0, at="now")])
        assert Transfer.between("rpi4", PLACE, log, [WORKLOAD]).seeds == {WORKLOAD: [Seed({"tile": 3}, 0)]}


def test_tuning_tries_seeds_first(tmp_path) -> None:
    """Of a target as the log calls it; what is not offered here becomes what is nearest, and each is tried once."""
    onnx.save(networks.small(32), tmp_path / "net.onnx")
    model, native = tc.load(tmp_path / "net.onnx"), Target.load("native")
    only = max((task for task in found(model) if "conv2d" in task.workload), key=lambda task: task.macs).workload
    events: list[tuple[str, dict]] = []
    with TuningLog.open(tmp_path / "log.db") as log:
        tuning.tune(model, native, log=log, trials=1, only=only)
        (untuned,) = log.trials()
        tile = untuned.decisions["tile"]
        seed = {**tile, "vectors": 2 if tile["vectors"] == 1 else tile["vectors"] / 2, "pixels": 1.9}
        for value in (tile, {**tile, "pixels": tile["pixels"] - 0.1}, "no such", seed):
            decisions = {**untuned.decisions, "tile": value}
            log.add(Trial("other:1", only, "there", versions(), decisions, times_ms=(9.0 - (value is seed),)))
        tell = lambda name, facts: events.append((name, dict(facts)))  # noqa: E731
        tuning.tune(model, native, log=log, trials=2, only=only, start_from="other:1", events=tell)
        first, second = log.trials(target_key(native), only, board_key(cpu.describe()), versions())
    assert first == untuned and second.decisions["tile"] == {**seed, "pixels": 2}
    transfer = dict(events)["done"]["transfer"]
    assert (transfer["from"], transfer["seeds"]) == ("other:1", 1)
    assert (transfer["kernels"], transfer["saved"]) in ((1, 2), (0, -1))  # as the seed is faster or not
