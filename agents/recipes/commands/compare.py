"""Put runs on one page: curves over seeds with intervals, final figures, how likely one is to beat the other.

    textenvs compare runs/ppo_0 runs/ppo_1 runs/grpo_0 runs/grpo_1
    textenvs compare --group small=runs/a,runs/b --group large=runs/c,runs/d --out sizes.html

Runs whose settings differ in nothing but the seed are one group; `--group` puts runs together by hand. The others are
compared with the first group. The page needs no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare training runs of one command."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders of runs, grouped by their settings without the seed"""
    group: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """a group by name: name=folder,folder; repeatable"""
    out: Path = Path("compare.html")
    """the page; one that is there is replaced"""


def main(config: CompareConfig) -> dict[str, Any]:
    """Write the page; its path, and the number of runs in each group."""
    from agents.reports.compare import write_comparison

    groups = write_comparison(config.out, config.runs, config.group)
    return {"page": str(config.out)} | {group.name: f"runs: {len(group.runs)}" for group in groups}


command_line = command(CompareConfig, main, __doc__)
