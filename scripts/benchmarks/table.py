"""A comparison as a table: one row per measurement with ours, the peer's and the ratio; and curves over steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.runs.plots import read_columns
from scripts.benchmarks.interquartile import interquartile_mean, stratified_interval

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and greedy mean returns."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of both sides."""

    name: str
    """what was measured"""
    ours: float
    """our value"""
    peer: float
    """the peer's"""
    unit: str
    """of both"""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95% intervals by side"""
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """smallest and largest by side"""
    counts: dict[str, int] = field(default_factory=dict)
    """measurements by side"""
    must: float | None = None
    """required bound of the ratio; None: there is none"""
    aim: float | None = None
    """bound of the ratio that we aim for"""
    at_most: bool = False
    """whether the ratio stays below its bounds, rather than above"""
    details: dict[str, Any] = field(default_factory=dict)
    """further values, for ``summary.json`` only"""

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


def timing_row(name: str, found: dict[str, list[float]], *, statistic: str, unit: str, peer: str = "sb3") -> Row:
    """A row of medians, with the smallest and largest measurement of either side."""
    if statistic != "median":
        raise ValueError(f"statistic is 'median', received {statistic!r}")
    return Row(
        name=name,
        ours=float(np.median(found["ours"])),
        peer=float(np.median(found[peer])),
        unit=f"{unit}, median",
        extremes={side: (min(values), max(values)) for side, values in found.items()},
        counts={side: len(values) for side, values in found.items()},
    )


def to_markdown(rows: Sequence[Row], *, peer: str = "sb3") -> str:
    """The table as Markdown: value, interval (or range) and ratio."""

    def side(row: Row, name: str, value: float) -> str:
        spread = row.intervals.get(name) or row.extremes.get(name)
        brackets = "" if spread is None else f" [{_short(spread[0])}, {_short(spread[1])}]"
        count = f" (n={row.counts[name]})" if name in row.counts else ""
        return f"{_short(value)}{brackets}{count}"

    with_bounds = any(row.verdict for row in rows)
    head = ["what", "unit", "ours", peer, f"ours ÷ {peer}", *(["must", "aim", "kept"] if with_bounds else [])]
    lines = [_line(head), "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name, row.unit, side(row, "ours", row.ours), side(row, peer, row.peer), f"{row.ratio:.3f}"]
        lines.append(_line(cells + ([row.bound("must"), row.bound("aim"), row.verdict] if with_bounds else [])))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read_curve(run_dir: Path) -> Curve:
    """Steps and greedy mean returns that a run logged."""
    columns = read_columns(run_dir / "progress.csv")
    steps, returns = np.array(columns["time/steps"]), np.array(columns["eval/return_mean"])
    logged = ~np.isnan(returns)
    return steps[logged], returns[logged]


def plot_curves(curves: dict[str, dict[str, list[Curve]]], out: Path) -> Path:
    """A panel a task: each side's interquartile mean over steps, with its 95% interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    width = min(3, len(curves))
    height = -(-len(curves) // width)
    figure, axes = plt.subplots(height, width, figsize=(4.2 * width, 3.0 * height), squeeze=False)
    for axis, (task, sides) in zip(axes.flat, curves.items(), strict=False):
        for side, runs in sides.items():
            steps, means, low, high = _band(runs)
            axis.plot(steps, means, label=side, linewidth=1.6)
            axis.fill_between(steps, low, high, alpha=0.2)
        axis.set_title(task, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(curves) :]:
        axis.set_visible(False)
    axes.flat[0].legend()
    figure.tight_layout()
    aside = out.with_suffix(".part")
    figure.savefig(aside, format="png", dpi=110)
    plt.close(figure)
    os.replace(aside, out)
    return out


def _band(runs: list[Curve]) -> tuple[NDArray[np.float64], ...]:
    """Steps, interquartile means and interval bounds of curves whose steps may differ by a rollout."""
    steps = runs[0][0]
    values = np.stack([np.interp(steps, *run) for run in runs])
    bounds = [stratified_interval([column], resamples=500) for column in values.T]
    means = [interquartile_mean(column) for column in values.T]
    return steps, np.array(means), np.array([b[0] for b in bounds]), np.array([b[1] for b in bounds])


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
