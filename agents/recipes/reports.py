"""The runs of ``textenvs compare`` and ``textenvs watch``; their settings are in `agents.recipes.commands`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from agents.recipes.commands.compare import CompareConfig
from agents.recipes.commands.watch import WatchConfig
from agents.reports.compare import write_comparison
from agents.reports.watch import WatchServer


def compare(config: CompareConfig) -> dict[str, Any]:
    """Write the page; its path, and the number of runs in each group.

    Raises:
        RunDirError, ValueError: with a message that says what to do.
    """
    groups = write_comparison(config.out, config.runs, config.group)
    return {"page": str(config.out)} | {group.name: f"{len(group.runs)} runs" for group in groups}


def watch(config: WatchConfig) -> dict[str, Any]:
    """Serve until Ctrl-C.

    Raises:
        RunDirError, ValueError: with a message that says what to do.
    """
    with WatchServer(config.run, config.port) as server, suppress(KeyboardInterrupt):
        print(f"{config.run}: {server.address}   (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return {}
