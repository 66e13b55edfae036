"""The folder a run leaves behind: claimed once, never overwritten by accident, every file written aside and renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"
CONFIG = "config.json"
LOCK = "in_use.pid"
MADE_BY = "made_by.txt"
"""One line: the script whose run it is."""
PART = ".part"
TRACES = (CONFIG, MADE_BY, "progress.csv", "frontier.csv", "tokens.html", "events.out.tfevents.*")
"""What a run that has neither a checkpoint nor a summary leaves: nobody can go on from it, so it is in nobody's way."""


class RunDirError(RuntimeError):
    """The run directory cannot be used; the message says why and what to do."""


class RunDir:
    """A claimed run directory; a context manager that gives it back on the way out.

    Claiming changes nothing but the lock: what lies there is thrown away by ``begin``, which is called once everything
    was loaded and found good, and a start that ends before it leaves the folder as it was.

    Args:
        path: the folder; it is made if it is missing, and removed again if the run never begins.
        script: that makes the run; no other script's run is overwritten or gone on with.
        overwrite: throw away the run that lies there.
        resume: go on with an unfinished run that lies there.
        reads: files and folders that the run reads, which must not lie in what it throws away; None, and names of
            what lies elsewhere, are passed over.
        flag: that the folder came by, for messages.

    Raises:
        RunDirError: if another live process uses it, if a run lies there and neither flag was given, if it is not this
            script's, or if there is nothing to resume.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        script: str,
        overwrite: bool = False,
        resume: bool = False,
        reads: Iterable[str | Path | None] = (),
        flag: str = "--run-dir",
    ) -> None:
        self.path, self.script = Path(path), script
        self._resume, self._flag, self._begun = resume, flag, False
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError(f"{self.path} is a file; {flag} takes a folder")
        self._refuse_if_in_use()
        if resume:
            self._refuse_to_resume()
        elif self._content():
            if not self._is_a_mere_start():
                self._refuse_to_overwrite(overwrite)
            self._refuse_to_lose(reads)
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / LOCK).write_text(str(os.getpid()))

    def _refuse_if_in_use(self) -> None:
        lock = self.path / LOCK
        if not lock.exists():
            return
        owner = lock.read_text().strip()
        if owner.isdigit() and int(owner) != os.getpid() and _is_alive(int(owner)):
            raise RunDirError(f"{self.path} is in use by process {owner}: choose another {self._flag}")
        lock.unlink(missing_ok=True)

    def _refuse_to_resume(self) -> None:
        if not (self.path / CONFIG).exists():
            raise RunDirError(f"{self.path} holds no run to resume")
        # Of a run that does not say whose it is, the settings tell; they must be the same anyway.
        if script_of(self.path) not in (self.script, None):
            raise RunDirError(f"{self.path} holds a run of {script_of(self.path)}: {self.script} cannot resume it")

    def _refuse_to_overwrite(self, overwrite: bool) -> None:
        elsewhere, made_by = f"choose another {self._flag}", script_of(self.path)
        if made_by not in (self.script, None):
            raise RunDirError(f"{self.path} holds a run of {made_by}, not of {self.script}: {elsewhere}")
        if not overwrite:
            state = "a finished run" if (self.path / SUMMARY).exists() else "an unfinished run or other files"
            raise RunDirError(f"{self.path} holds {state}: {elsewhere} or pass --overwrite")
        if made_by is None and not (self.path / CONFIG).exists():
            raise RunDirError(f"{self.path} holds files but no {CONFIG}: it is not a run, so it is not overwritten")

    def _refuse_to_lose(self, reads: Iterable[str | Path | None]) -> None:
        for path in (Path(read) for read in reads if read is not None):
            if path.exists() and lies_in(path, self.path):
                raise RunDirError(
                    f"{path}, which is read, lies in {self.path}, which would be overwritten: choose another "
                    f"{self._flag}"
                )

    def _content(self) -> list[Path]:
        """What lies there, but for the lock, and for parts that a kill in mid-write left and no start can use."""
        if not self.path.exists():
            return []
        return [path for path in self.path.iterdir() if path.name != LOCK and path.suffix != PART]

    def _is_a_mere_start(self) -> bool:
        """Whether a run of this script began here, and ended before it left anything to go on from or to look at."""
        traces = all(any(path.match(trace) for trace in TRACES) for path in self._content())
        return traces and script_of(self.path) == self.script

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._begun and kind is not None and issubclass(kind, KeyboardInterrupt) and self._is_a_mere_start():
            self._clear()
        (self.path / LOCK).unlink(missing_ok=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # something was left in it
                break

    def begin(self, settings: dict[str, Any] | None) -> None:
        """Throw away what lies there, unless the run is resumed, and write down the script and its settings.

        Args:
            settings: what ``config.json`` holds from now on; None: what it holds, of a run that is resumed.
        """
        self._begun = True
        self._clear(keep=tuple(self._content()) if self._resume else (self.path / CONFIG, self.path / MADE_BY))
        write_aside(self.path / MADE_BY, f"{self.script}\n")
        if settings is not None:
            self.write_json(CONFIG, settings)

    def _clear(self, keep: tuple[Path, ...] = ()) -> None:
        """Delete all but ``keep``. A run in half is no finished one, so its summary goes first."""
        doomed = [path for path in self.path.iterdir() if path.name != LOCK and path not in keep]
        for path in sorted(doomed, key=lambda path: path.name != SUMMARY):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

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
            raise ValueError(f"{self.path} holds no checkpoint yet: start anew, without --resume")
        theirs = json.loads((self.path / CONFIG).read_text())
        ours = json.loads(json.dumps(settings))
        other = [f"{name}={theirs.get(name)!r} (now {ours[name]!r})" for name in ours if theirs.get(name) != ours[name]]
        if other:
            raise ValueError(f"the run in {self.path} has other settings: {', '.join(other)}")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write one JSON object under ``name``, whole or not at all."""
        write_aside(self.path / name, json.dumps(content, indent=2, default=str) + "\n")


def script_of(folder: Path) -> str | None:
    """The script that made the run in ``folder``; None if nothing says so."""
    note = folder / MADE_BY
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None


def lies_in(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or something in it."""
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def write_aside(path: Path, text: str) -> None:
    """Write ``text`` to a neighbor of ``path`` and rename it into place, so a reader never sees half of it."""
    aside = path.with_name(path.name + PART)
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_folder_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a neighbor of ``path``, then put it in place: a half-written folder never stands there."""
    aside = path.with_name(path.name + PART)
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
