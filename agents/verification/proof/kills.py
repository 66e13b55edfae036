"""Kill training at random moments, resume it, and compare the result bit for bit with an uninterrupted run.

    python -m scripts.kill_and_resume --env CartPole-v1 --kills 20

Each run is a process of its own, killed with SIGKILL, which no program can catch. Every fourth kill waits for a file
that is being written at that moment. Compared are weights, optimizer, schedules, normalizers, environment state,
episode statistics, generators, the best weights kept, the lines of ``progress.csv`` and the values of
``summary.json``; only durations may differ.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.recipes.control import BEST, LAST
from agents.reports.run_files import read_columns
from agents.runs import checkpoint
from agents.runs.cli import command
from agents.runs.run_dir import CONFIG, SUMMARY, RunDir

TRAIN = "from agents.cli import run; raise SystemExit(run('train-control'))"
SECONDS = ("wall_s", "train_s", "seconds", "cpu_s", "train_cpu_s", "cpu_seconds")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Kill training at random moments, resume it, and compare."""

    run_dir: Path = Path("runs/kill_and_resume")
    """folder for the runs, and for a summary"""
    env: str = "CartPole-v1"
    """Gymnasium id"""
    kills: int = 20
    """runs, each killed once at a random moment"""
    total_steps: int = 16384
    """transitions of each run"""
    save_every: int = 2
    """updates between two checkpoints"""
    seed: int = 0
    """of the training, and of the moments"""
    arguments: tuple[str, ...] = ("--evaluate-every", "4096", "--eval-episodes", "5")
    """more flags of train-control"""
    overwrite: bool = False
    """overwrite --run-dir"""


def main(config: Config) -> dict[str, Any]:
    """The numbers of kills, of runs that ended equal, and of kills in mid-write; RuntimeError names differences."""
    rng = random.Random(config.seed)
    with RunDir(config.run_dir, script="kill_and_resume", overwrite=config.overwrite) as run:
        run.begin({name: str(value) for name, value in vars(config).items()})
        uninterrupted = run.path / "uninterrupted"
        process = train(config, uninterrupted)
        began = _wait_for_begin(process, uninterrupted)
        process.wait()
        seconds = time.monotonic() - began
        print(f"uninterrupted: {seconds:.1f} s once it had begun", flush=True)
        mid_write, differing = 0, []
        for number in range(1, config.kills + 1):
            folder = run.path / f"kill_{number:02d}"
            in_mid_write = number % 4 == 0
            after: float | None = None
            while after is None:  # repeat if the run finished before the kill
                shutil.rmtree(folder, ignore_errors=True)
                moment = rng.uniform(-0.1, 0.6 if in_mid_write else 0.95) * seconds
                after, parts = kill(config, folder, moment, in_mid_write=in_mid_write)
            last = folder / LAST
            resumable = last.exists()  # before the first is written there is nothing to resume, and the run starts anew
            updates = int(checkpoint.load(last)["agent"]["progress"]["updates"]) if resumable else 0
            if train(config, folder, *(["--resume"] if resumable else [])).wait() != 0:
                raise RuntimeError(f"{folder} could not be resumed; its standard error says why")
            found = differences(uninterrupted, folder)
            verdict = "equal" if not found else f"DIFFERS in {', '.join(found)}"
            where = f" while writing {', '.join(parts)}" if parts else ""
            print(f"kill {number:2d} after {after:5.2f} s{where}, resumed from update {updates}: {verdict}", flush=True)
            mid_write += bool(parts)
            differing += [f"{folder.name}: {name}" for name in found]
            if not found:
                shutil.rmtree(folder)
        equal = config.kills - len({line.split(":")[0] for line in differing})
        print(f"{equal} of {config.kills} ended bit for bit equal to the uninterrupted run")
        summary = {"env": config.env, "kills": config.kills, "equal": equal, "in_mid_write": mid_write}
        run.write_json(SUMMARY, summary)
        if differing:
            raise RuntimeError("; ".join(differing))
        return summary


def train(config: Config, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start ``textenvs train-control`` in a process of its own."""
    flags = ["--env", config.env, "--total-steps", str(config.total_steps), "--save-every", str(config.save_every)]
    flags += ["--seed", str(config.seed), "--run-dir", str(folder), "--quiet", *config.arguments, *more]
    return subprocess.Popen([sys.executable, "-c", TRAIN, *flags], stdout=subprocess.DEVNULL)


def kill(config: Config, folder: Path, moment: float, *, in_mid_write: bool) -> tuple[float | None, list[str]]:
    """Start a run and kill it ``moment`` seconds after it has begun (a negative moment does not wait for that), or, if
    ``in_mid_write``, once a half-written checkpoint is seen after that: the seconds until it was killed (None: it had
    finished), and the half-written files it left, by name.
    """
    process, began = train(config, folder), time.monotonic()
    try:
        if moment >= 0:
            began = _wait_for_begin(process, folder)
        while process.poll() is None:
            late = time.monotonic() - began >= abs(moment)
            if late and (not in_mid_write or any(folder.glob("*.safetensors.*.part"))):
                break
            time.sleep(0.0002 if late else 0.001)
    finally:
        process.kill()
        process.wait()
    finished = process.returncode != -signal.SIGKILL or (folder / SUMMARY).exists()
    after = None if finished else time.monotonic() - began
    return after, sorted(path.name for path in folder.glob("*.part"))


def _wait_for_begin(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Wait until a run has begun (or its process has ended); the time."""
    while process.poll() is None and not (folder / CONFIG).exists():
        time.sleep(0.001)
    return time.monotonic()


def differences(one: Path, other: Path) -> list[str]:
    """The places in their files where two finished run directories differ, except durations."""
    readers: dict[str, Callable[[Path], Any]] = {LAST: checkpoint.load, BEST: checkpoint.load}
    readers |= {SUMMARY: lambda path: json.loads(path.read_text()), "progress.csv": read_columns}
    found = []
    for name, read in readers.items():
        ours, theirs = (dict(_leaves(read(folder / name), name)) for folder in (one, other))
        found += [place for place in {**ours, **theirs} if not _equal(ours.get(place, ...), theirs.get(place, ...))]
    return found


def _leaves(tree: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What is in a tree of dicts and lists, by its place, without durations, which may differ between equal runs."""
    if isinstance(tree, (dict, list, tuple)):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if not (name in SECONDS or (name != "time/steps" and str(name).startswith("time/"))):
                yield from _leaves(part, f"{place}/{name}")
    else:
        yield place, tree


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return bool(one == other) or (one != one and other != other)  # NaN, an empty field of a table, equals itself


command_line = command(Config, main, __doc__)
