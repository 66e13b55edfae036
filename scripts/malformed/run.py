"""Throw malformed inputs at the commands and Python calls, and print how many were answered clearly, and which not.

    python -m scripts.barrage                    # all of them; exit code 1 unless every answer is clear
    python -m scripts.barrage --every 10         # a tenth

clear: exit code 2, or a ValueError, with a message that names the flag or argument and what was received.
traceback: another exception. silent: accepted, or refused without those names. lost: a file of the user changed.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from agents.cli import main as textenvs
from agents.runs.cli import command
from scripts.malformed.table import Case, by_hand, generated, make_files


@dataclass(frozen=True, kw_only=True)
class Config:
    """Throw malformed inputs."""

    every: int = 1
    """try each so-many-th"""


class NotClear(RuntimeError):
    """Some answers were not clear; the message counts them."""


def throw(case: Case, files: dict[str, Path]) -> tuple[str, str]:
    """How ``case`` was answered (clear, traceback, silent or lost), and in which words."""
    folder, said = files["EMPTY"].parent, io.StringIO()
    before, code = snapshot(folder), 0
    flags = [word.rpartition("=") for word in case.command]
    words = [flag + equals + str(files.get(value, value)) for flag, equals, value in flags]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = textenvs(words) if case.call is None else 0 * bool(case.call())
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as fault:
        said.write(f"{type(fault).__name__}: {fault}")
        code = 2 if case.call is not None and isinstance(fault, ValueError) else 1
    finally:
        shutil.rmtree(files["RUN"], ignore_errors=True)
    answer = " ".join(said.getvalue().replace("│", " ").split())
    if snapshot(folder) != before:
        return "lost", answer
    named = all(any(str(files.get(name, name)) in answer for name in each.split("|")) for each in case.names)
    return "traceback" if code == 1 else "clear" if code == 2 and named else "silent", answer


def snapshot(folder: Path) -> dict[str, bytes]:
    """Content of all the user's files."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "run"}


def main(config: Config) -> dict[str, int]:
    """Throw them; how many were tried, and answered in each way; NotClear unless all are clear."""
    cases = list(chain(generated(), by_hand()))[:: config.every]
    counts = Counter(tried=len(cases), clear=0, traceback=0, silent=0, lost=0)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        for case in cases:
            kind, answer = throw(case, files)
            counts[kind] += 1
            if kind != "clear":
                print(f"{kind:10} {case.name}\n           {answer[-300:]}", flush=True)
    if counts["clear"] < len(cases):
        raise NotClear(" / ".join(f"{count} {kind}" for kind, count in counts.items()))
    return dict(counts)


command_line = command(Config, main, __doc__, refusals={NotClear: 1})
