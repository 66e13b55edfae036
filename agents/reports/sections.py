"""What a run's page shows, made of what the run left: figures, charts, samples, checks, facts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from agents.reports.changes import changes
from agents.reports.chart import Series, chart
from agents.reports.kinds import CARTPOLE, CARTPOLE_THRESHOLD, Curve, Figure, curves_of
from agents.reports.run_files import STEPS, TOKENS, Columns, Run, read_columns
from agents.reports.statistics import Interval, mean_interval
from agents.runs.own_files import read_marker, script_of
from agents.runs.run_dir import CONFIG, SUMMARY, RunDirError, read_json

NONE: Interval = (math.nan, math.nan)
SHOWN, MOST_SAMPLES, LONGEST = 6, 60, 2000
"""Samples that are open; that are on the page; and characters of a text that are shown."""
LARGEST_TOKEN_PAGE = 1_000_000
"""Bytes of `tokens.html` up to which it is part of the page, which else has a link to it."""


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


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart with its title and legend."""

    title: str
    svg: Markup
    legend: list[Series]
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check that preceded the run said."""

    title: str
    passed: bool
    what: str
    folder: Path
    lines: list[tuple[str, str]] = field(default_factory=list)  # claims that failed, or of exact environments


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
                Series(name=line.name, x=steps, y=y, low=low, high=high, band=line.band if low else "",
                       color=len(series))
            )  # fmt: skip
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
                name=label, x=columns["kl_per_sequence"], y=columns[name], color=color, whiskers=True,
                low=[y - 1.96 * se for y, se in zip(columns[name], errors, strict=False)],
                high=[y + 1.96 * se for y, se in zip(columns[name], errors, strict=False)],
                band=f"{label}: 95% interval" if errors else "",
            )
            for color, (label, columns) in enumerate((("this run", run.points), ("best of n", best)))
            if {name, "kl_per_sequence"} <= columns.keys()
            for errors in [columns.get(f"{name}_se", [])]
        ]  # fmt: skip
        label = "KL to the start, nats per sequence (square-root scale)"
        made.append(panel(title, series, x_label=label, y_label=unit, root=True) if series else None)
    return [each for each in made if each is not None]


def samples(run: Run) -> list[dict[str, Any]]:
    """Texts before and after with what changed, and the numbers of each."""
    shown = []
    for sample in run.samples[:MOST_SAMPLES]:
        texts = {name: str(sample.get(name) or "").strip() for name in ("prompt", "target", "before", "after")}
        cut = {name: text if len(text) <= LONGEST else text[:LONGEST] + " …" for name, text in texts.items()}
        old, new = changes(cut["before"], cut["after"])
        stems = [name.removesuffix("_after") for name in sample if name.endswith("_after")]
        numbers = [(stem, sample.get(f"{stem}_before"), sample[f"{stem}_after"]) for stem in stems]
        numbers = [each for each in numbers if isinstance(each[1], float) and isinstance(each[2], float)]
        shown.append(cut | {"before": old, "after": new, "numbers": numbers})
    return shown


def token_page(run: Run) -> tuple[str, bool]:
    """The page of tokens, or "" if it is none; and whether there is one that is too large for a part of a page."""
    path = run.folder / TOKENS
    if not path.is_file():
        return "", False
    large = path.stat().st_size > LARGEST_TOKEN_PAGE
    return ("" if large else path.read_text(encoding="utf-8")), large


def verdicts(run: Run) -> list[Verdict]:
    """The newest finished CartPole run and proof beside a run of text that ended before it began."""
    if run.script != "train_text":
        return []
    newest: dict[str, Verdict] = {}
    beside = (path for path in run.folder.resolve().parent.iterdir() if (path / SUMMARY).is_file())
    began = [(read_marker(path)[1], path) for path in beside if script_of(path) in ("train_control", "verify")]
    for when, path in sorted(began):
        try:
            found = _verdict(path) if when < run.began else None
        except (RunDirError, KeyError, TypeError):
            continue
        if found is not None:
            newest[found.title] = found
    return list(newest.values())


def _verdict(folder: Path) -> Verdict | None:
    summary = read_json(folder / SUMMARY)
    if script_of(folder) == "verify":
        told = {claim: str(what) for claim, what in summary.items() if isinstance(what, str)}
        lines = [(claim, what) for claim, what in told.items() if not what.startswith("pass") or "optimum" in claim]
        what = f"{summary['passed']} checks passed, {summary['failed']} failed"
        return Verdict(title="Proof", passed=not summary["failed"], what=what, folder=folder, lines=lines)
    if read_json(folder / CONFIG).get("env") != CARTPOLE:
        return None
    mean, number = summary["eval_return_mean"], summary["eval_episodes"]
    return Verdict(
        title=CARTPOLE, passed=mean >= CARTPOLE_THRESHOLD, folder=folder,
        what=f"{str(summary['algorithm']).upper()} reached a mean return of {mean:.1f} over {number} greedy episodes; "
        f"solved from {CARTPOLE_THRESHOLD:g}",
    )  # fmt: skip


def commands(run: Run) -> list[str]:
    """To go on with."""
    folder = shlex.quote(str(run.folder))
    command = run.script.replace("_", "-")
    more = [f"textenvs compare {folder} OTHER-RUN", f"tensorboard --logdir {folder}"]
    if run.state == "finished":
        return [*(each.replace("{run}", folder) for each in run.kind.commands), *more[bool(run.kind.stages) :]]
    going_on = {"running": f"textenvs watch {folder}"}.get(
        run.state, f"textenvs {command} --run-dir {folder} --resume  # and the flags that it began with"
    )
    return [going_on, *more[bool(run.kind.stages) :]]


def facts(run: Run) -> list[tuple[str, str]]:
    """The run in a few lines: what, on what, how long."""
    settings, machine = run.settings, _machine(run)
    model = settings.get("model") or ("the shipped language model" if run.script != "train_control" else None)
    rewards = settings.get("reward") or ("the shipped reward model" if run.script == "train_text" else None)
    total = settings.get(run.kind.length or "")
    if isinstance(total, int | float) and run.state != "finished":
        progress = f"{run.steps:,.0f} of {total:,.0f} {run.kind.unit}"
    else:
        progress = f"{run.steps:,.0f} {run.kind.unit}" if run.steps else ""
    found: Mapping[str, Any] = {
        "Environment": settings.get("env") or settings.get("tools"),
        "Algorithm": str(settings["algorithm"]).upper() if settings.get("algorithm") else None,
        "Model": model,
        "Reward": ", ".join(rewards) if isinstance(rewards, list) else rewards,
        "Data": settings.get("rows") or settings.get("data") or settings.get("pairs"),
        "Seed": settings.get("seed"),
        "Trained on": progress,
        "Time": seconds(run.summary.get("wall_s")),
        "Began": run.began[:16].replace("T", " "),
        "Machine": ", ".join(str(machine[name]) for name in ("processor", "gpu") if machine.get(name)),
        "Cores and memory": f"{machine['cores']}, {machine['memory_gb']} GB" if "cores" in machine else None,
        "Versions": ", ".join(
            f"{name} {machine[name]}" for name in ("textenvs", "torch", "python") if machine.get(name)
        ),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "", [])]


def _machine(run: Run) -> dict[str, Any]:
    """Its own or, of a run of stages, that of one of them."""
    return next((each.machine for each in (run, *run.stages.values()) if each.machine), {})


def seconds(value: object) -> str | None:
    """A time for people; None if it is not known."""
    if not isinstance(value, int | float):
        return None
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
