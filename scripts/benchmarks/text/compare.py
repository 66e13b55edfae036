"""Benchmark language-model training, ours and TRL's, against each other and against the hardware's limits.

    python -m scripts.benchmark_text --run-dir runs/benchmark_text
    python -m scripts.benchmark_text --run-dir runs/quick --rows speed,arithmetic --rounds 1
    python -m scripts.benchmark_text --run-dir runs/benchmark_text --resume

TRL is installed in separate environments below ``--peers``, made if missing. What each side does, and what each
value means, is in docs/results/benchmark_text.md. Left behind: ``summary.json`` (one key a row: both sides, their
ratio, its bounds), ``table.md``, ``rows/`` (a file for each measurement that is finished; ``--resume`` keeps those) and
``runs/`` (every single run).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.ranges import check_values
from agents.runs.cli import command
from agents.runs.run_dir import SUMMARY, RunDir
from reward_models.aside import write_aside, write_json
from scripts.benchmarks.table import Row, to_markdown
from scripts.benchmarks.text.models import BenchSizes
from scripts.benchmarks.text.rows import (
    ALGORITHMS,
    POLICIES,
    best_of_n_row,
    gap_row,
    kl_row,
    learning_row,
    memory_row,
    reviews_row,
)
from scripts.benchmarks.text.speed import arithmetic_row, speed_rows

HOW = ("run_dir", "rows", "resume", "overwrite", "peers")
"""Settings that may differ when a benchmark is resumed: they do not affect the results."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure language models' training."""

    run_dir: Path
    """folder for the table, the rows and every single run"""
    rows: str = "speed,arithmetic,memory,gap,reviews,kl,learning"
    """what to measure, separated by commas"""
    peers: Path = Path("runs/peers")
    """folder with TRL's environments, made if they are missing"""
    rounds: int = 5
    """updates of each side that are timed, in turn"""
    seeds: int = 3
    """trainings of each kind, seeds 0, 1, ..."""
    threads: int = 2
    """CPU threads of every process"""
    sizes: BenchSizes = field(default_factory=BenchSizes)
    """of models and updates whose speed is measured"""
    resume: bool = False
    """keep the finished rows and runs in --run-dir"""
    overwrite: bool = False
    """throw away the benchmark in --run-dir"""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.selected) - set(MEASUREMENTS))
        if unknown:
            raise ValueError(f"rows are of {', '.join(MEASUREMENTS)}; received {', '.join(unknown)}")
        check_values(self, {">= 1": "rounds seeds threads"})

    @property
    def selected(self) -> list[str]:
        """Names of the measurements."""
        return [name.strip() for name in self.rows.split(",")]


MEASUREMENTS: dict[str, Callable[[Config, Path], list[Row]]] = {
    "speed": lambda c, runs: speed_rows(runs / "speed", c.peers, sizes=c.sizes, rounds=c.rounds, threads=c.threads),
    "arithmetic": lambda c, runs: [arithmetic_row(runs / "speed", sizes=c.sizes, rounds=c.rounds, threads=c.threads)],
    "memory": lambda c, runs: [memory_row(runs, threads=c.threads)],
    "gap": lambda c, runs: [gap_row(runs, name, policy, seeds=c.seeds) for policy in POLICIES for name in ALGORITHMS],
    "reviews": lambda c, runs: [reviews_row(runs, name, seeds=c.seeds, threads=c.threads) for name in ("ppo", "grpo")],
    "kl": lambda c, runs: [kl_row(runs, seeds=c.seeds, threads=c.threads)],
    "learning": lambda c, runs: [
        *(learning_row(runs, c.peers, name, seeds=c.seeds, threads=c.threads) for name in ("ppo", "grpo")),
        best_of_n_row(runs, seeds=c.seeds, threads=c.threads),
    ],
}
"""By name, in the table's order; each gives one row or more."""


def main(config: Config) -> dict[str, Any]:
    """Measure what is missing, and write the table anew after each measurement.

    If one fails, all others are finished before RuntimeError says which and why.
    """
    with RunDir(config.run_dir, script="benchmark_text", overwrite=config.overwrite, resume=config.resume) as run:
        if config.resume:
            run.check_same({name: value for name, value in asdict(config).items() if name not in HOW})
        run.begin(asdict(config))
        (run.path / "rows").mkdir(exist_ok=True)
        failed: dict[str, Exception] = {}
        for name in config.selected:
            try:
                measure(config, name, run.path)
            except (RuntimeError, OSError, ValueError, KeyError) as error:  # hours of other rows must not be lost
                print(f"{name} failed: {error}", file=sys.stderr, flush=True)
                failed[name] = error
            files = [run.path / "rows" / f"{name}.json" for name in MEASUREMENTS]
            rows = [Row(**row) for file in files if file.exists() for row in json.loads(file.read_text())]
            run.write_json(SUMMARY, {row.name: row.figures() for row in rows})
            write_aside(run.path / "table.md", to_markdown(rows, peer="peer"))
        print(to_markdown(rows, peer="peer"))
        if failed:
            raise RuntimeError("; ".join(f"{name} failed: {error!r}" for name, error in failed.items()))
        return {row.name: row.figures() for row in rows}


def measure(config: Config, name: str, folder: Path) -> None:
    """Leave the rows of measurement ``name`` in the benchmark's folder, unless they are there."""
    kept = folder / "rows" / f"{name}.json"
    if not kept.exists():
        load = os.getloadavg()[0]
        rows = MEASUREMENTS[name](config, folder / "runs")
        described = [asdict(replace(row, details=row.details | {"load_before": load})) for row in rows]
        write_json(kept, described)


command_line = command(Config, main, __doc__, show=False)
