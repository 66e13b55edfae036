"""Points of the frontier between KL and reward: measured along a run, logged, and kept in a table, `frontier.csv`.

`scripts.train_text` leaves one a run; `scripts.frontier` draws them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agents.evaluation.metrics import Assessment, standard_error
from agents.runs.logging import MetricSink
from agents.runs.run_dir import write_aside

FRONTIER = "frontier.csv"
STEP = "episodes"
POINTS_A_RUN = 8
METRICS = {
    "eval/kl_per_sequence": "mean over held-out texts of sum_t KL(pi(.|s_t) || pi_ref(.|s_t)), each exact, nats",
    "eval/score": "mean score of those texts before any price, reward units",
    "eval/score_se": "standard error of that mean, reward units",
    "eval/score_disagreement": "several scorers: as `rollout/score_disagreement`, of those texts",
    "eval/score/NAME": "several scorers: as `rollout/score/NAME`, of those texts",
    "eval/judge": "mean log-odds by the judge that training never asks",
    "eval/judge_se": "standard error of that mean",
    "eval/judge_win_rate": "share of prompts on which that judge prefers the text to the starting model's, ties half",
    "eval/mean_length": "mean tokens per text, the end-of-text token included",
    "eval/distinct2": "different bigrams / bigrams over all texts together, [0, 1]: falls when texts become alike",
    "eval/perplexity": "exp of the mean -log pi_ref per token",
}
"""What is measured on evaluation prompts along a run."""


class FrontierFollower:
    """Keeps a run's points in `frontier.csv`, and tells them to the logger.

    Args:
        path: of the table; written aside and renamed with every point.
        start: of the starting model, with which the judge compares.
        logger: takes each point as it comes.
        resume_at: go on with the table that lies there, as of this many episodes; None begins anew, with the start.
    """

    def __init__(self, path: Path, start: Assessment, logger: MetricSink, *, resume_at: int | None = None) -> None:
        self.path, self.start, self.logger = path, start, logger
        self.points: list[dict[str, float | None]] = []
        if resume_at is not None and path.exists():
            self.points = [point for point in read_points(path) if (point[STEP] or 0) <= resume_at]
        if not self.points:
            self.add(0, start)

    def add(self, episodes: int, now: Assessment) -> None:
        """Keep what was found after ``episodes`` texts."""
        figures = point_of(now, self.start)
        self.points = [point for point in self.points if point[STEP] != episodes] + [{STEP: episodes, **figures}]
        write_points(self.path, self.points)
        self.logger.write({f"eval/{name}": value for name, value in figures.items() if value is not None}, episodes)


def point_of(now: Assessment, start: Assessment) -> dict[str, float | None]:
    """A point: figures of ``now``, beside the ``start``; None for the judge's where there is none."""
    return {
        "kl_per_sequence": float(now.kl.mean()),
        **now.figures(),
        "judge_win_rate": now.win_rate(start),
        "score_se": standard_error(now.scores),
        "judge_se": None if now.judged is None else standard_error(now.judged),
    }


def updates_between_points(every: int | None, episodes: int, batch_size: int) -> int | None:
    """Updates between two points: ``every``; if that is None, as many as make `POINTS_A_RUN`; None for 0, no points."""
    if every is None:
        return math.ceil(math.ceil(episodes / batch_size) / POINTS_A_RUN)
    return every or None


def write_points(path: Path, points: Iterable[dict[str, Any]]) -> None:
    """Write a table of points, one a line, whole or not at all; None is an empty field."""
    points = list(points)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in point.items()} for point in points)
    write_aside(path, text.getvalue())


def _number(name: str, text: str) -> float | None:
    """A field: the step is whole, so that a table read and written again is the same table."""
    return None if not text else int(text) if name == STEP else float(text)


def read_points(path: Path) -> list[dict[str, float | None]]:
    """What `write_points` wrote.

    Raises:
        ValueError: if there is no such table, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in {path.parent}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: _number(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError, AttributeError) as fault:
        raise ValueError(f"{path} is not a table of points: {fault}") from fault
