"""Ours and Stable-Baselines3 (with rl-zoo's settings) on the same control tasks, steps and episodes, in one run.

    python -m scripts.benchmark_control --run-dir runs/benchmark_control
    python -m scripts.benchmark_control --tasks Acrobot-v1 --seeds 3 --run-dir runs/quick

Every training is a process of its own with one thread and leaves a run directory under `runs/`; `--resume` keeps those
that are finished. Scores are means of 100 greedy episodes of the best kept weights, on both sides judged by other
episodes than those that chose them; over seeds the interquartile mean, with a percentile-bootstrap 95% interval. The
time to solve CartPole and the speed at equal work are wall-clock, one process at a time; trainings run side by side, so
theirs is CPU time. All are without evaluations. Left behind: `summary.json` (one key a row), `table.md`, `curves.png`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.ranges import check_values
from agents.runs.cli import command
from agents.runs.run_dir import SUMMARY, RunDir
from reward_models.aside import write_aside
from scripts.benchmarks import table
from scripts.benchmarks.processes import run_once
from scripts.benchmarks.table import Row, bootstrap_interval, interquartile_mean, row_of

TASKS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 200_000,
    "MountainCar-v0": 500_000,
    "MountainCarContinuous-v0": 100_000,
    "Pendulum-v1": 150_000,
    "LunarLander-v3": 1_000_000,
}
"""Transitions that both sides train for."""
TRPO_TASKS = {
    "CartPole-v1": (100_000, 500.0),
    "Acrobot-v1": (100_000, -83.1),
    "Pendulum-v1": (100_000, -174.6),
    "MountainCarContinuous-v0": (50_000, 92.5),
}
"""Transitions that our TRPO trains for, and the return rl-zoo's benchmark.md states for sb3-contrib's (one run)."""
SIDES = ("ours", "sb3")
EVALUATIONS = 20
"""Greedy evaluations along a training."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare ours with Stable-Baselines3 on control tasks."""

    run_dir: Path
    """folder for the table, the plots and every single run"""
    tasks: tuple[str, ...] = tuple(TASKS)
    """ids to train on"""
    seeds: int = 10
    """trainings a task and side, seeds 0, 1, ..."""
    peer_seeds: int | None = None
    """fewer trainings on the peer's side, which is several times slower; None: as many"""
    jobs: int = 2
    """trainings side by side, one thread each; times are measured one at a time all the same"""
    trpo: bool = True
    """also train our TRPO, beside rl-zoo's published figures"""
    timings: bool = True
    """also measure the time to solve CartPole and the speed at equal work"""
    timing_seeds: int = 5
    """seeds of the time to solve"""
    resume: bool = False
    """keep the finished runs in --run-dir"""
    overwrite: bool = False
    """throw away the benchmark in --run-dir"""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown:
            raise ValueError(f"tasks must be of {sorted(TASKS)}, received {unknown}")
        check_values(self, {">= 1": "seeds jobs timing_seeds peer_seeds"})


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, and write table and plots; RuntimeError, with the end of its output, if a training fails."""
    with RunDir(config.run_dir, script="benchmark_control", overwrite=config.overwrite, resume=config.resume) as run:
        run.begin(asdict(config))
        runs = run.path / "runs"
        rows: list[Row] = []
        if config.timings:
            rows += [seconds_to_solve(runs, config.timing_seeds), equal_work(runs)]
        trpo_tasks = [task for task in TRPO_TASKS if config.trpo and task in config.tasks]
        jobs = [(task, side, seed) for task in config.tasks for side in SIDES for seed in _seeds(config, side)]
        jobs += [(task, "trpo", seed) for task in trpo_tasks for seed in range(config.seeds)]
        with ThreadPoolExecutor(config.jobs) as pool:
            list(pool.map(lambda job: train(runs, *job), jobs))
        for task in config.tasks:
            rows += task_rows(runs, task, config)
        rows += [trpo_row(runs, task, config.seeds) for task in trpo_tasks]
        summary = {row.name: row.figures() for row in rows}
        run.write_json(SUMMARY, summary)
        write_aside(run.path / "table.md", table.to_markdown(rows))
        table.plot_curves(runs, {side: _seeds(config, side) for side in SIDES}, config.tasks, run.path / "curves.png")
        print(table.to_markdown(rows))
    return summary


def _seeds(config: Config, side: str) -> range:
    return range(config.seeds if side == "ours" or config.peer_seeds is None else config.peer_seeds)


def train(runs: Path, task: str, side: str, seed: int) -> dict[str, Any]:
    """One training by ``side``: "ours" or "sb3", ``TASKS[task]`` steps of PPO, or "trpo", ours; its summary."""
    steps = TRPO_TASKS[task][0] if side == "trpo" else TASKS[task]
    flags = ["--env", task, "--seed", seed, "--total-steps", steps, "--evaluate-every", steps // EVALUATIONS]
    ours = ["scripts.train_control", "--quiet", "--algorithm", "trpo" if side == "trpo" else "ppo"]
    return run_once(runs / f"{task}-{side}-{seed}", [*(["scripts.train_zoo"] if side == "sb3" else ours), *flags])


def alternating(
    runs: Path, name: str, repeats: int, commands: Mapping[str, Sequence[object]], figure: Callable[[Any], float]
) -> dict[str, list[float]]:
    """A ``figure`` of the summaries of each side's command with seeds 0, 1, ..., one process at a time."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in range(repeats):
        for side in SIDES:
            found[side].append(figure(run_once(runs / f"{name}-{side}-{seed}", [*commands[side], "--seed", seed])))
    return found


