"""A run's charts with their titles and legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from agents.reports.chart import Series, chart
from agents.reports.kinds import Curve, curves_of
from agents.reports.run_files import STEPS, Columns, Run, read_columns


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart with its title and legend."""

    title: str
    svg: Markup
    legend: list[Series]
    threshold: float | None = None


def panels(run: Run) -> list[Panel]:
    """A chart for each of the kind's curves that was logged."""
    env = run.settings.get("env")
    made = (_panel(curve, run.columns, run.kind.unit) for curve in curves_of(run.kind, env))
    return [panel for panel in made if panel is not None]


def _panel(curve: Curve, columns: Columns, unit: str) -> Panel | None:
    series: list[Series] = []
    steps = columns.get(STEPS, [])
    for line in curve.lines:
        y = columns.get(line.column, [])
        low: Sequence[float] = ()
        high: Sequence[float] = ()
        if line.error in columns:
            errors = [line.scale * each for each in columns[line.error]]
            low = [value - error for value, error in zip(y, errors, strict=False)]
            high = [value + error for value, error in zip(y, errors, strict=False)]
        elif line.between is not None and set(line.between) <= columns.keys():
            low, high = (columns[name] for name in line.between)
        if len(y) == len(steps):
            series.append(
                Series(
                    name=line.name, x=steps, y=y, low=low, high=high, band=line.band if low else "", color=len(series)
                )
            )
    return panel(curve.title, series, x_label=unit, y_label=curve.unit, threshold=curve.threshold)


def panel(title: str, series: Sequence[Series], *, x_label: str, y_label: str, **options: Any) -> Panel | None:
    """The chart of `series` with its legend; None if no value is finite."""
    svg = chart(series, title=title, x_label=x_label, y_label=y_label, **options)
    if svg is None:
        return None
    drawn = [each for each in series if each.points]
    return Panel(title=title, svg=svg, legend=drawn, threshold=options.get("threshold"))


def frontier(run: Run) -> list[Panel]:
    """Reward, and the judge's score, over KL along the run; best-of-n beside it if that was measured in its folder."""
    best: Columns = {}
    table = run.folder / "best_of_n" / "best_of_n.csv"
    if table.is_file():
        best = read_columns(table)
    made = []
    for name, title, unit in (
        ("score", "Reward over KL", "reward units"),
        ("judge", "Independent judge over KL", "log-odds"),
    ):
        series = [
            Series(
                name=label,
                x=columns["kl_per_sequence"],
                y=columns[name],
                color=color,
                whiskers=True,
                low=[y - 1.96 * se for y, se in zip(columns[name], errors, strict=False)],
                high=[y + 1.96 * se for y, se in zip(columns[name], errors, strict=False)],
                band=f"{label}: 95% interval" if errors else "",
            )
            for color, (label, columns) in enumerate((("this run", run.points), ("best of n", best)))
            if {name, "kl_per_sequence"} <= columns.keys()
            for errors in [columns.get(f"{name}_se", [])]
        ]
        label = "KL to the start, nats per sequence (square-root scale)"
        made.append(panel(title, series, x_label=label, y_label=unit, root=True) if series else None)
    return [each for each in made if each is not None]
