"""Experiment trackers beside the run's own files: wandb, trackio, mlflow, through their packages, imported on use.

Where they write is theirs to configure (``WANDB_DIR``, ``TRACKIO_DIR``, ``MLFLOW_TRACKING_URI``, ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from agents.runs.flags import Tracker
from agents.runs.logging import ClosableSink

PROJECT = "textenvs"


def tracker_module(name: Tracker) -> ModuleType:
    """The tracker's package.

    Raises:
        ImportError: if it is not installed; the message has the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"--log-to {name} needs its package: pip install 'textenvs[{name}]' ({error})") from error


def open_trackers(names: Iterable[Tracker], run_name: str, settings: Mapping[str, Any]) -> list[ClosableSink]:
    """Begin a run in each tracker of ``names``, under ``run_name`` and with the ``settings``."""
    sinks: list[ClosableSink] = []
    for name in dict.fromkeys(names):
        module = tracker_module(name)
        sinks.append(_Mlflow(module, run_name, settings) if name == "mlflow" else _Wandb(module, run_name, settings))
    return sinks


class _Wandb:
    """wandb, and trackio, which has the same interface."""

    def __init__(self, module: Any, run_name: str, settings: Mapping[str, Any]) -> None:
        self._module = module
        module.init(project=PROJECT, name=run_name, config=dict(settings))

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Log one line."""
        self._module.log(metrics, step=step)

    def close(self) -> None:
        """End the run."""
        self._module.finish()


class _Mlflow:
    """mlflow, whose settings are flat strings of at most 6,000 characters."""

    def __init__(self, module: Any, run_name: str, settings: Mapping[str, Any]) -> None:
        self._module = module
        module.set_experiment(PROJECT)
        module.start_run(run_name=run_name)
        module.log_params({name: str(value)[:6000] for name, value in settings.items()})

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Log one line."""
        self._module.log_metrics(metrics, step=step)

    def close(self) -> None:
        """End the run."""
        self._module.end_run()
