"""A fit in a run directory: its figures' files, its checkpoint, a progress bar, a Ctrl-C that waits for the step."""

from __future__ import annotations

from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agents.runs import checkpoint
from agents.runs.logging import FileSink
from agents.runs.progress import stop_on_interrupt
from agents.runs.run_dir import RunDir
from reward_models.fitting import Fit, FitOptions, Learner, perplexity_of

CHECKPOINT = "checkpoint.safetensors"


def fit_in(run: RunDir, learner: Learner, options: FitOptions, *, resume: bool) -> tuple[Fit, bool]:
    """Fit ``learner``, which ends with the weights that are kept; the fit, and whether it came to its end.

    Ctrl-C ends it after the step in progress and leaves a checkpoint, from which ``resume`` goes on.

    Raises:
        CheckpointError: if there is nothing to resume from, or it is of another model or other data.
        FloatingPointError: if the loss is not finite any more.
    """
    path = run.path / CHECKPOINT
    state = checkpoint.load(path) if resume else None
    sink = FileSink(run.path, resume_at=None if state is None else state["progress"]["step"])
    try:
        fit = Fit(learner, options, sink)
        if state is not None:
            try:
                fit.load_state_dict(state)
            except ValueError as error:
                raise checkpoint.CheckpointError(f"{path}: {error}") from error
        with _bar() as bar, stop_on_interrupt() as interrupted:
            task = bar.add_task("language model", total=options.num_steps, figures="")
            finished = fit.run(
                stopped=interrupted.is_set,
                checkpoint=lambda: checkpoint.save(path, fit.state_dict()),
                show=lambda: bar.update(task, completed=fit.progress.step, figures=_figures(fit)),
            )
        fit.settle()
    finally:
        sink.close()
    return fit, finished


def log_samples(folder: Path, samples: list[str], step: int) -> None:
    """Keep a few texts where TensorBoard shows them."""
    from torch.utils.tensorboard import SummaryWriter

    if samples:
        with SummaryWriter(str(folder), filename_suffix=".samples") as writer:
            writer.add_text("samples", "\n\n".join(samples), step)


def _bar() -> Progress:
    columns = (TextColumn("{task.completed}/{task.total} steps"), TextColumn("{task.fields[figures]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), BarColumn(), *columns, *times)


def _figures(fit: Fit) -> str:
    progress = fit.progress
    speed = f"{progress.count / max(progress.step_seconds, 1e-9):.0f} tokens/s"
    if progress.last_loss is None:
        return speed
    return f"held-out perplexity {perplexity_of(progress.last_loss):.2f}  {speed}"
