"""Points of the frontier of KL and reward along a run: measured, logged, and saved in a table, `frontier.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.evaluation.metrics import Assessment, standard_error
from agents.runs.logging import MetricSink
from reward_models.aside import write_aside

FRONTIER = "frontier.csv"
STEP = "episodes"
POINTS_A_RUN = 8
METRICS = {
    "eval/kl_per_sequence": "mean over held-out texts of sum_t KL(pi(.|s_t) || pi_ref(.|s_t)), each exact, nats",
    "eval/score": "mean score of those texts, without penalties, reward units",
    "eval/score_se": "standard error of that mean, reward units",
    "eval/score_disagreement": "several scorers: as `rollout/score_disagreement`, of those texts",
    "eval/score/NAME": "several scorers: as `rollout/score/NAME`, of those texts",
    "eval/accuracy": "share of held-out rows whose text of the likeliest tokens is right, [0, 1]: the first reward is "
    "pass_score at least",
    "eval/pass_at_K": "mean over those rows of 1 - C(n - c, K) / C(n, K), c of n sampled texts being right, [0, 1]",
    "eval/judge": "mean log-odds by the independent judge",
    "eval/judge_se": "standard error of that mean",
    "eval/judge_win_rate": "share of prompts on which that judge prefers the text to the starting model's, ties half",
    "eval/mean_length": "mean tokens per text, the end-of-text token included",
    "eval/distinct2": "distinct bigrams / bigrams over all texts together, [0, 1]: falls when texts become similar",
    "eval/perplexity": "exp of the mean -log pi_ref per token",
}
"""Metrics on evaluation prompts along a run."""


class FrontierFollower:
    """Saves a run's points in the table at ``path``, which is replaced atomically with every point, and logs them.

    Win rates are against ``start``, of the starting model. With ``resume_at`` the existing table is continued up to so
    many episodes; None: a new one begins with ``start``.
    """

    def __init__(self, path: Path, start: Assessment, logger: MetricSink, *, resume_at: int | None = None) -> None:
        self.path, self.start, self.logger = path, start, logger
        self.points: list[dict[str, float | None]] = []
        if resume_at is not None and path.exists():
            self.points = read_points(path)
            self.cut(resume_at)
        if not self.points:
            self.add(0, start)

    def cut(self, episodes: int) -> None:
        """Forget the points after ``episodes`` texts."""
        self.points = [point for point in self.points if (point[STEP] or 0) <= episodes]

    def add(self, episodes: int, now: Assessment) -> None:
        """Save and log the metrics after ``episodes`` texts; the judge's are None without one."""
        metrics: dict[str, float | None] = {
            "kl_per_sequence": float(now.kl.mean()),
            **now.metrics(),
            "judge_win_rate": now.win_rate(self.start),
            "score_se": standard_error(now.scores),
            "judge_se": None if now.judged is None else standard_error(now.judged),
        }
        self.points = [point for point in self.points if point[STEP] != episodes] + [{STEP: episodes, **metrics}]
        write_points(self.path, self.points)
        self.logger.write({f"eval/{name}": value for name, value in metrics.items() if value is not None}, episodes)


def updates_between_points(every: int | None, episodes: int, batch_size: int) -> int | None:
    """Updates between two points: ``every``; None: such that a run has `POINTS_A_RUN`; None for 0: no points."""
    if every is None:
        return math.ceil(math.ceil(episodes / batch_size) / POINTS_A_RUN)
    return every or None


def write_points(path: Path, points: Sequence[dict[str, Any]]) -> None:
    """Write a table of points, one per line, atomically; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_aside(path, text.getvalue())


def _number(name: str, text: str) -> float | None:
    """A field; the step is an integer, so that reading and writing a table reproduces it."""
    return None if not text else int(text) if name == STEP else float(text)


def read_points(path: Path) -> list[dict[str, float | None]]:
    """Read the table of `write_points`; ValueError if there is none, or it is damaged."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: expected a file {path.name}, received none")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: _number(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError, AttributeError) as fault:
        raise ValueError(f"{path}: expected a table of points: {fault}") from fault
