"""Mutation testing: plant one mistake at a time in a copy of the sources and check that the tests catch it.

    python -m scripts.mutants                    # all of them; exit code 1 if any survives
    python -m scripts.mutants --only P4 S2       # those of some traps
    python -m scripts.mutants --write-docs       # all of them, and docs/mutants.md

Each mistake of ``scripts/mutation/mutants.toml`` is a replacement that must fit exactly once; the tested sources are a
temporary copy. Each run is a fork of one process that has loaded the libraries, and nothing of the project, beforehand.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.runs.cli import command
from reward_models.aside import write_aside
from scripts.mutation import Mutant, read_mutants

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("textenvs", "agents", "reward_models", "scripts")
MUTANTS = read_mutants()
PAGE = ROOT / "docs" / "mutants.md"
LIBRARIES = (
    "gymnasium.vector",
    "peft",
    "pytest",
    "safetensors.torch",
    "stable_baselines3",
    "tokenizers",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
"""Loaded once, before the forks."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Plant mistakes and check that the tests catch them."""

    only: tuple[str, ...] = ()
    """traps ("P4"), or parts of the names of mutants; none: all"""
    write_docs: bool = False
    """write docs/mutants.md; needs all of them"""
    timeout: int = 300
    """seconds after which a mutant's tests are stopped"""


class Survived(RuntimeError):
    """Tests did not notice a mistake; the message counts them."""


@dataclass(frozen=True)
class Verdict:
    """The test result of a mutant."""

    caught_by: str  # id of the first test that failed; "" if none did
    trouble: str = ""  # why there is no result: the tests could not be collected, or took too long


def main(config: Config) -> dict[str, Any]:
    """Plant and print a line for each; Survived unless all are caught, ValueError if one does not fit."""
    chosen = [m for m in MUTANTS if not config.only or any(o == m.trap or o in m.name for o in config.only)]
    if not chosen or (config.write_docs and config.only):
        raise ValueError(f"--only {config.only}: expected the trap or name of a mutant, and nothing with --write-docs")
    for mutant in chosen:
        check(mutant)
    with copied_sources() as copy:
        sound = run_tests(copy, sorted({test for m in chosen for test in m.tests.split()}), 10 * config.timeout)
        if sound != Verdict(""):
            raise ValueError(f"without any mistake planted: {sound.caught_by or sound.trouble}")
        verdicts = []
        for number, mutant in enumerate(chosen, 1):
            began = time.monotonic()
            with planted(copy, mutant):
                verdict = run_tests(copy, mutant.tests.split(), config.timeout)
            verdicts.append(verdict)
            how = verdict.caught_by or (f"NO VERDICT: {verdict.trouble}" if verdict.trouble else "SURVIVED")
            seconds = time.monotonic() - began
            print(f"{number:3d}/{len(chosen)} {mutant.trap:4} {mutant.name}: {how} ({seconds:.1f} s)", flush=True)
    if config.write_docs:
        write_aside(PAGE, page(chosen, verdicts))
    caught = sum(bool(verdict.caught_by) for verdict in verdicts)
    if caught < len(chosen):
        raise Survived(f"{len(chosen) - caught} of {len(chosen)} mistakes survived")
    return {"mutants": len(chosen), "caught": caught}


def check(mutant: Mutant) -> None:
    """Raise ``ValueError`` unless the replacement fits exactly once and changes something."""
    count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    if count != 1 or mutant.old == mutant.new:
        raise ValueError(f"{mutant.file}: expected {mutant.old!r} once, received {count} occurrences ({mutant.name})")


@contextmanager
def copied_sources() -> Iterator[Path]:
    """A temporary folder with packages, tests and settings, without bytecode."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (*PACKAGES, "tests", "docs"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "Makefile", "README.md"):
            shutil.copy(ROOT / name, folder)
        yield Path(folder)


@contextmanager
def planted(copy: Path, mutant: Mutant) -> Iterator[None]:
    """Plant the mistake in ``copy`` inside the context."""
    path = copy / mutant.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(sound, encoding="utf-8")


def run_tests(copy: Path, tests: Sequence[str], timeout: int) -> Verdict:
    """Run ``tests`` in ``copy`` until one fails, in a forked process, for ``timeout`` seconds at most."""
    for library in LIBRARIES:
        importlib.import_module(library)
    output = copy / "verdict.json"
    output.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        _child(copy, tests, output, timeout)
    _, status = os.waitpid(process, 0)
    if not output.exists():
        return Verdict("", f"the tests ended with status {os.waitstatus_to_exitcode(status)} (-14: out of time)")
    return Verdict(**json.loads(output.read_text()))


class _Watch:
    """A plugin of pytest's that notes the first failure."""

    failed, trouble, passed = "", "", 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.trouble = str(report.longrepr)[-400:]


def _child(copy: Path, tests: Sequence[str], output: Path, timeout: int) -> None:
    """In the forked process: forget this project's modules, and test the copy's instead."""
    import signal

    import pytest
    import torch

    signal.alarm(timeout)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    os.chdir(copy)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    importlib.invalidate_caches()
    watch = _Watch()
    pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(copy), *tests], plugins=[watch])
    if not watch.failed and not watch.trouble and not watch.passed:
        watch.trouble = f"no test was run of {' '.join(tests)}"
    output.write_text(json.dumps({"caught_by": watch.failed, "trouble": watch.trouble}))
    os._exit(0)


def page(mutants: Sequence[Mutant], verdicts: Sequence[Verdict]) -> str:
    """The table, in Markdown."""
    caught = sum(bool(verdict.caught_by) for verdict in verdicts)
    lines = [
        "# Planted mistakes",
        "",
        f"`python -m scripts.mutants --write-docs` planted {len(mutants)} mistakes, one at a time, in a copy of the "
        f"sources; the tests caught {caught}. The traps are those of [traps.md](traps.md).",
        "",
        "| trap | planted | file | caught by |",
        "|---|---|---|---|",
    ]
    for mutant, verdict in zip(mutants, verdicts, strict=True):
        test = verdict.caught_by.partition("[")[0]
        lines.append(f"| {mutant.trap} | {mutant.name} | `{mutant.file}` | {f'`{test}`' if test else '**survived**'} |")
    return "\n".join([*lines, ""])


command_line = command(Config, main, __doc__, refusals={Survived: 1})
