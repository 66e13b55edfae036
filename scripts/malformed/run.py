"""Throw malformed inputs at the commands and Python calls, and print how many were answered clearly.

    python -m scripts.barrage                    # all of them; exit code 1 unless every answer is clear
    python -m scripts.barrage --every 10         # a tenth
    python -m scripts.barrage --show             # what was answered otherwise, too

clear: exit code 2, or a ValueError, with one message that names the flag or argument and what was received.
traceback: another exception. silent: accepted, or refused without those names. lost: a file of the user changed.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from agents.cli import main as textenvs
from agents.runs.cli import enter
from scripts.malformed.table import Case, by_hand, generated, make_files

KINDS = ("clear", "traceback", "silent", "lost")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Throw malformed inputs."""

    every: int = 1
    """try each so-many-th"""
    show: bool = False
    """print each answer that is not clear"""


def throw(case: Case, files: dict[str, Path]) -> tuple[str, str]:
    """How ``case`` was answered, one of `KINDS`, and in which words."""
    before = snapshot(files["EMPTY"].parent)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = call(case, files)
    except ValueError as fault:
        code = 2 if case.call is not None else 1
        said.write(f"{type(fault).__name__}: {fault}")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as fault:
        return "traceback", f"{type(fault).__name__}: {fault}"
    finally:
        shutil.rmtree(files["RUN"], ignore_errors=True)
    if snapshot(files["EMPTY"].parent) != before:
        return "lost", said.getvalue()
    if code == 1:
        return "traceback", said.getvalue()
    words = " ".join(said.getvalue().replace("│", " ").split())
    named = all(any(str(files.get(name, name)) in words for name in each.split("|")) for each in case.names)
    return ("clear" if code == 2 and named else "silent"), words


def call(case: Case, files: dict[str, Path]) -> int:
    """Run it; the exit code."""
    if case.call is not None:
        case.call()
        return 0
    words = []
    for word in case.command:
        flag, equals, value = word.rpartition("=")
        words.append(f"{flag}{equals}{files.get(value, value)}")
    return textenvs(words)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Content of all the user's files."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "run"}


class NotClear(RuntimeError):
    """Some answers were not clear; the message counts them."""


def main(config: Config) -> dict[str, int]:
    """Throw them; returns how many were tried, and how many were answered in each way, if that is clearly.

    Raises:
        NotClear: if it is not.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    cases = list(chain(generated(), by_hand()))[:: config.every]
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        for case in cases:
            kind, words = throw(case, files)
            found[kind] += 1
            if config.show and kind != "clear":
                print(f"{kind:10} {case.name}\n           {words[-300:]}", flush=True)
    counts = {"tried": len(cases), **{kind: found[kind] for kind in KINDS}}
    if found["clear"] < len(cases):
        raise NotClear(" / ".join(f"{count} {kind}" for kind, count in counts.items()))
    return counts


def command_line(arguments: list[str] | None = None) -> int:
    """Run with command-line arguments; 1 unless every answer was clear."""
    return enter(Config, main, description=__doc__, arguments=arguments, refusals={NotClear: 1})
