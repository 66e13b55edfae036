"""What a person sees while text is trained: a progress bar, samples in TensorBoard, a Ctrl-C that waits its turn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TextProgress:
    """A progress bar with score, KL and time left, and a TensorBoard page of samples; a context manager.

    Args:
        episodes: how many there will be.
        folder: of the TensorBoard events.
    """

    def __init__(self, episodes: int, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), filename_suffix=".samples")
        self._bar = Progress(
            TextColumn("learning"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} texts"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("learning", total=episodes, figures="")

    def __enter__(self) -> TextProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        self._writer.close()

    def show(self, episodes: int, metrics: dict[str, float]) -> None:
        """Move the bar to ``episodes`` and show the newest figures."""
        score, kl = metrics.get("rollout/score", float("nan")), metrics.get("rollout/kl_per_sequence", float("nan"))
        self._bar.update(self._task, completed=episodes, figures=f"score {score:+.2f}  KL {kl:.2f} nats")

    def log_samples(self, prompts: list[str], completions: list[str], episodes: int) -> None:
        """Keep a few texts where TensorBoard shows them, the prompt set apart by a bar."""
        texts = [f"{prompt} |{completion}" for prompt, completion in zip(prompts, completions, strict=True)]
        self._writer.add_text("samples", "\n\n".join(texts), episodes)


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event instead of raising, so that work in progress ends whole; the second raises."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(signum: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    usual = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, usual)
