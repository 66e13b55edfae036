"""`compare.html`: groups of runs on one page, each group's runs differing in their seed alone or as the user says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.reports.chart import MOST, Series
from agents.reports.figures import measured
from agents.reports.kinds import Curve, Figure, Line, curves_of
from agents.reports.page import render
from agents.reports.panels import Panel, panel
from agents.reports.run_files import STEPS, Run, read_run
from agents.reports.statistics import (
    Interval,
    improvement_interval,
    mean_band,
    mean_interval,
    probability_of_improvement,
)
from agents.runs.run_dir import flat
from reward_models.aside import write_aside

OURS = '<meta name="generator" content="textenvs">'


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one way to train."""

    name: str
    runs: list[Run]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A figure in every group: its value in each run, and how likely a run is to beat one of the first group."""

    figure: Figure
    values: list[list[float]]  # by group
    means: list[tuple[float, Interval] | None]  # by group; None: it was not measured
    improvement: list[tuple[float, Interval] | None]  # by group; None: of the first, and of what has no better


def write_comparison(out: Path, folders: Sequence[Path], named: Sequence[str] = ()) -> list[Group]:
    """Write the page of the runs in ``folders``, and of groups ``named`` as "name=folder,folder"; the groups.

    Raises:
        RunDirError: if a folder holds no training run.
        ValueError: if there is no run, the runs are of several commands, or ``out`` is somebody else's.
    """
    groups = grouped(folders, named)
    if out.exists() and (out.is_dir() or OURS not in out.read_text(encoding="utf-8", errors="replace")):
        raise ValueError(f"{out}: expected a page of textenvs to replace, received another file: choose another --out")
    figures = compared(groups)
    write_aside(
        out,
        render(
            "compare.html",
            groups=groups,
            kind=groups[0].runs[0].kind,
            script=groups[0].runs[0].script,
            figures=figures,
            differing=differing(groups),
            panels=panels(groups),
        ),
    )
    return groups


def grouped(folders: Sequence[Path], named: Sequence[str]) -> list[Group]:
    """Groups by settings without the seed, and those that have a name; where names are the same, by their folders."""
    runs = [read_run(folder) for folder in folders]
    groups: list[Group] = []
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        by_settings.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    groups += [Group(name=members[0].name, runs=members) for members in by_settings.values()]
    groups = _by_what_differs(groups)
    for words in named:
        name, equals, paths = words.partition("=")
        if not (name and equals and paths):
            raise ValueError(f"group: expected name=folder,folder, received {words!r}")
        groups.append(Group(name=name, runs=[read_run(Path(path)) for path in paths.split(",")]))
    every = [run for group in groups for run in group.runs]
    if not every:
        raise ValueError("runs: expected the folders of training runs, received none")
    scripts = sorted({run.script for run in every})
    if len(scripts) > 1 or not every[0].kind.curves:
        raise ValueError(f"runs: expected runs of one training command, received runs of {', '.join(scripts)}")
    tasks = list(dict.fromkeys(str(run.settings.get("env")) for run in every))
    if len(tasks) > 1:
        raise ValueError(f"runs: expected runs of one environment, received runs of {', '.join(tasks)}")
    places = [run.folder.resolve() for run in every]
    twice = [str(run.folder) for run in every if places.count(run.folder.resolve()) > 1]
    if twice:
        raise ValueError(f"runs: expected every run once, received {twice[0]} twice")
    names = [group.name for group in groups]
    return [
        replace(group, name=str(group.runs[0].folder)) if names.count(group.name) > 1 else group for group in groups
    ]


def _by_what_differs(groups: list[Group]) -> list[Group]:
    """The groups named by the settings that tell them apart, if those are few."""
    rows = differing(groups)
    if not 1 <= len(rows) <= 2:
        return groups
    names = [", ".join(f"{key} {values[i]}" for key, values in rows) for i in range(len(groups))]
    return [replace(group, name=name) for group, name in zip(groups, names, strict=True)]


def _settings(run: Run) -> dict[str, Any]:
    found = flat(run.settings).items()
    return {name.removeprefix("settings."): value for name, value in found if name.rpartition(".")[2] != "seed"}


def differing(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all groups, but the seed, with each group's value, or values."""
    every: list[Mapping[str, Any]] = [_settings(run) for group in groups for run in group.runs]
    names = dict.fromkeys(name for each in every for name in each)
    told = {name: [_values(group, name) for group in groups] for name in names}
    return [(name, values) for name, values in told.items() if len(set(values)) > 1]


