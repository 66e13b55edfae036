"""Serve the report of a run while it trains, on this machine alone; the page renews itself. Ctrl-C ends it.

textenvs watch runs/text
textenvs watch --port 8080 runs/text
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def main(config: WatchConfig) -> dict[str, Any]:
    """Serve until Ctrl-C."""
    from agents.reports.watch import WatchServer

    with WatchServer(config.run, config.port) as server, suppress(KeyboardInterrupt):
        print(f"{config.run}: {server.address}   (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return {}


command_line = command(WatchConfig, main, __doc__)
