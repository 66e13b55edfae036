"""What a run has left in its folder so far, read for people: a file that is missing or damaged is passed over."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.reports.kinds import KINDS, Kind
from agents.runs.machine import MACHINE
from agents.runs.own_files import read_marker, script_of
from agents.runs.run_dir import CONFIG, SUMMARY, RunDirError, in_use_by

PROGRESS, FRONTIER, SAMPLES, TOKENS, MONITORS = (
    "progress.csv",
    "frontier.csv",
    "samples.json",
    "tokens.html",
    "monitors.json",
)
STEPS = "time/steps"
Columns = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a training command."""

    folder: Path
    script: str  # of `KINDS`
    began: str  # ISO
    state: str  # "finished", "running" or "stopped"
    settings: dict[str, Any]
    summary: dict[str, Any]
    columns: Columns  # of progress.csv
    points: Columns  # of frontier.csv
    samples: list[dict[str, Any]]
    monitors: list[dict[str, Any]]
    machine: dict[str, Any]
    stages: dict[str, Run]  # by title

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    @property
    def kind(self) -> Kind:
        """What its report shows."""
        return KINDS[self.script]

    @property
    def steps(self) -> float:
        """Steps so far, in the kind's unit."""
        return max((step for step in self.columns.get(STEPS, ()) if step == step), default=0.0)


def read_run(folder: Path) -> Run:
    """Read the run in ``folder``; RunDirError if there is no run of a training command."""
    script = script_of(folder)
    if script not in KINDS:
        what = f"a run of {script}" if script else "no run"
        raise RunDirError(f"{folder}: expected the folder of a training run, received {what}")
    summary = _json(folder / SUMMARY, {})
    owner = in_use_by(folder)
    state = "finished" if summary else "running" if owner not in (None, os.getpid()) else "stopped"
    inside = [(folder / name, title) for name, title in KINDS[script].stages]
    return Run(
        folder=folder,
        script=script,
        began=read_marker(folder)[1],
        state=state,
        summary=summary,
        settings=_json(folder / CONFIG, {}),
        columns=_columns(folder / PROGRESS),
        points=_columns(folder / FRONTIER),
        samples=_objects(_json(folder / SAMPLES, {}).get("samples")),
        monitors=_objects(_json(folder / MONITORS, [])),
        machine=_json(folder / MACHINE, {}),
        stages={title: read_run(path) for path, title in inside if path.is_dir() and script_of(path) in KINDS},
    )


def read_columns(path: Path) -> Columns:
    """Columns of a CSV of numbers; an empty field is NaN, a last line that is still being written is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
    return {
        name: [float(row[name]) if row[name] else float("nan") for row in rows] for name in (rows[0] if rows else ())
    }


def _columns(path: Path) -> Columns:
    try:
        return read_columns(path)
    except (OSError, ValueError, TypeError):
        return {}


def _objects(found: Any) -> list[dict[str, Any]]:
    """The objects in a list."""
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _json(path: Path, default: Any) -> Any:
    """The JSON in ``path`` if it is of the type of ``default``, which it is otherwise."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    return found if isinstance(found, type(default)) else default
