"""Serve the report of a run while it trains, on this machine alone; the page renews itself. Ctrl-C ends it.

textenvs watch runs/text
textenvs watch --port 8080 runs/text
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from agents.ranges import check_values
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Watch a training run."""

    run: tyro.conf.Positional[Path]
    """folder of a run, finished or not"""
    port: int = 0
    """port on 127.0.0.1; 0: any that is free"""

    def __post_init__(self) -> None:
        check_values(self, {">= 0": "port"})


command_line = command(WatchConfig, "agents.recipes.reports:watch", __doc__)
