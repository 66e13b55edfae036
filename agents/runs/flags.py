"""The flags that every training command shares; imports nothing heavy."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

Tracker = Literal["wandb", "trackio", "mlflow"]
NEUTRAL = (
    "run_dir", "overwrite", "resume", "quiet", "log_to", "threads", "device", "checkpoint_every", "save_every",
    "shard", "shard_rollouts", "offload", "stop_on",
    "engine", "engine_transfer", "engine_folder",
)  # fmt: skip
"""Settings that the trained weights do not depend on, but for rounding, so that a resumed run may change them."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Run: its folder, whether it continues, and where its metrics go."""

    run_dir: str
    """Folder for everything the run leaves: checkpoints, models, config.json, progress.csv, TensorBoard events,
    report.html and summary.json."""
    overwrite: bool = False
    """Delete the run in that folder; files that no run writes stay."""
    resume: bool = False
    """Continue the unfinished run in that folder, which must have the same settings; train-control and train-text also
    make a finished one longer, with larger --total-steps or --episodes."""
    log_to: Annotated[tuple[Tracker, ...], tyro.conf.UseAppendAction] = ()
    """Experiment tracker that receives the metrics, too; repeatable. Needs its extra: pip install 'textenvs[wandb]'."""
    quiet: bool = False
    """Show no progress."""

    def identity(self) -> dict[str, Any]:
        """The settings that a resumed run must share."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in NEUTRAL}


def json_object(given: str | None, flag: str = "template_kwargs") -> dict[str, Any]:
    """What the JSON object ``given`` with ``flag`` holds; None: nothing. ValueError if it is no JSON object."""
    try:
        found = {} if given is None else json.loads(given)
    except ValueError as fault:
        raise ValueError(f"{flag}: expected a JSON object, received {given!r} ({fault})") from fault
    if not isinstance(found, dict):
        raise ValueError(f"{flag}: expected a JSON object, received {given!r}")
    return found
