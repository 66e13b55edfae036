"""Scripts and peers as processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.runs.run_dir import SUMMARY


def run_process(command: Sequence[str], name: str, **options: Any) -> str:
    """The standard output of a process, by `subprocess.run`; RuntimeError, with what it said, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def run_once(
    folder: Path, module_and_flags: Sequence[object], *, threads: int = 1, timeout: float | None = None
) -> dict[str, Any]:
    """Run a script on that many threads into ``folder`` unless it is finished there; its summary."""
    if not (folder / SUMMARY).exists():
        shutil.rmtree(folder, ignore_errors=True)
        module, *flags = map(str, module_and_flags)
        print(f"{folder.name} ...", flush=True)
        command = [sys.executable, "-m", module, *flags, "--run-dir", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run_process(command, f"{module} in {folder}", env=environment, timeout=timeout)
    return json.loads((folder / SUMMARY).read_text())
