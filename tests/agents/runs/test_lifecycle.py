"""The life of a training command: signals, resume, progress, trackers and the report."""

import contextlib
import os
import sys
import types
from dataclasses import dataclass
from io import StringIO

import pytest
from rich.console import Console

from agents.runs.flags import RunFlags
from agents.runs.lifecycle import CHECKPOINT, training_run
from agents.runs.machine import MACHINE
from agents.runs.progress import ProgressBar, headline
from agents.runs.run_dir import SUMMARY, RunDirError, read_json
from agents.runs.signals import Interrupted


@dataclass(frozen=True, kw_only=True)
class Flags(RunFlags):
    rate: float = 0.5


def life(flags, *, finished=True, **settings):
    with training_run(flags, script="train_text", settings={**flags.identity(), **settings}) as run:
        sink = run.begin()
        sink.write({"train/loss": 2.0, "rollout/score": 1.5}, 8)
        sink.write({"train/loss": 1.0}, 16)
        run.checkpoint.touch()
        return run.finish({"score": 0.125}, finished=finished)


def test_a_run_that_did_not_end_has_no_summary_and_can_be_resumed(tmp_path):
    flags = {"run_dir": str(tmp_path / "run")}
    with pytest.raises(Interrupted, match="--resume continues it"):
        life(Flags(**flags), finished=False)
    assert not (tmp_path / "run" / SUMMARY).exists()
    with pytest.raises(RunDirError, match=r"other settings: rate=0.5 \(now 0.25\)$"):
        life(Flags(**flags, rate=0.25, resume=True))
    assert life(Flags(**flags, resume=True, quiet=True)) == {"score": 0.125}
    with pytest.raises(RunDirError, match="finished run: nothing to resume"):
        life(Flags(**flags, resume=True))


def test_settings_that_differ_are_named_briefly(tmp_path):
    flags = {"run_dir": str(tmp_path)}
    with pytest.raises(Interrupted):
        life(Flags(**flags), finished=False, deep={"seed": 0, "text": "x" * 999, "a": 1, "b": 1, "c": 1})
    with pytest.raises(RunDirError, match=r"deep.seed=0 \(now 1\).* and 1 more$") as refusal:
        life(Flags(**flags, resume=True), deep={"seed": 1, "text": "y" * 999, "a": 2, "b": 2, "c": 2})
    assert len(str(refusal.value)) < 400 + len(str(tmp_path))


def test_without_its_checkpoint_a_run_is_not_resumed(tmp_path):
    with pytest.raises(Interrupted):
        life(Flags(run_dir=str(tmp_path)), finished=False)
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(RunDirError, match=f"has no {CHECKPOINT} to resume from: start anew, without --resume"):
        life(Flags(run_dir=str(tmp_path), resume=True))


def test_a_run_knows_its_machine_and_writes_its_page_also_when_it_was_stopped(tmp_path):
    pages = []
    for finished in (False, True):
        flags = Flags(run_dir=str(tmp_path), resume=finished)
        with (
            contextlib.suppress(Interrupted),
            training_run(flags, script="train_text", settings=flags.identity(), report=pages.append) as run,
        ):
            run.begin()
            run.checkpoint.touch()
            assert read_json(tmp_path / MACHINE, "processor", "cores", "torch")["cores"] == os.cpu_count()
            run.finish({"score": 0.125}, finished=finished)
        assert (tmp_path / SUMMARY).exists() == finished
    assert pages == [tmp_path, tmp_path]


class Stub(types.ModuleType):
    """A tracker's package that remembers its calls."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: self.calls.append((name, args, options))


@pytest.mark.parametrize(
    ("name", "first", "log", "last"),
    [("wandb", "init", "log", "finish"), ("trackio", "init", "log", "finish"),
     ("mlflow", "set_experiment", "log_metrics", "end_run")],
)  # fmt: skip
def test_a_tracker_receives_every_line_and_its_end(tmp_path, monkeypatch, name, first, log, last):
    stub = Stub(name)
    monkeypatch.setitem(sys.modules, name, stub)
    life(Flags(run_dir=str(tmp_path / "my_run"), log_to=(name, name)))
    names = [call for call, _, _ in stub.calls]
    assert (names[0], names[-1], names.count(log)) == (first, last, 2)
    assert any("my_run" in options.values() for _, _, options in stub.calls)
    lines = [(args[0]["train/loss"], options["step"]) for call, args, options in stub.calls if call == log]
    assert lines == [(2.0, 8), (1.0, 16)]


def test_a_tracker_that_is_not_installed_is_named_with_its_extra_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'textenvs\[wandb\]'"):
        life(Flags(run_dir=str(tmp_path / "run"), log_to=("wandb",)))
    assert not (tmp_path / "run").exists()


def test_without_a_terminal_progress_is_plain_lines():
    out = StringIO()
    with ProgressBar(40, "texts", label="ppo", seconds=0.0, console=Console(file=out, width=40)) as bar:
        bar.show(10, headline({"rollout/score": 0.5, "rollout/kl_per_sequence": 2.0, "train/loss": 9.0}))
        bar.show(20, headline({"train/loss": 0.25}), label="member 2")
    first, second = out.getvalue().splitlines()
    assert first.startswith("ppo 10/40 texts  score +0.50  KL 2.00 nats  ")
    assert second.startswith("member 2 20/40 texts  loss 0.250 nats  ")


def test_lines_are_seconds_apart_but_the_last_is_always_written():
    out = StringIO()
    with ProgressBar(40, "texts", seconds=1e9, console=Console(file=out)) as bar:
        bar.show(10)
        bar.show(20)
        assert not out.getvalue()
    assert "training 20/40 texts" in out.getvalue()
    quiet = StringIO()
    with ProgressBar(40, "texts", quiet=True, seconds=0.0, console=Console(file=quiet)) as bar:
        bar.show(10)
    assert not quiet.getvalue()
