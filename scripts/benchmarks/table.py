"""A comparison as a table: one row per measurement with ours, the peer's and the ratio; and curves over steps.

Source of interquartile mean and bootstrap interval: Agarwal et al. 2021, "Deep reinforcement learning at the edge of
the statistical precipice" (arXiv:2108.13264).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from agents.reports.run_files import read_columns
from reward_models.aside import save_figure

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of both sides; ``intervals``, ``extremes`` and ``counts`` are by side."""

    name: str  # what was measured
    ours: float
    peer: float
    unit: str  # of both
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95%
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)  # smallest and largest
    counts: dict[str, int] = field(default_factory=dict)  # measurements
    must: float | None = None  # required bound of the ratio; None: there is none
    aim: float | None = None  # bound of the ratio that we aim for
    at_most: bool = False  # whether the ratio stays below its bounds, rather than above
    details: dict[str, Any] = field(default_factory=dict)  # further values, for ``summary.json`` only

    @property
    def ratio(self) -> float:
        """Ours divided by the peer's."""
        return self.ours / self.peer if self.peer else float("nan")

    @property
    def verdict(self) -> str:
        """The best bound that is kept, "aim" or "must"; else "missed", which not-a-number always is; "" without any."""
        bounds = {"aim": self.aim, "must": self.must}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        kept = [name for name, bound in given.items() if (self.ratio <= bound if self.at_most else self.ratio >= bound)]
        return kept[0] if kept else "missed" if given else ""

    def bound(self, name: str) -> str:
        """``must`` or ``aim`` as text: "≥ 2.5", or "" if there is none."""
        value = getattr(self, name)
        return "" if value is None else f"{'≤' if self.at_most else '≥'} {value:.4g}"

    def figures(self) -> dict[str, Any]:
        """What ``summary.json`` holds under the row's name."""
        found: dict[str, Any] = {"ours": self.ours, "peer": self.peer, "ratio": self.ratio, "unit": self.unit}
        if self.verdict:
            found |= {"must": self.must, "aim": self.aim, "at_most": self.at_most, "verdict": self.verdict}
        for name in ("intervals", "extremes", "counts"):
            found |= {f"{side}_{name}": value for side, value in getattr(self, name).items()}
        return found | self.details


def row_of(
    name: str, unit: str, found: Mapping[str, Sequence[float]], *, center: Callable[[Any], Any] = np.mean, **more: Any
) -> Row:
    """A row of each side's ``center`` over its measurements, with the smallest, the largest and how many.

    ``found`` has those of "ours", and of the peer under any other name unless ``more``, further fields of the row or
    other values of these, holds ``peer``.
    """
    centers = {"ours" if side == "ours" else "peer": float(center(values)) for side, values in found.items()}
    extremes = {side: (float(min(values)), float(max(values))) for side, values in found.items()}
    counts = {side: len(values) for side, values in found.items()}
    values: dict[str, Any] = {"name": name, "unit": unit, **centers, "extremes": extremes, "counts": counts}
    return Row(**values | more)


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all ``scores`` together, as ``scipy.stats.trim_mean`` cuts them; any shape."""
    return float(stats.trim_mean(np.asarray(scores, np.float64), 0.25, axis=None))


def bootstrap_interval(scores: ArrayLike, *, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile-bootstrap 95% interval of the interquartile mean: lower and upper bound, in the scores' unit."""
    values = np.asarray(scores, np.float64)
    if not len(values):
        raise ValueError("an interval needs a score, received none")
    draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    means = stats.trim_mean(values[draws], 0.25, axis=1)
    low, high = np.quantile(means, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0])
    return float(low), float(high)


def to_markdown(rows: Sequence[Row], *, peer: str = "sb3") -> str:
    """The table as Markdown: value, interval (or range) and ratio."""

    def side(row: Row, name: str, value: float) -> str:
        spread = row.intervals.get(name) or row.extremes.get(name)
        brackets = "" if spread is None else f" [{_short(spread[0])}, {_short(spread[1])}]"
        count = f" (n={row.counts[name]})" if name in row.counts else ""
        return f"{_short(value)}{brackets}{count}"

    with_bounds = any(row.verdict for row in rows)
    head = ["what", "unit", "ours", peer, f"ours ÷ {peer}", *(["must", "aim", "kept"] if with_bounds else [])]
    table = [head]
    for row in rows:
        cells = [row.name, row.unit, side(row, "ours", row.ours), side(row, peer, row.peer), f"{row.ratio:.3f}"]
        table.append(cells + ([row.bound("must"), row.bound("aim"), row.verdict] if with_bounds else []))
    first, *others = [f"| {' | '.join(cells)} |\n" for cells in table]
    return "".join([first, "|" + "---|" * len(head) + "\n", *others])


def read_curve(run_dir: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and greedy mean returns that a run logged."""
    columns = read_columns(run_dir / "progress.csv")
    steps, returns = np.array(columns["time/steps"]), np.array(columns["eval/return_mean"])
    logged = ~np.isnan(returns)
    return steps[logged], returns[logged]


def plot_curves(runs: Path, seeds: Mapping[str, Iterable[int]], tasks: Sequence[str], out: Path) -> None:
    """A panel a task: interquartile mean over steps, with its 95% interval, of each side's ``TASK-SIDE-SEED``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    width = min(3, len(tasks))
    height = -(-len(tasks) // width)
    figure = Figure(figsize=(4.2 * width, 3.0 * height))
    for place, task in enumerate(tasks, 1):
        axis = figure.add_subplot(height, width, place)
        for side, numbers in seeds.items():
            curves = [read_curve(runs / f"{task}-{side}-{seed}") for seed in numbers]
            steps = curves[0][0]  # those of the others may differ by a rollout
            values = np.stack([np.interp(steps, *curve) for curve in curves]).T
            axis.plot(steps, [interquartile_mean(column) for column in values], label=side, linewidth=1.6)
            bounds = np.array([bootstrap_interval(column, resamples=500) for column in values])
            axis.fill_between(steps, *bounds.T, alpha=0.2)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("transitions", fontsize=8)
        axis.set_ylabel("reward units per episode, greedy", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.tight_layout()
    save_figure(figure, out)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
