"""How near outputs are to those of a reference, accumulated sample by sample in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvmcompress.errors import SampleError


@dataclass
class Sums:
    """What is kept of one output over all samples."""

    elements: int = 0
    signal: float = 0.0  # sum of reference²
    power: float = 0.0  # sum of output²
    product: float = 0.0  # sum of reference x output
    noise: float = 0.0  # sum of (output - reference)²
    absolute: float = 0.0  # sum of |output - reference|
    largest: float = 0.0
    equal: int = 0
    not_finite: int = 0  # elements that only one of the two has as NaN or infinity; left out of the sums
    rows: int = 0
    agree: int = 0  # rows whose largest element is at the same place

    def add(self, got: np.ndarray, wanted: np.ndarray) -> None:
        a, b = got.astype(np.float64).reshape(-1), wanted.astype(np.float64).reshape(-1)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & np.isfinite(b)
        self.elements += a.size
        self.equal += int(same.sum())
        self.not_finite += int((~finite & ~same).sum())
        a, b = a[finite], b[finite]
        error = a - b
        self.signal += float(b @ b)
        self.power += float(a @ a)
        self.product += float(a @ b)
        self.noise += float(error @ error)
        self.absolute += float(np.abs(error).sum())
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        if classes(got):
            self.rows += len(got)
            self.agree += int((got.argmax(1) == wanted.argmax(1)).sum())

    def row(self) -> dict:
        """The figures as JSON values; SNR is null where it is infinite (`exact`) or there is no signal."""
        norm = math.sqrt(self.power * self.signal)
        return {
            "snr_db": snr_db(self.signal, self.noise),
            "exact": self.equal == self.elements,
            "max_error": self.largest,
            "mean_error": self.absolute / max(self.elements, 1),
            "cosine": self.product / norm if norm else None,
            "equal": self.equal / max(self.elements, 1),
            "not_finite": self.not_finite,
            "top1_agreement": self.agree / self.rows if self.rows else None,
        }


def snr_db(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise), the two as sums of squares."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def classes(output: np.ndarray) -> bool:
    """Whether an output is rows of class scores: (N, classes), floating point or quantized."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind in "fiuV"


class Quality:
    """Add each sample's outputs, then ask for `summary`."""

    def __init__(self, labels: np.ndarray | None = None):
        self.labels = labels
        self.sums: dict[str, Sums] = {}
        self.samples = 0
        self.labelled = 0
        self.correct = {"package": 0, "reference": 0}

    def add(self, got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray] | None) -> None:
        if wanted is not None:
            for name, array in got.items():
                if name not in wanted:
                    raise SampleError(f"the reference has no output '{name}'; it has {', '.join(map(repr, wanted))}")
                if array.shape != np.shape(wanted[name]):
                    shapes = f"{array.shape}, the reference's has {np.shape(wanted[name])}"
                    raise SampleError(f"output '{name}' has shape {shapes}")
                self.sums.setdefault(name, Sums()).add(array, np.asarray(wanted[name]))
        if self.labels is not None:
            self._count_correct(got, wanted)
        self.samples += 1

    def _count_correct(self, got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray] | None) -> None:
        name, scores = next(((n, a) for n, a in got.items() if classes(a)), ("", np.empty(0)))
        if not name:
            raise SampleError("labels: no output holds class scores of shape (rows, classes)")
        assert self.labels is not None
        labels = self.labels[self.labelled : self.labelled + len(scores)]
        if len(labels) < len(scores):
            raise SampleError(f"labels: there are {len(self.labels)}, fewer than the samples' rows")
        self.correct["package"] += int((scores.argmax(1) == labels).sum())
        if wanted is not None:
            self.correct["reference"] += int((np.asarray(wanted[name]).argmax(1) == labels).sum())
        self.labelled += len(scores)

    def summary(self) -> dict:
        """{"samples", "outputs": [rows], "overall": row of all outputs together, "accuracy": {…} or null}."""
        rows = [{"name": name, **sums.row()} for name, sums in self.sums.items()]
        accuracy = None
        if self.labelled:
            compared = ["package", "reference"] if self.sums else ["package"]
            accuracy = {"rows": self.labelled} | {who: self.correct[who] / self.labelled for who in compared}
        return {"samples": self.samples, "outputs": rows, "overall": self._overall(), "accuracy": accuracy}

    def _overall(self) -> dict | None:
        if not self.sums:
            return None
        total = Sums()
        for one in self.sums.values():
            for field in (
                "elements",
                "signal",
                "power",
                "product",
                "noise",
                "absolute",
                "equal",
                "not_finite",
                "rows",
                "agree",
            ):
                setattr(total, field, getattr(total, field) + getattr(one, field))
            total.largest = max(total.largest, one.largest)
        return total.row()
