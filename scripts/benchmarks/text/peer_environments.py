"""TRL in environments of its own: making them, and updates of several processes that take turns.

TRL's last release with PPO needs transformers 4, its newest GRPO takes transformers 5: two environments, neither ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from reward_models.aside import write_json
from scripts.benchmarks.processes import run_process
from scripts.benchmarks.text.models import LM, PROMPTS, REWARD_MODEL

TRL_VERSIONS = {"ppo": "0.29.1", "grpo": "1.16.0"}
"""Of TRL, by what is measured."""
REQUIREMENTS = {"ppo": ["transformers<5", "datasets"], "grpo": ["transformers>=5,<6", "datasets"]}
PEER_SCRIPT = Path(__file__).parent / "trl_peer.py"


def peer_python(peers: Path, algorithm: str) -> Path:
    """The interpreter of an algorithm's environment in ``peers``; made if it is missing or holds other versions."""
    folder = peers / algorithm
    python = folder / "bin" / "python"
    if _installed(python) != TRL_VERSIONS[algorithm]:
        print(f"{folder}: installing trl {TRL_VERSIONS[algorithm]} ...", flush=True)
        same_torch = f"torch=={torch.__version__.partition('+')[0]}"
        wanted = [f"trl=={TRL_VERSIONS[algorithm]}", same_torch, *REQUIREMENTS[algorithm]]
        make = [sys.executable, "-m", "venv", "--clear", str(folder)]
        for command in (make, [str(python), "-m", "pip", "install", "--quiet", *wanted]):
            run_process(command, " ".join(command))
    return python


def _installed(python: Path) -> str | None:
    """TRL's version there, or None."""
    if not python.exists():
        return None
    ask = "from importlib.metadata import version; print(version('trl'))"
    done = subprocess.run([str(python), "-I", "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def peer_command(peers: Path, folder: Path, algorithm: str, *, models: Path, **job: Any) -> list[str]:
    """The command of TRL's ``algorithm`` on the models that `write_models` left; ``job`` as in `trl_peer.JOB`."""
    written = peer_job(folder, algorithm, models=models, **job)
    return [str(peer_python(peers, algorithm)), "-I", str(PEER_SCRIPT), str(written)]


def peer_job(folder: Path, algorithm: str, *, models: Path, **job: Any) -> Path:
    """The file of a job for `trl_peer`, written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"lm": models / LM, "reward_model": models / REWARD_MODEL, "prompts": models / PROMPTS}
    paths |= {"scratch": folder / "scratch"}
    whole = {"algorithm": algorithm, **{name: str(path.resolve()) for name, path in paths.items()}, **job}
    write_json(folder / "job.json", whole)
    return folder / "job.json"


def quiet_environment(threads: int) -> dict[str, str]:
    """What a measured process finds in its environment: its number of threads, and no way to a model hub."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def on_demand(command: Sequence[str], log: Path, *, threads: int) -> Iterator[Callable[[], dict[str, float]]]:
    """A process that makes one update for each line it is sent, and answers with its figures; idle in between.

    Yields a function that has it make one more update. Its first answer only says that it is ready; what it says on
    standard error goes to ``log``, and into the RuntimeError if it ends instead of answering.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    pipe, env = subprocess.PIPE, quiet_environment(threads)
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=env) as process,
    ):
        lines, answers = process.stdin, process.stdout
        assert lines is not None
        assert answers is not None

        def answer() -> dict[str, float]:
            line = answers.readline()
            if not line:
                said = log.read_text(encoding="utf-8", errors="replace")[-1000:]
                raise RuntimeError(f"{log.stem} ended with {process.wait()}: {said}")
            return json.loads(line)

        def update() -> dict[str, float]:
            with suppress(BrokenPipeError):  # it has ended, which the missing answer says, too
                lines.write("\n")
                lines.flush()
            return answer()

        try:
            answer()
            yield update
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # a line that it never read
                lines.close()
