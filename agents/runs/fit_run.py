"""A fit in a training run: its metrics, checkpoints and progress; a signal ends it after the step in progress."""

from __future__ import annotations

from pathlib import Path

from agents.runs import checkpoint
from agents.runs.lifecycle import TrainingRun
from agents.runs.progress import ProgressBar
from reward_models.fitting import Fit, perplexity_of


def fit_in(run: TrainingRun, fit: Fit) -> bool:
    """Train ``fit`` or resume it, and end with the weights that are kept; False if it was stopped, at a checkpoint.

    Raises:
        CheckpointError: if the checkpoint is damaged, or of another model or other data.
        FloatingPointError: if the loss is not finite any more.
    """
    state = run.checkpoint_state()
    if state is not None:
        with run.restoring():
            fit.load_state_dict(state)
    fit.sink = run.begin(fit.progress.step)
    with run.training(fit.options.num_steps, "optimizer steps", done=fit.progress.step) as bar:
        finished = drive(fit, run, bar, run.checkpoint)
    fit.settle()
    return finished


def drive(fit: Fit, run: TrainingRun, bar: ProgressBar, path: Path, *, done: int = 0, label: str | None = None) -> bool:
    """Run ``fit`` until it ends or the run is stopped, with checkpoints at ``path``; whether it ended."""
    return fit.run(
        stopped=run.stop.is_set,
        checkpoint=lambda: checkpoint.save(path, fit.state_dict()),
        show=lambda: bar.show(done + fit.progress.step, _headline(fit), label=label),
    )


def _headline(fit: Fit) -> str:
    progress, unit = fit.progress, fit.options.unit
    speed = f"{progress.count / max(progress.step_seconds, 1e-9):.0f} {unit}/s"
    if progress.last_loss is None:
        return speed
    held_out = f"held-out loss {progress.last_loss:.3f} nats"
    if unit == "tokens":
        held_out = f"held-out perplexity {perplexity_of(progress.last_loss):.2f}"
    return f"{held_out}  {speed}"
