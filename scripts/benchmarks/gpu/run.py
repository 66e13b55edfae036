"""What a GPU is to be checked for, in at most eight minutes: results equal to a CPU's, speed, memory, other engines.

    make gpu-check
    python -m scripts.gpu_check --device cpu --tiny --run-dir runs/gpu_check

Each part (`scripts.benchmarks.gpu.parts`) is a process with a time limit of its own and leaves ``PART.json`` in the
run's folder; after each one table.md and summary.json are written anew. A part that failed, or for which no time was
left, is run by the next call; one that is there is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agents.runs.cli import command
from agents.runs.devices import prepare_device
from agents.runs.run_dir import SUMMARY
from agents.verification.checks import Check, markdown
from reward_models.aside import write_aside, write_json
from scripts.benchmarks.gpu.parts import PARTS, GpuCheckConfig
from scripts.benchmarks.processes import run_process


def main(config: GpuCheckConfig) -> dict[str, Any]:
    """Run the parts that are missing; how many checks passed, and which failed."""
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    prepare_device(config.device, "auto")
    if config.part is not None:
        write_json(folder / f"{config.part}.json", PARTS[config.part](config))
        return {}
    end = time.monotonic() + config.total_s
    missing: dict[str, str] = {}
    for part in PARTS:
        left = min(config.part_s, end - time.monotonic())
        if not (folder / f"{part}.json").exists():
            missing[part] = _run(config, part, left)
        summary = _write_table(folder, missing)
        print(f"{part}: {missing.get(part) or 'there'}", flush=True)
    return summary


def _run(config: GpuCheckConfig, part: str, seconds: float) -> str:
    """Run ``part`` in a process of its own; why there is no result, or ""."""
    if seconds < 1:
        return "no time was left: call again"
    flags = ["--run-dir", config.run_dir, "--device", config.device, "--part", part, *(["--tiny"] * config.tiny)]
    try:
        run_process([sys.executable, "-m", "scripts.gpu_check", *flags], part, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"given up after {seconds:.0f} s"
    except RuntimeError as fault:
        return str(fault).strip().splitlines()[-1]
    return ""


def _write_table(folder: Path, missing: dict[str, str]) -> dict[str, Any]:
    checks: list[Check] = []
    for part in PARTS:
        if (folder / f"{part}.json").exists():
            found = (Check(*each) for each in json.loads((folder / f"{part}.json").read_text()))
            checks += [check._replace(claim=f"{part}: {check.claim}") for check in found]
        elif missing.get(part):
            checks.append(Check(part, "a result", missing[part], False))
    summary = {
        "passed": sum(check.passed is True for check in checks),
        "failed": [c.claim for c in checks if c.passed is False],
    }
    write_aside(folder / "table.md", markdown("Checks of a GPU", checks))
    write_json(folder / SUMMARY, summary)
    return summary


command_line = command(GpuCheckConfig, main, __doc__)
