"""The folder a run leaves behind: claimed once, never overwritten by accident, every file written aside and renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"
CONFIG = "config.json"
LOCK = "in_use.pid"


class RunDirError(RuntimeError):
    """The run directory cannot be used; the message says why and what to do."""


class RunDir:
    """A claimed run directory; a context manager that gives it back on the way out.

    Args:
        path: the folder; it is made if it is missing.
        overwrite: throw away a finished run that lies there.
        resume: go on with an unfinished run that lies there.

    Raises:
        RunDirError: if another live process uses it, if a run lies there and neither flag was given, or if there is
            nothing to resume.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError(f"{self.path} is a file; --run-dir takes a folder")
        self._refuse_if_in_use()
        self._sweep()
        used = self.path.exists() and any(self.path.iterdir())
        if resume and not (self.path / CONFIG).exists():
            raise RunDirError(f"{self.path} holds no run to resume")
        if used and not resume:
            if not overwrite:
                state = "a finished run" if (self.path / SUMMARY).exists() else "an unfinished run or other files"
                raise RunDirError(f"{self.path} holds {state}: choose another --run-dir or pass --overwrite")
            if not (self.path / CONFIG).exists():
                raise RunDirError(f"{self.path} holds files but no {CONFIG}: it is not a run, so it is not overwritten")
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / LOCK).write_text(str(os.getpid()))

    def _refuse_if_in_use(self) -> None:
        lock = self.path / LOCK
        if not lock.exists():
            return
        owner = lock.read_text().strip()
        if owner.isdigit() and int(owner) != os.getpid() and _is_alive(int(owner)):
            raise RunDirError(f"{self.path} is in use by process {owner}: choose another --run-dir")
        lock.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Throw away what a kill in mid-write left behind: parts that were never renamed into place."""
        for part in self.path.glob("*.part"):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *exception: object) -> None:
        (self.path / LOCK).unlink(missing_ok=True)

    def check_resumable(self, settings: dict[str, Any], checkpoint: str) -> None:
        """Whether the unfinished run that lies here can be gone on with.

        Args:
            settings: of the run that wants to go on; those that lie here must be the same.
            checkpoint: name of the file it would go on from.

        Raises:
            ValueError: if the run is finished, has no checkpoint yet, or has other settings; the message names them.
        """
        if (self.path / SUMMARY).exists():
            raise ValueError(f"{self.path} holds a finished run: there is nothing to resume")
        if not (self.path / checkpoint).exists():
            raise ValueError(f"{self.path} holds no checkpoint yet: start anew with --overwrite")
        theirs = json.loads((self.path / CONFIG).read_text())
        ours = json.loads(json.dumps(settings))
        other = [f"{name}={theirs.get(name)!r} (now {ours[name]!r})" for name in ours if theirs.get(name) != ours[name]]
        if other:
            raise ValueError(f"the run in {self.path} has other settings: {', '.join(other)}")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write one JSON object under ``name``, whole or not at all."""
        write_aside(self.path / name, json.dumps(content, indent=2, default=str) + "\n")


def write_aside(path: Path, text: str) -> None:
    """Write ``text`` to a neighbour of ``path`` and rename it into place, so a reader never sees half of it."""
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_folder_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a neighbour of ``path``, then put it in place: a half-written folder never stands there."""
    aside = path.with_name(path.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write(aside)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
