"""A fit in a training run: its metrics, checkpoints and progress; a signal ends it after the step in progress.

With several processes the main one has the run, and the others follow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.runs import checkpoint
from agents.runs.distributed import ALONE, Processes
from agents.runs.lifecycle import TrainingRun
from agents.runs.progress import ProgressBar
from agents.runs.signals import stop_on_signal
from reward_models.fitting import Fit, perplexity_of


def fit_in(run: TrainingRun, fit: Fit, processes: Processes = ALONE) -> bool:
    """Train ``fit`` or resume it, and end with the weights that are kept; False if it was stopped, at a checkpoint.

    Raises:
        CheckpointError: if the checkpoint is damaged, or of another model or other data.
        FloatingPointError: if the loss is not finite any more.
    """
    state = run.checkpoint_state()
    with run.restoring():
        restore(fit, state, run.checkpoint, processes)
    fit.sink = run.begin(fit.progress.step)
    with run.training(fit.options.num_steps, "optimizer steps", done=fit.progress.step) as bar:
        finished = drive(fit, run, bar, run.checkpoint, processes)
    fit.settle()
    return finished


def follow(fit: Fit, processes: Processes, *, save_end: bool = False) -> None:
    """What ``fit_in`` does, in all processes but the main one; ``save_end``: with a checkpoint where the fit ends."""
    path = restore(fit, None, None, processes)
    with stop_on_signal() as stop:
        fit.run(
            stopped=lambda: processes.any(stop.is_set()),
            checkpoint=lambda: checkpoint.save(path, fit.state_dict(), processes),
            show=lambda: None,
        )
    if save_end:
        checkpoint.save(path, fit.state_dict(), processes)
    fit.settle()


def restore(fit: Fit, state: dict[str, Any] | None, path: Path | None, processes: Processes) -> Path:
    """Restore what the main process read from its checkpoint at ``path``, if anything; returns its ``path``."""
    state, found = processes.broadcast((state, path))
    if state is not None:
        fit.load_state_dict(checkpoint.filled(state, getattr(fit.parameters[0], "device_mesh", None)))
    assert found is not None
    return found


def drive(
    fit: Fit,
    run: TrainingRun,
    bar: ProgressBar,
    path: Path,
    processes: Processes = ALONE,
    *,
    done: int = 0,
    label: str | None = None,
) -> bool:
    """Run ``fit`` until it ends or the run is stopped, with checkpoints at ``path``; whether it ended."""
    return fit.run(
        stopped=lambda: processes.any(run.stop.is_set()),
        checkpoint=lambda: checkpoint.save(path, fit.state_dict(), processes),
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
