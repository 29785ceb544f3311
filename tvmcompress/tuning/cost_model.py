"""Which decisions will be fast: gradient-boosted trees over decisions and facts about the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmcompress.errors import MissingDependencyError

LEAST = 16  # trials to learn from


class CostModel:
    """Learns the speed of trials relative to the fastest of their kernel. Refitted from the log, never stored."""

    def __init__(self) -> None:
        try:
            import xgboost
        except ModuleNotFoundError as error:
            raise MissingDependencyError("tuning wants xgboost: pip install 'tvmcompress[tune]'") from error
        self.xgboost = xgboost
        self.columns: dict[str, int] = {}
        self.booster: Any = None

    def fit(self, rows: Sequence[dict[str, float]], speeds: Sequence[float]) -> None:
        """`speeds`: the least time of the kernel over that of the trial, 0 for one that failed."""
        if len(rows) < LEAST:
            return
        self.columns = {name: i for i, name in enumerate(sorted({name for row in rows for name in row}))}
        options = {"max_depth": 6, "eta": 0.2, "subsample": 0.8, "min_child_weight": 1, "nthread": 1, "seed": 0}
        data = self.xgboost.DMatrix(self.matrix(rows), label=np.asarray(speeds, np.float32))
        self.booster = self.xgboost.train({"objective": "reg:squarederror", **options}, data, num_boost_round=60)

    def predict(self, rows: Sequence[dict[str, float]]) -> np.ndarray | None:
        """The speed expected of each; None before there is enough to learn from."""
        if self.booster is None:
            return None
        return self.booster.predict(self.xgboost.DMatrix(self.matrix(rows)))

    def matrix(self, rows: Sequence[dict[str, float]]) -> np.ndarray:
        """What a row says nothing about is missing."""
        found = np.full((len(rows), max(len(self.columns), 1)), np.nan, np.float32)
        for i, row in enumerate(rows):
            for name, value in row.items():
                if name in self.columns:
                    found[i, self.columns[name]] = value
        return found
