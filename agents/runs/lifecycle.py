"""The life of a training command: claim the folder, check the settings, train until the end or a signal, summary last.

with training_run(config, script="train_text", settings=config.identity()) as run:
    state = run.checkpoint_state()                      # None unless --resume
    ...                                                 # load everything; nothing is deleted before `begin`
    run.begin(step)
    with run.training(total, "texts") as bar:           # Ctrl-C and SIGTERM now only set run.stop
        ...
    return run.finish(summary, finished=...)            # raises Interrupted if a signal ended it
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from agents.runs import checkpoint
from agents.runs.flags import RunFlags
from agents.runs.logging import FileSink
from agents.runs.machine import MACHINE, machine
from agents.runs.progress import ProgressBar
from agents.runs.run_dir import SUMMARY, RunDir
from agents.runs.signals import Interrupted, Stop, stop_on_signal
from agents.runs.trackers import open_trackers, tracker_module

CHECKPOINT = "checkpoint.safetensors"
Report = Callable[[Path], object]
"""Writes the page of the run in a folder."""


def longer(before: int, now: int, unit: str, schedules: Sequence[str]) -> str:
    """What a run that is made longer is equal to, for people; ``schedules`` are settings that change along a run."""
    equal = f"bit for bit a run of {now} from the start"
    if schedules:
        equal = f"not {equal}: {', '.join(schedules)} followed the shorter run until now"
    return f"made longer, from {before} to {now} {unit}: {equal}"


class TrainingRun:
    """A claimed run of a training command, made by `training_run`; ``stop`` is set once a signal came."""

    def __init__(
        self, folder: RunDir, flags: RunFlags, settings: Mapping[str, Any], checkpoint: str, report: Report | None
    ) -> None:
        self.folder, self.path, self.began = folder, folder.path, folder.began
        self.stop = Stop()
        self.sink: FileSink  # from `begin` on
        self.checkpoint = self.path / checkpoint
        self._flags, self._settings, self._report = flags, settings, report

    def checkpoint_state(self) -> dict[str, Any] | None:
        """What the checkpoint to resume from holds, but for sharded tensors; None for a new run; CheckpointError if it
        is damaged."""
        return checkpoint.read(self.checkpoint) if self._flags.resume else None

    @contextmanager
    def restoring(self, path: Path | None = None) -> Iterator[None]:
        """Raise CheckpointError, which names ``path`` (None: the run's checkpoint), if what is in it does not fit."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as fault:
            what = f"it has no {fault}" if isinstance(fault, KeyError) else str(fault)
            raise checkpoint.CheckpointError(f"{path or self.checkpoint} is not of this run: {what}") from fault

    def begin(self, step: int = 0) -> FileSink:
        """Delete the old run or, resuming, continue its files after ``step``; open and return the sink."""
        self.folder.begin(dict(self._settings))
        self.folder.write_json(MACHINE, machine())
        trackers = open_trackers(self._flags.log_to, self.path.resolve().name, self._settings)
        self.sink = FileSink(self.path, resume_at=step if self._flags.resume else None, trackers=trackers)
        return self.sink

    @contextmanager
    def training(self, total: int, unit: str, *, done: int = 0, label: str = "training") -> Iterator[ProgressBar]:
        """Show progress, and let a signal set ``stop`` instead of raising."""
        bar = ProgressBar(total, unit, done=done, label=label, quiet=self._flags.quiet)
        with bar, stop_on_signal() as self.stop:
            yield bar

    def finish(self, summary: dict[str, Any], *, finished: bool) -> dict[str, Any]:
        """Write summary.json, which marks the run as finished, and then the report; the summary.

        Raises:
            Interrupted: if training is not ``finished``; no summary is written, and the run can be resumed.
        """
        if finished:
            self.folder.write_json(SUMMARY, summary)
        if self._report is not None:
            self._report(self.path)
        if not finished:
            message = f"{self.path} holds what was trained so far; --resume continues it"
            raise Interrupted(message, self.stop.signum or signal.SIGINT)
        return summary

    def close(self) -> None:
        """Flush and close the metrics' files."""
        if hasattr(self, "sink"):
            self.sink.close()


@contextmanager
def training_run(
    flags: RunFlags,
    *,
    script: str,
    settings: Mapping[str, Any],
    checkpoint: str = CHECKPOINT,
    length: str | None = None,
    reads: Iterable[str | Path | None] = (),
    report: Report | None = None,
) -> Iterator[TrainingRun]:
    """Claim ``flags.run_dir`` for a training command, the name of which is ``script``.

    Args:
        settings: content of config.json; a resumed run must have the same.
        checkpoint: name of the file that it resumes from.
        length: name of the setting that a resumed run may have larger, also a finished one.
        reads: files and folders that it reads.
        report: writes its page, at the end and when a signal ended it.

    Raises:
        RunDirError: if the folder cannot be used, or holds no unfinished run with the same settings to resume.
        ImportError: if the package of a tracker is missing.
    """
    for name in flags.log_to:
        tracker_module(name)
    with RunDir(flags.run_dir, script=script, reads=reads, overwrite=flags.overwrite, resume=flags.resume) as folder:
        if flags.resume:
            folder.check_resumable(settings, checkpoint, length)
        with closing(TrainingRun(folder, flags, settings, checkpoint, report)) as run:
            yield run
