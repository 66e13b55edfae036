"""Experiment trackers beside the run's own files: wandb, trackio, mlflow, through their packages, imported on use.

Where they write is theirs to configure (``WANDB_DIR``, ``TRACKIO_DIR``, ``MLFLOW_TRACKING_URI``, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from agents.runs.flags import Tracker

PROJECT = "textenvs"


def tracker_module(name: Tracker) -> ModuleType:
    """The tracker's package; ImportError, with the command that installs it, if it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"--log-to {name} needs its package: pip install 'textenvs[{name}]' ({error})") from error


@dataclass(frozen=True)
class _Tracker:
    """A run in a tracker: takes a line of metrics and its step, and ends."""

    write: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def open_trackers(names: Iterable[Tracker], run_name: str, settings: Mapping[str, Any]) -> list[_Tracker]:
    """Begin a run in each tracker of ``names``, under ``run_name`` and with the ``settings``."""
    return [_open(name, tracker_module(name), run_name, settings) for name in dict.fromkeys(names)]


def _open(name: Tracker, module: Any, run_name: str, settings: Mapping[str, Any]) -> _Tracker:
    if name == "mlflow":
        module.set_experiment(PROJECT)
        module.start_run(run_name=run_name)
        # Its settings are flat strings of at most 6,000 characters.
        module.log_params({key: str(value)[:6000] for key, value in settings.items()})
        return _Tracker(lambda metrics, step: module.log_metrics(metrics, step=step), module.end_run)
    # trackio has wandb's interface.
    module.init(project=PROJECT, name=run_name, config=dict(settings))
    return _Tracker(lambda metrics, step: module.log(metrics, step=step), module.finish)
