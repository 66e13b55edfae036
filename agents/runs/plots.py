"""Learning curves from a run's `progress.csv`, as PNG."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One panel: a column of `progress.csv`, and how it is labeled (with its unit)."""

    column: str
    label: str


TEXT_CURVES = (
    Curve(column="rollout/score", label="reward-model score"),
    Curve(column="rollout/kl_per_sequence", label="KL to the start (nats per sequence)"),
    Curve(column="train/entropy", label="entropy (nats per token)"),
    Curve(column="train/clip_fraction", label="clip fraction"),
    Curve(column="train/explained_variance", label="explained variance of V"),
    Curve(column="rollout/length_mean", label="length (tokens)"),
)
CONTROL_CURVES = (
    Curve(column="rollout/return_mean", label="return (last 100 episodes)"),
    Curve(column="train/entropy", label="entropy (nats per step)"),
    Curve(column="train/explained_variance", label="explained variance of V"),
)


def read_columns(path: Path) -> dict[str, list[float]]:
    """Columns of a CSV of numbers; an empty field is NaN."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [float(row[name]) if row[name] else float("nan") for row in rows] for name in (rows[0] if rows else ())
    }


def plot_run(run_dir: Path, curves: Sequence[Curve], out: Path, *, title: str, step: str = "time/steps") -> Path:
    """Draw the ``curves`` that a run has logged, one panel each, over its steps.

    Args:
        run_dir: folder with `progress.csv`.
        curves: panels; one whose column was not logged is left out.
        out: PNG to write, aside first.
        title: above the panels.
        step: column of the horizontal axis.

    Raises:
        ValueError: if none of the columns was logged.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = read_columns(run_dir / "progress.csv")
    drawn = [curve for curve in curves if curve.column in columns]
    if not drawn:
        raise ValueError(f"{run_dir / 'progress.csv'} has none of {[curve.column for curve in curves]}")
    width = min(3, len(drawn))
    height = -(-len(drawn) // width)
    figure, axes = plt.subplots(height, width, figsize=(4.2 * width, 2.9 * height), squeeze=False)
    for axis, curve in zip(axes.flat, drawn, strict=False):
        # A row is of a rollout or of an evaluation; the fields of the other are empty.
        points = [point for point in zip(columns[step], columns[curve.column], strict=True) if point[1] == point[1]]
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=1.6)
        axis.set_title(curve.label, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    aside = out.with_suffix(".part")
    figure.savefig(aside, format="png", dpi=110)
    plt.close(figure)
    os.replace(aside, out)
    return out