def _values(group: Group, name: str) -> str:
    return " or ".join(dict.fromkeys(str(_settings(run).get(name)) for run in group.runs))


def compared(groups: Sequence[Group]) -> list[Compared]:
    """The figures that were measured in any run."""
    figures = groups[0].runs[0].kind.figures
    found = [[{each.figure.key: each.after for each in measured(run)} for run in group.runs] for group in groups]
    made = []
    for figure in figures:
        values = [[run[figure.key] for run in group if figure.key in run] for group in found]
        if any(values):
            means = [(float(np.mean(each)), mean_interval(each)) if each else None for each in values]
            better = [_improvement(figure, each, values[0]) for each in values[1:]]
            made.append(Compared(figure=figure, values=values, means=means, improvement=[None, *better]))
    return made


def _improvement(figure: Figure, values: list[float], first: list[float]) -> tuple[float, Interval] | None:
    if not figure.better or not values or not first:
        return None
    ours, theirs = ([figure.better * value for value in each] for each in (values, first))
    return probability_of_improvement(ours, theirs), improvement_interval(ours, theirs)


def panels(groups: Sequence[Group]) -> list[Panel]:
    """A chart for each line of the kind's curves: every group's mean over its runs, with 95% intervals."""
    first = groups[0].runs[0]
    made = [
        _panel(curve, line, groups, first.kind.unit)
        for curve in curves_of(first.kind, first.settings.get("env"))
        for line in curve.lines
    ]
    return [each for each in made if each is not None]


def _panel(curve: Curve, line: Line, groups: Sequence[Group], unit: str) -> Panel | None:
    made = [
        mean_curve([(run.columns.get(STEPS, []), run.columns.get(line.column, [])) for run in group.runs], group.name)
        for group in groups
    ]
    series = [replace(each, color=color) for color, each in zip(count(), made) if each is not None]
    title = f"{curve.title}: {line.name}" if line.name and len(curve.lines) > 1 else curve.title
    return panel(title, series, x_label=unit, y_label=curve.unit, threshold=curve.threshold) if series else None


def mean_curve(curves: Sequence[tuple[Sequence[float], Sequence[float]]], name: str = "") -> Series | None:
    """The mean of curves (x, y) where all have values, linear between their points, with its 95% interval over them.

    Curves without a finite value are left out; None if no place is common to the others. Of one there is no interval.
    """
    finite: list[NDArray[np.float64]] = []
    for x, y in curves:
        points = np.array([x, y], dtype=np.float64) if len(x) == len(y) else np.empty((2, 0))
        points = points[:, np.isfinite(points).all(axis=0)]
        if points.size:
            finite.append(points)
    if not finite:
        return None
    grid = np.unique(np.concatenate([points[0] for points in finite]))
    grid = grid[(grid >= max(points[0, 0] for points in finite)) & (grid <= min(points[0, -1] for points in finite))]
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, MOST).astype(int))] if len(grid) > MOST else grid
    if not len(grid):
        return None
    values = np.stack([np.interp(grid, *points) for points in finite])
    mean = values.mean(axis=0).tolist()
    if len(finite) == 1:
        return Series(name=name, x=grid.tolist(), y=mean)
    low, high = (each.tolist() for each in mean_band(values))
    return Series(name=name, x=grid.tolist(), y=mean, low=low, high=high)
