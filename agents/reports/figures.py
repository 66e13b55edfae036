"""A run's figures before and after training, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.reports.kinds import Figure
from agents.reports.run_files import Run
from agents.reports.statistics import Interval, mean_interval

NONE: Interval = (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure, before and after training and by how much it changed, with 95% intervals or NaN."""

    figure: Figure
    after: float
    before: float | None = None
    change: float | None = None
    after_interval: Interval = NONE
    before_interval: Interval = NONE
    change_interval: Interval = NONE


def measured(run: Run) -> list[Measured]:
    """The figures that the run has: of its summary or, while it has none, of its last evaluation."""
    found = []
    for figure in run.kind.figures:
        before, after = _ends(run, figure)
        if after is None or not math.isfinite(after):
            continue
        old, new = _per_sample(run, figure, before, after)
        intervals: dict[str, Interval] = {}
        if new is not None:
            intervals["after_interval"] = mean_interval(new)
        if old is not None and new is not None:
            intervals |= {"before_interval": mean_interval(old), "change_interval": mean_interval(new - old)}
        if figure.key == "eval_return_mean" and run.summary:
            half = 1.96 * run.summary["eval_return_std"] / math.sqrt(run.summary["eval_episodes"])
            intervals["after_interval"] = (after - half, after + half)
        change = None if before is None else after - before
        found.append(Measured(figure=figure, after=after, before=before, change=change, **intervals))
    return found


def _ends(run: Run, figure: Figure) -> tuple[float | None, float | None]:
    """The figure before and after; None where it was not measured."""
    if run.summary:
        before = run.summary.get(f"{figure.stem}_before") if figure.key != figure.stem else None
        found = before, run.summary.get(figure.key)
    else:
        values = [value for value in run.columns.get(figure.live, ()) if math.isfinite(value)]
        first = values[0] if values and figure.key != figure.stem else None
        found = first, values[-1] if values else None
    before, after = (value if isinstance(value, int | float) else None for value in found)
    return before, after


def _per_sample(run: Run, figure: Figure, before: float | None, after: float) -> tuple[Any, Any]:
    """The figure of each sample before and after, if the samples are what it was measured on."""
    names = {"judge_win_rate": "judge"}.get(figure.key, figure.stem)
    old, new = (_sample_column(run, f"{names}_{side}") for side in ("before", "after"))
    if old is None or new is None:
        return None, None
    if figure.key == "judge_win_rate":
        old, new = None, (new > old) + 0.5 * (new == old)
    ends = [(new, after)] + ([] if old is None or before is None else [(old, before)])
    fits = all(math.isclose(values.mean(), value, rel_tol=1e-3, abs_tol=1e-4) for values, value in ends)
    return (old, new) if fits else (None, None)


def _sample_column(run: Run, name: str) -> Any:
    values = [sample.get(name) for sample in run.samples]
    real = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return np.array(real, dtype=np.float64) if real and len(real) == len(values) else None
