"""Learning curves from a run's `progress.csv`, as PNG; every axis has a label and a unit."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from reward_models.aside import aside


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One panel: a column of `progress.csv`, or several that share a unit."""

    column: str  # its first curve
    title: str  # what it shows
    unit: str  # of the vertical axis
    name: str = ""  # of the first curve, where there is another one
    others: tuple[tuple[str, str], ...] = ()  # more curves in the same panel: (column, name)
    threshold: float | None = None  # drawn as a dashed line: from here on the task counts as solved


TEXT_CURVES = (
    Curve(column="rollout/score", title="Score of the reward model", unit="reward units"),
    Curve(
        column="eval/accuracy", title="Held-out rows", unit="share", name="accuracy",
        others=tuple((f"eval/pass_at_{k}", f"pass@{k}") for k in (1, 4, 16)),
    ),
    Curve(column="rollout/kl_per_sequence", title="KL to the reference", unit="nats per sequence"),
    Curve(column="train/entropy", title="Entropy of the policy", unit="nats per token"),
    Curve(column="train/clip_fraction", title="Clip fraction", unit="share of tokens"),
    Curve(column="train/explained_variance", title="Explained variance of the critic", unit="share, at most 1"),
    Curve(column="rollout/length_mean", title="Length of the completions", unit="tokens"),
)  # fmt: skip
CONTROL_CURVES = (
    Curve(
        column="eval/return_mean", title="Return", unit="reward units per episode", name="greedy actions, evaluation",
        others=(("rollout/return_mean", "sampled actions, last 100 episodes"),),
    ),
    Curve(column="train/entropy", title="Entropy of the policy", unit="nats per step"),
    Curve(column="train/explained_variance", title="Explained variance of the critic", unit="share, at most 1"),
)  # fmt: skip
FIT_CURVES = (
    Curve(column="train/loss", title="Training loss", unit="nats per token"),
    Curve(column="validation/loss", title="Held-out loss", unit="nats per token"),
    Curve(column="validation/perplexity", title="Held-out perplexity", unit="per token"),
)
REWARD_CURVES = (
    Curve(column="train/loss", title="Training loss", unit="nats per comparison"),
    Curve(column="validation/loss", title="Held-out loss", unit="nats per comparison"),
)


def read_columns(path: Path) -> dict[str, list[float]]:
    """Columns of a CSV of numbers; an empty field is NaN."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [float(row[name]) if row[name] else float("nan") for row in rows] for name in (rows[0] if rows else ())
    }


def plot_run(run_dir: Path, curves: Sequence[Curve], out: Path, *, title: str, unit: str) -> Path:
    """Draw the ``curves`` of a run into the PNG ``out``; see `draw_run`."""
    with aside(out) as part, part.open("wb") as file:
        draw_run(run_dir, curves, file, title=title, unit=unit)
    return out


def draw_run(run_dir: Path, curves: Sequence[Curve], file: IO[bytes], *, title: str = "", unit: str) -> None:
    """Draw the ``curves`` that a run has logged, one panel each, over its steps, as PNG.

    Panels none of whose columns was logged are left out; ``unit`` is of the horizontal axis, `time/steps`.

    Raises:
        ValueError: if none of the columns was logged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = read_columns(run_dir / "progress.csv")
    drawn = [curve for curve in curves if {curve.column, *(other for other, _ in curve.others)} & columns.keys()]
    if not drawn:
        raise ValueError(f"{run_dir / 'progress.csv'} has none of {[curve.column for curve in curves]}")
    width = min(3, len(drawn))
    height = -(-len(drawn) // width)
    figure = Figure(figsize=(4.2 * width, 2.9 * height))
    FigureCanvasAgg(figure)
    for place, curve in enumerate(drawn, 1):
        axis = figure.add_subplot(height, width, place)
        for column, name in ((curve.column, curve.name), *curve.others):
            # A row is of a rollout or of an evaluation; the fields of the other are empty.
            pairs = zip(columns["time/steps"], columns.get(column, []), strict=False)
            points = [point for point in pairs if point[1] == point[1]]
            if points:
                axis.plot(*zip(*points, strict=True), linewidth=1.6, label=name, marker="." if len(points) == 1 else "")
        if curve.threshold is not None:
            axis.axhline(curve.threshold, color="gray", linestyle="--", label=f"solved: {curve.threshold:g}")
        if curve.others or curve.threshold is not None:
            axis.legend(fontsize=7)
        axis.set_title(curve.title, fontsize=9)
        axis.set_xlabel(unit, fontsize=8)
        axis.set_ylabel(curve.unit, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=110)
