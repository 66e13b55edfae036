"""The run of ``textenvs frontier``; its settings are in `agents.recipes.commands.frontier`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.curve import FRONTIER, read_points
from agents.evaluation.frontier_plot import draw
from agents.evaluation.gao_fit import MEASURES, Points, Trail, at_budget
from agents.recipes import best_of_n
from agents.recipes.best_of_n import task_of
from agents.recipes.commands.best_of_n import BestOfNConfig
from agents.recipes.commands.frontier import FrontierConfig
from agents.reports.page import write_report
from agents.runs.own_files import script_of
from agents.runs.run_dir import CONFIG, SUMMARY, RunDir, read_json

JSON, PICTURE = "frontier.json", "frontier.png"
BEST_OF_N = "best_of_n"
ENOUGH = 0.95
"""Share of the judge's highest gain of which it is said how few nats it takes."""


def main(config: FrontierConfig) -> dict[str, Any]:
    """Draw; returns what ``summary.json`` holds."""
    tables = {name: columns_of(folder / FRONTIER) for name, folder in _named(config.run_dir).items()}
    wanted = _best_of_n_wanted(config)
    folder, reads = config.out or config.run_dir[0] / "frontier", (*config.run_dir, Path(wanted.run_dir))
    with RunDir(folder, script="frontier", overwrite=config.overwrite, reads=reads, flag="--out") as out:
        if not (Path(wanted.run_dir) / best_of_n.TABLE).exists():
            best_of_n.main(wanted)
        best = columns_of(Path(wanted.run_dir) / best_of_n.TABLE)
        start = {measure: float(best[measure][0]) for measure in MEASURES if measure in best}
        rival = Trail.of(f"best of {len(best['n'])}", "best_of_n", best, start)
        runs = [Trail.of(name, "rl", points, start) for name, points in tables.items()]
        found = {run.name: figures(run, rival, config.budget) for run in runs}
        summary = {"budget_nats": config.budget, **figures_of_rival(rival)}
        summary |= {f"{name}/{key}": value for name, of in found.items() for key, value in of.items()}
        out.begin(asdict(config))
        out.write_json(JSON, {BEST_OF_N: rival.as_dict(), "runs": {run.name: run.as_dict() for run in runs}})
        draw(out.path / PICTURE, runs, rival, config.budget)
        out.write_json(SUMMARY, summary)
        if script_of(config.run_dir[0]) == "train_text":
            write_report(config.run_dir[0])  # which now has best-of-n
        for name, of in found.items():
            print(f"{name}: {advice(of)}")
        return summary


def figures(run: Trail, rival: Trail, budget: float) -> dict[str, float | bool | None]:
    """What is read off a run's points and curves.

    Returns:
        ``kl_efficiency`` and its standard error, the gains at the budget they come from, the fits' coefficients, and,
        where there was a judge, where its curve peaks, whether that was measured, and how many nats to take.
    """
    kl = run.points["kl_per_sequence"]
    found: dict[str, float | bool | None] = {"largest_kl": float(kl.max())}
    for measure, gain in run.gains.items():
        found[f"{measure}_gain_at_budget"] = at_budget(kl, gain, budget)
        fit = run.fits[measure]
        found |= {f"{measure}_alpha": fit.alpha, f"{measure}_beta": fit.beta, f"{measure}_fit_error": fit.error}
    gained, error = found["score_gain_at_budget"], at_budget(kl, run.points["score_se"], budget)
    best = float(rival.gains["score"][-1])
    found["kl_efficiency"] = None if gained is None else gained / best
    found["kl_efficiency_se"] = None if error is None else error / best
    if "judge" in run.gains:
        found["judge_win_rate_at_budget"] = at_budget(kl, run.points["judge_win_rate"], budget)
        peak, largest = run.fits["judge"].peak_kl, float(kl.max())
        found["judge_peak_kl"] = peak
        found["judge_peaks_within_run"] = peak is not None and peak <= largest
        found["kl_budget"] = largest if peak is None else min(peak, largest)
        found["kl_for_most_of_it"] = run.fits["judge"].reaches(ENOUGH, largest)
    return found


