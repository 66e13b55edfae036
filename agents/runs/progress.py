"""One progress display for every training: a bar on a terminal or in a notebook, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

HEADLINES = (
    ("rollout/score", "score {:+.2f}"), ("rollout/kl_per_sequence", "KL {:.2f} nats"),
    ("rollout/return_mean", "return {:.1f}"), ("train/loss", "loss {:.3f} nats"),
    ("validation/loss", "held-out loss {:.3f} nats"),
)  # fmt: skip


def headline(metrics: Mapping[str, float]) -> str:
    """The few metrics that say how a training goes; a loss only where there is no return and no score."""
    shown = HEADLINES[:3] if any(name in metrics for name, _ in HEADLINES[:3]) else HEADLINES[3:]
    return "  ".join(text.format(metrics[name]) for name, text in shown if name in metrics)


class ProgressBar:
    """Shows how far a training is; a context manager.

    The ``total`` amount of work, of which some was ``done`` before, is in ``unit``, a plural noun. Where there is no
    terminal, lines are ``seconds`` apart at least. ``console`` None: standard error.
    """

    def __init__(
        self, total: int, unit: str, *, label: str = "training", done: int = 0, quiet: bool = False,
        seconds: float = 10.0, console: Console | None = None,
    ) -> None:  # fmt: skip
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._live = self._console.is_terminal or self._console.is_jupyter
        self._quiet, self._seconds = quiet, seconds
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, disable=quiet or not self._live,
        )  # fmt: skip
        self._task = self._bar.add_task(label, total=total, completed=done, unit=unit, text="")
        self._start, self._pending = done, ""

    def __enter__(self) -> ProgressBar:
        self._began = self._written = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        self._print()

    def show(self, done: int, text: str = "", *, label: str | None = None) -> None:
        """Move to ``done`` (of the total) and show ``text`` behind it."""
        self._bar.update(self._task, completed=done, text=text, description=label)
        if self._live or self._quiet:
            return
        task, now = self._bar.tasks[0], time.monotonic()
        left = (now - self._began) * ((task.total or 0) - done) / max(1, done - self._start)
        times = f"{now - self._began:.0f} s, {max(0.0, left):.0f} s left"
        self._pending = f"{task.description} {done}/{task.total:.0f} {task.fields['unit']}  {text}  {times}"
        if now - self._written >= self._seconds:
            self._print()

    def _print(self) -> None:
        if self._pending:
            self._console.print(self._pending, markup=False, soft_wrap=True)
            self._pending, self._written = "", time.monotonic()