def seconds_to_solve(runs: Path, seeds: int) -> Row:
    """Seconds of training until a greedy mean of 475 over 100 episodes: each with its own settings, alternating."""
    flags = ["--env", "CartPole-v1", "--stop-at-return", 475, "--evaluate-every", 1024]
    commands = {
        "ours": ["scripts.train_control", "--quiet", *flags],
        "sb3": ["scripts.train_zoo", *flags, "--total-steps", TASKS["CartPole-v1"]],
    }
    found = alternating(runs, "solve", seeds, commands, lambda s: s["train_s"] if s["reached"] else float("inf"))
    return row_of("CartPole-v1: seconds to 475", "s, median", found, center=np.median)


def equal_work(runs: Path, repeats: int = 3) -> Row:
    """Steps a second at rl-zoo's CartPole settings, 100,000 steps on either side, alternating."""
    flags = ["--env", "CartPole-v1", "--total-steps", 100_000]
    commands = {side: ["scripts.train_zoo", "--library", side, *flags] for side in SIDES}
    found = alternating(runs, "equal_work", repeats, commands, lambda summary: summary["steps_per_s"])
    return row_of("CartPole-v1: equal work, steps/s", "steps/s, median", found, center=np.median)


def task_rows(runs: Path, task: str, config: Config) -> list[Row]:
    """Return and training time of one task."""
    returns, times = (
        {side: _figures(runs, task, side, _seeds(config, side), name) for side in SIDES}
        for name in ("eval_return_mean", "train_cpu_s")
    )
    return [
        _return_row(f"{task}: return at {TASKS[task]:,} steps", returns),
        row_of(f"{task}: training, CPU seconds", "s, median", times, center=np.median),
    ]


def trpo_row(runs: Path, task: str, seeds: int) -> Row:
    """Return of our TRPO beside the published one, which has no spread over seeds."""
    steps, published = TRPO_TASKS[task]
    found = {"ours": _figures(runs, task, "trpo", range(seeds), "eval_return_mean")}
    name = f"{task}: TRPO's return at {steps:,} steps, beside rl-zoo's published one"
    return _return_row(name, found, peer=published, counts={"ours": seeds, "sb3": 1})


def _figures(runs: Path, task: str, side: str, seeds: range, name: str) -> list[float]:
    return [json.loads((runs / f"{task}-{side}-{seed}" / SUMMARY).read_text())[name] for seed in seeds]


def _return_row(name: str, found: dict[str, list[float]], **more: Any) -> Row:
    intervals = {side: bootstrap_interval(scores) for side, scores in found.items()}
    return row_of(name, "IQM", found, center=interquartile_mean, intervals=intervals, **more)


command_line = command(Config, main, __doc__, show=False)
