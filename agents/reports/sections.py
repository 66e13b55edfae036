"""What a run's page shows, made of what the run left: figures, charts, samples, checks, facts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.reports.changes import changes
from agents.reports.kinds import CARTPOLE, CARTPOLE_THRESHOLD
from agents.reports.run_files import TOKENS, Run
from agents.runs.own_files import read_marker, script_of
from agents.runs.run_dir import CONFIG, SUMMARY, RunDirError, read_json

SHOWN, MOST_SAMPLES, LONGEST = 6, 60, 2000
"""Samples that are open; that are on the page; and characters of a text that are shown."""
LARGEST_TOKEN_PAGE = 1_000_000
"""Bytes of `tokens.html` up to which it is part of the page, which else has a link to it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check that preceded the run said."""

    title: str
    passed: bool
    what: str
    folder: Path
    lines: list[tuple[str, str]] = field(default_factory=list)  # claims that failed, and those of optimality


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
        lines = [
            (claim, what)
            for claim, what in told.items()
            if not what.startswith(("pass", "n/a")) or "optimality" in claim
        ]
        what = f"{summary['passed']} checks passed, {summary['failed']} failed"
        return Verdict(title="Proof", passed=not summary["failed"], what=what, folder=folder, lines=lines)
    if read_json(folder / CONFIG).get("env") != CARTPOLE:
        return None
    mean, number = summary["eval_return_mean"], summary["eval_episodes"]
    return Verdict(
        title=CARTPOLE,
        passed=mean >= CARTPOLE_THRESHOLD,
        folder=folder,
        what=f"{str(summary['algorithm']).upper()} reached a mean return of {mean:.1f} over {number} greedy episodes; "
        f"solved from {CARTPOLE_THRESHOLD:g}",
    )


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
