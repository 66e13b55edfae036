"""The run of ``textenvs best-of-n``; its settings are in `agents.recipes.commands.best_of_n`."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from rich.progress import track

from agents.evaluation.assessor import Assessor
from agents.evaluation.best_of_n_estimate import best_of_n_kl, best_of_n_means
from agents.evaluation.curve import write_points
from agents.evaluation.metrics import standard_error
from agents.lm.causal_lm import CausalLMPolicy
from agents.recipes.commands.best_of_n import BestOfNConfig
from agents.recipes.rlhf.build import build_task
from agents.recipes.rlhf.task import TextTask
from agents.runs.devices import check_device
from agents.runs.run_dir import SUMMARY, RunDir

TABLE = "best_of_n.csv"


def task_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's ``settings`` that describe its task, without which the best of n cannot be compared with it."""
    return {field.name: settings[field.name] for field in fields(TextTask) if field.name in settings}


def main(config: BestOfNConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds."""
    check_device(config.device)
    with RunDir(config.run_dir, script="best_of_n", overwrite=config.overwrite, reads=config.reads) as run:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        task = build_task(config)
        print(task.about)
        points = measure(task.assessor, task.models.start, samples=config.samples, max_n=config.max_n, seed=config.seed)
        run.begin({name: value for name, value in asdict(config).items() if name != "overwrite"})
        write_points(run.path / TABLE, points)
        prompts: Any = task.assessor.prompts  # a list, or tokenized rows
        summary = {"prompts": len(prompts), "samples": config.samples, **summary_of(points)}
        run.write_json(SUMMARY, summary)
        return summary


def measure(
    assessor: Assessor, policy: CausalLMPolicy, *, samples: int, max_n: int, seed: int
) -> list[dict[str, float | None]]:
    """A point for every n up to ``max_n``, with the columns of `best_of_n.csv`, from ``samples`` texts of every prompt,
    whose draws are others than those of `Assessor.assess`."""
    judge = assessor.judge
    rival = None if judge is None else judge.score(assessor.write(policy).texts)
    columns: list[tuple[np.ndarray, np.ndarray | None]] = []
    for number in track(range(samples), "writing"):
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        written = assessor.write(policy, seed=own_seed)
        columns.append((assessor.score(written).scores, None if judge is None else judge.score(written.texts)))
    scores = np.stack([score for score, _ in columns], axis=1)
    judged = None if rival is None else np.stack([judged for _, judged in columns if judged is not None], axis=1)
    return points_of(scores, judged, rival, max_n)


def points_of(
    scores: np.ndarray, judged: np.ndarray | None, rival: np.ndarray | None, max_n: int
) -> list[dict[str, float | None]]:
    """The points from ``scores [P, N]``, the judge's ``judged [P, N]`` and its scores of the ``rival [P]`` texts."""
    means: dict[str, np.ndarray | None] = {"score": best_of_n_means(scores, scores, max_n)}
    if judged is None or rival is None:
        means |= {"judge": None, "judge_win_rate": None}
    else:
        won = (judged > rival[:, None]) + 0.5 * (judged == rival[:, None])
        means |= {
            "judge": best_of_n_means(scores, judged, max_n),
            "judge_win_rate": best_of_n_means(scores, won, max_n),
        }
    points: list[dict[str, float | None]] = []
    for n in range(1, max_n + 1):
        point: dict[str, float | None] = {"n": float(n), "kl_per_sequence": best_of_n_kl(n)}
        for name, of in means.items():
            point[name] = None if of is None else float(of[:, n - 1].mean())
            point[f"{name}_se"] = None if of is None else standard_error(of[:, n - 1])
        points.append(point)
    return points


def summary_of(points: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The figures of n = 1, 2, 4, ... and the largest n, flat."""
    ends = {1 << power for power in range(len(points).bit_length())} | {len(points)}
    return {
        f"{name}_best_of_{n}": points[n - 1][name]
        for n in sorted(end for end in ends if end <= len(points))
        for name in ("kl_per_sequence", "score", "judge", "judge_win_rate")
    }