def figures_of_rival(rival: Trail) -> dict[str, float | None]:
    """The largest n, what it gains and what it costs."""
    found: dict[str, float | None] = {
        "best_of_n": float(rival.points["n"][-1]),
        "best_of_n_kl": float(rival.points["kl_per_sequence"][-1]),
    }
    found |= {f"best_of_n_{measure}_gain": float(gain[-1]) for measure, gain in rival.gains.items()}
    if "judge_win_rate" in rival.points:
        found["best_of_n_judge_win_rate"] = float(rival.points["judge_win_rate"][-1])
    return found


def advice(found: dict[str, Any]) -> str:
    """In a sentence: how much KL to take."""
    if "kl_budget" not in found:
        return "no judge was asked, so nothing tells how much of the reward is real"
    if found["kl_for_most_of_it"] is None:
        return "the judge sees no gain at any KL: take none of it"
    most = f"{ENOUGH:.0%} of the judge's gain is there at {found['kl_for_most_of_it']:.1f} nats per sequence"
    if found["judge_peaks_within_run"]:
        return f"take at most {found['kl_budget']:.1f} nats per sequence, where the judge peaks; {most}"
    return f"the judge has not peaked within the {found['kl_budget']:.1f} nats per sequence of this run; {most}"


def columns_of(path: Path) -> Points:
    """The columns of a table of points that are filled in all of its lines; ValueError if there is no such table, or it
    has fewer than three points."""
    points = read_points(path)
    if len(points) < 3:
        raise ValueError(f"{path} has {len(points)} points, too few for a curve: train on, or --evaluate-every less")
    columns = {name: [point[name] for point in points] for name in points[0]}
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items() if None not in values}


def _best_of_n_wanted(config: FrontierConfig) -> BestOfNConfig:
    """Best-of-n of the runs' task, which lies there or is to be measured; ValueError if a run, or what lies there, is
    of another task, or what lies there is of another n or N."""
    settings = [read_json(folder / CONFIG) for folder in config.run_dir]
    folder = config.best_of_n or config.run_dir[0] / BEST_OF_N
    size: dict[str, Any] = {} if config.samples is None else {"samples": config.samples}
    wanted = BestOfNConfig(run_dir=str(folder), **size, **task_of(settings[0]))
    for path, other in zip(config.run_dir[1:], settings[1:], strict=True):
        _refuse_other(wanted, other, path)
    if (folder / best_of_n.TABLE).exists():
        there = read_json(folder / CONFIG, "max_n", "samples")
        _refuse_other(wanted, there, folder)
        if there["max_n"] != wanted.max_n:
            raise ValueError(
                f"{folder} has the best of {there['max_n']}, a run is compared with the best of {wanted.max_n}: name a "
                "new folder with --best-of-n to measure it there"
            )
        if config.samples not in (None, there["samples"]):
            raise ValueError(
                f"{folder} was measured with {there['samples']} samples, asked for are {config.samples}: name a new "
                "folder with --best-of-n to measure it there, or leave --samples out to take what is here"
            )
    return wanted


def _refuse_other(wanted: BestOfNConfig, settings: dict[str, Any], path: Path) -> None:
    """Only runs of one task stand in one picture; how its models lived, where and by what seed does not matter."""
    here = task_of(asdict(BestOfNConfig(run_dir="", **task_of(settings))))
    for name, value in task_of(asdict(wanted)).items():
        if name not in ("seed", "device", "threads", "memory") and here[name] != value:
            raise ValueError(f"{path} is of another task: {name} {here[name]!r}, the first run has {value!r}")


def _named(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Runs by the names of their folders; by their paths if two have the same."""
    short = {folder.resolve().name: folder for folder in folders}
    return short if len(short) == len(folders) else {str(folder): folder for folder in folders}
