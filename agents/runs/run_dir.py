"""The folder of a run: claimed by one process, overwritten only on request and only where the files are the program's
own (see `own_files`); every file is written aside and renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.runs.own_files import MARKER, delete_own_files, put_in_place, read_marker, script_of
from reward_models.aside import PART, named_faults, write_aside, write_json

SUMMARY = "summary.json"
CONFIG = "config.json"
LOCK = "in_use.pid"
TRACES = (
    CONFIG, MARKER, "machine.json", "report.html", "progress.csv", "frontier.csv", "tokens.html", "monitors.json",
    "events.out.tfevents.*",
)  # fmt: skip
"""What a run leaves that ended before its first checkpoint: it cannot be resumed, so it may be overwritten unasked."""


class RunDirError(RuntimeError):
    """The run directory cannot be used; the message says why and what to do."""


class RunDir:
    """A claimed run directory; a context manager that releases it.

    Claiming changes nothing but the lock. ``begin``, which is called once all inputs are loaded and checked, deletes
    the old run; a command that fails before it leaves the folder as it was.

    Args:
        path: the folder; it is made if it is missing, and removed again if the run never begins.
        script: name of the command; the run of another one is neither overwritten nor resumed.
        overwrite: delete the run in the folder, but no file that a run does not write.
        resume: continue the unfinished run in the folder.
        reads: files and folders that the run reads, which must not lie in what it overwrites; None, and paths
            elsewhere, are ignored.
        flag: that the folder was passed by, for messages.

    Raises:
        RunDirError: if another live process uses it; if it holds a run and neither flag was given; if it holds files
            and no run, or another command's; if there is nothing to resume.
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
        self.began = datetime.now().isoformat()
        """When the run began, ISO, however often it was resumed: chat templates may write the date."""
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError(f"{self.path} is a file; {flag} takes a folder")
        self._refuse_if_in_use()
        if resume:
            self._refuse_to_resume()
            self.began = read_marker(self.path)[1] or self.began
        elif self._content():
            if not self._is_a_mere_start():
                self._refuse_to_overwrite(overwrite)
            self._refuse_to_lose(reads)
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / LOCK).write_text(str(os.getpid()))

    def _refuse_if_in_use(self) -> None:
        owner = in_use_by(self.path)
        if owner not in (None, os.getpid()):
            raise RunDirError(f"{self.path} is in use by process {owner}: choose another {self._flag}")
        (self.path / LOCK).unlink(missing_ok=True)

    def _refuse_to_resume(self) -> None:
        made_by = script_of(self.path)
        if made_by is None or not (self.path / CONFIG).exists():
            raise RunDirError(f"{self.path} holds no run to resume: leave --resume out to begin one")
        if made_by != self.script:
            raise RunDirError(f"{self.path} holds a run of {made_by}: {self.script} cannot resume it")

    def _refuse_to_overwrite(self, overwrite: bool) -> None:
        elsewhere, made_by = f"choose another {self._flag}", script_of(self.path)
        if made_by is None:
            names = sorted(path.name for path in self._content())
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise RunDirError(
                f"{self.path} is no run (it has no {MARKER}) and holds {shown}; nothing in it is touched: {elsewhere}"
            )
        if made_by != self.script:
            raise RunDirError(f"{self.path} holds a run of {made_by}, not of {self.script}: {elsewhere}")
        if not overwrite:
            state = "a finished run" if (self.path / SUMMARY).exists() else "an unfinished run (--resume continues it)"
            raise RunDirError(f"{self.path} holds {state}: {elsewhere} or pass --overwrite")

    def _refuse_to_lose(self, reads: Iterable[str | Path | None]) -> None:
        for path in (Path(read) for read in reads if read is not None):
            if path.exists() and lies_in(path, self.path):
                raise RunDirError(
                    f"{path}, which is read, lies in {self.path}, which would be overwritten: choose another "
                    f"{self._flag}"
                )

    def _content(self) -> list[Path]:
        """What is in the folder, but for the lock and for unfinished parts of files that a kill left."""
        if not self.path.exists():
            return []
        return [path for path in self.path.iterdir() if path.name != LOCK and path.suffix != PART]

    def _is_a_mere_start(self) -> bool:
        """Whether a run of this command began here and ended before there was anything to resume or to look at."""
        traces = all(any(path.match(trace) for trace in TRACES) for path in self._content())
        return traces and script_of(self.path) == self.script

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._begun and kind is not None and issubclass(kind, KeyboardInterrupt) and self._is_a_mere_start():
            delete_own_files(self.path)
        (self.path / LOCK).unlink(missing_ok=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # something was left in it
                break

    def begin(self, settings: dict[str, Any] | None) -> None:
        """Mark the folder as a run of this command, delete what an old run left unless it is resumed, write settings.

        None keeps those of the resumed run.
        """
        self._begun = True
        if self._resume:
            for name in (SUMMARY, "report.html"):  # of a finished run that is made longer
                (self.path / name).unlink(missing_ok=True)
        write_aside(self.path / MARKER, f"{self.script}\n{self.began}\n")
        delete_own_files(self.path, keep=(CONFIG, MARKER), parts_only=self._resume)
        if settings is not None:
            self.write_json(CONFIG, settings)

    def check_resumable(
        self, settings: Mapping[str, Any], checkpoint: str | None = None, length: str | None = None
    ) -> None:
        """Refuse to resume what cannot continue.

        Args:
            settings: of this run; those in config.json must be the same.
            checkpoint: name of the file to resume from; None: there need not be one.
            length: name of the setting that may be larger than before, also of a finished run; None: there is none.

        Raises:
            RunDirError: if the run is finished, has no checkpoint, or has other settings; the message names them.
        """
        longer = length is not None and settings[length] > read_json(self.path / CONFIG).get(length, settings[length])
        if (self.path / SUMMARY).exists() and not longer:
            what = "" if length is None else f"a larger --{length.replace('_', '-')} makes it longer, or "
            raise RunDirError(f"{self.path} holds a finished run: nothing to resume; {what}choose another {self._flag}")
        if checkpoint is not None and not (self.path / checkpoint).exists():
            raise RunDirError(
                f"{self.path} has no {checkpoint} to resume from: start anew, without --resume (and with --overwrite, "
                "if that is asked for)"
            )
        self.check_same({name: value for name, value in settings.items() if not (longer and name == length)})

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Raise RunDirError, which names them, for ``settings`` other than those in config.json."""
        before, now = flat(read_json(self.path / CONFIG)), flat(json.loads(json.dumps(settings, default=str)))
        differing = [name for name in now if before.get(name) != now[name]]
        other = [f"{name}={_short(before.get(name))} (now {_short(now[name])})" for name in differing]
        if other:
            more = f" and {len(other) - 4} more" if len(other) > 4 else ""
            raise RunDirError(f"the run in {self.path} has other settings: {', '.join(other[:4])}{more}")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write one JSON object under ``name``, whole or not at all."""
        write_json(self.path / name, content)


def measured(
    measure: Callable[[], dict[str, Any]],
    settings: dict[str, Any],
    *,
    script: str,
    reads: Iterable[str | Path | None] = (),
) -> dict[str, Any]:
    """What ``measure`` returns; left with the ``settings`` in their ``run_dir``, unless that is None; RunDirError if
    the folder cannot be used."""
    if settings["run_dir"] is None:
        return measure()
    with RunDir(settings["run_dir"], script=script, overwrite=settings["overwrite"], reads=reads) as run:
        summary = measure()
        run.begin(settings)
        run.write_json(SUMMARY, summary)
        return summary


def read_json(path: Path, *names: str) -> dict[str, Any]:
    """The JSON object in ``path``; RunDirError if it is missing, damaged, no object, or lacks one of ``names``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise RunDirError(f"{path}: expected a JSON object, received a file that cannot be read: {fault}") from fault
    if not isinstance(found, dict):
        raise RunDirError(f"{path}: expected a JSON object, received {type(found).__name__}")
    missing = [name for name in names if name not in found]
    if missing:
        raise RunDirError(f"{path}: expected {', '.join(missing)} in it, received {', '.join(found) or 'nothing'}")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as "group.name" to value."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def lies_in(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or something in it."""
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def write_folder_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a neighbor of ``path``, then move it there, so that a half-written model is never in place."""
    aside = path.with_name(path.name + PART)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with named_faults(path):
            write(aside)
        put_in_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def in_use_by(folder: Path) -> int | None:
    """The live process that uses ``folder`` for a run; None if there is none."""
    try:
        owner = (folder / LOCK).read_text().strip()
    except OSError:
        return None
    return int(owner) if owner.isdigit() and _is_alive(int(owner)) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # there is one, but it is somebody else's
    return True
