import errno
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

from agents.runs.own_files import MARKER
from agents.runs.run_dir import CONFIG, LOCK, SUMMARY, RunDir, RunDirError, write_folder_aside
from reward_models.aside import write_aside


def claim(path, script="train_text", **options):
    return RunDir(path, script=script, **options)


def finished(path, script="train_text"):
    """A finished run, with a model in it; its files and what they hold."""
    with claim(path, script) as run:
        run.begin({"seed": 0})
        (path / "model").mkdir()
        (path / "model" / "model.safetensors").write_text("old")
        run.write_json(SUMMARY, {"score": 1})
    return content(path)


def end_in_the_middle(path, end, *files):
    """Begin a run, leave ``files``, and let ``end`` happen to it."""
    with claim(path) as run:
        run.begin({"seed": 0})
        for name in files:
            (path / name).write_text("")
        raise end


def content(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_folder_in_use_is_refused_and_names_the_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / LOCK).write_text(str(other.pid))
        with pytest.raises(RunDirError, match=f"in use by process {other.pid}"):
            claim(tmp_path, overwrite=True)
        other.communicate(b"\n")
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / MARKER).write_text("train_text\n")
    with claim(tmp_path, resume=True):  # its process is gone, so the folder is free
        assert (tmp_path / LOCK).read_text() == str(os.getpid())
    assert not (tmp_path / LOCK).exists()


def test_a_finished_run_is_kept_unless_told_otherwise(tmp_path):
    before = finished(tmp_path / "run")
    with pytest.raises(RunDirError, match=r"a finished run.*--overwrite"):
        claim(tmp_path / "run")
    assert content(tmp_path / "run") == before
    with claim(tmp_path / "run", overwrite=True) as run:
        run.begin({"seed": 1})
        assert {path.name for path in run.path.iterdir()} == {CONFIG, MARKER, LOCK}
        assert json.loads((run.path / CONFIG).read_text()) == {"seed": 1}


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_a_start_that_ends_before_the_run_begins_leaves_the_old_run_as_it_was(tmp_path, end):
    before = finished(tmp_path / "run")
    with pytest.raises(end), claim(tmp_path / "run", overwrite=True):
        raise end
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_a_folder_that_a_start_made_is_gone_if_the_run_did_not_begin(tmp_path, end):
    (tmp_path / "empty").mkdir()
    for name in ("runs/of/mine", "empty"):
        with pytest.raises(end), claim(tmp_path / name):
            raise end
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_what_an_interrupted_run_left_is_thrown_away_unless_it_is_worth_something(tmp_path):
    for name in ("progress.csv", "events.out.tfevents.1.host.1.0", "frontier.csv", "checkpoint.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            end_in_the_middle(tmp_path / name, KeyboardInterrupt, name)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert (tmp_path / "checkpoint.safetensors" / CONFIG).exists()


def test_a_run_that_failed_without_a_checkpoint_is_in_nobodys_way_but_another_scripts(tmp_path):
    with pytest.raises(FloatingPointError):
        end_in_the_middle(tmp_path, FloatingPointError, "progress.csv")
    assert (tmp_path / "progress.csv").exists()  # it says how the run failed
    with pytest.raises(RunDirError, match="holds a run of train_text, not of train_control"):
        claim(tmp_path, "train_control")
    with claim(tmp_path) as run:
        run.begin({})
        assert not (tmp_path / "progress.csv").exists()


def test_another_scripts_run_is_neither_overwritten_nor_gone_on_with(tmp_path):
    before = finished(tmp_path / "run")
    with pytest.raises(RunDirError, match="holds a run of train_text, not of frontier: choose another --out"):
        claim(tmp_path / "run", "frontier", overwrite=True, flag="--out")
    with pytest.raises(RunDirError, match="holds a run of train_text: pipeline cannot resume it"):
        claim(tmp_path / "run", "pipeline", resume=True)
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_model_that_is_no_run_is_refused_and_untouched(tmp_path, overwrite):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "notes.txt"):
        (tmp_path / name).write_text(name)
    before = content(tmp_path)
    names = "config.json, model.safetensors, notes.txt and 1 more"
    with pytest.raises(RunDirError, match=f"no made_by.txt.*and holds {names}; nothing in it is touched"):
        claim(tmp_path, overwrite=overwrite)
    with pytest.raises(RunDirError, match="no run to resume"):
        claim(tmp_path, resume=True)
    assert content(tmp_path) == before


def test_what_a_user_put_into_a_run_outlives_overwriting_it(tmp_path):
    finished(tmp_path)
    mine = ("notes.txt", "model/notes.txt", "other/config.json", "nested/summary.json", "my.safetensors")
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "nested" / MARKER).write_text("train_text")  # another run, which this one did not make
    with claim(tmp_path, overwrite=True) as run:
        run.begin({"seed": 1})
    expected = {*map(Path, mine), Path(CONFIG), Path(MARKER), Path("nested", MARKER)}
    assert content(tmp_path).keys() == expected


def test_a_commands_own_stages_are_overwritten_with_it(tmp_path):
    finished(tmp_path, "pipeline")
    finished(tmp_path / "ppo")
    (tmp_path / "sentences.jsonl").write_text("{}")
    with claim(tmp_path, "pipeline", overwrite=True) as run:
        run.begin({})
    assert sorted(path.name for path in tmp_path.rglob("*")) == [CONFIG, MARKER]


def test_what_a_run_reads_is_not_overwritten_by_it(tmp_path):
    before = finished(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        with pytest.raises(RunDirError, match=f"{path}, which is read, lies in"):
            claim(tmp_path / "run", overwrite=True, reads=(None, "some/name", path))
    assert content(tmp_path / "run") == before
    with claim(tmp_path / "run" / "below", overwrite=True, reads=(tmp_path / "run",)) as run:
        run.begin({})
    assert content(tmp_path / "run").items() >= before.items()


def test_a_resumed_run_keeps_what_lies_there_but_for_halves(tmp_path):
    with pytest.raises(FloatingPointError):
        end_in_the_middle(tmp_path, FloatingPointError, "checkpoint.safetensors")
    (tmp_path / "model.part").mkdir()
    with claim(tmp_path, resume=True) as run:
        assert (tmp_path / "model.part").exists()
        run.begin({"seed": 0})
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, MARKER, "checkpoint.safetensors"}


def test_a_folder_that_is_no_run_is_never_thrown_away(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(RunDirError, match=r"no made_by.txt\) and holds thesis.tex; nothing in it is touched"):
        claim(tmp_path, overwrite=True)
    with pytest.raises(RunDirError, match="no run to resume"):
        claim(tmp_path, resume=True)
    with pytest.raises(RunDirError, match="is a file"):
        claim(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"


def test_a_full_disk_leaves_the_old_file_whole_and_no_part_of_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_aside(path, "old")

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_aside(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    def write(folder):
        (folder / "model.safetensors").write_text("old")
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("old")

    write_folder_aside(tmp_path / "model", write)

    def fails(folder, error):
        (folder / "model.safetensors").write_text("ne")
        raise error

    for error, said in (
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (SafetensorError("No space left on device"), "cannot write .*model: No space left"),
    ):
        with pytest.raises(OSError, match=said):
            write_folder_aside(tmp_path / "model", partial(fails, error=error))
    assert (tmp_path / "model" / "model.safetensors").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]
    write_folder_aside(tmp_path / "model", lambda folder: (folder / "config.json").write_text("new"))
    assert {path.name for path in (tmp_path / "model").rglob("*")} == {"config.json"}
    (tmp_path / "model" / "notes.txt").write_text("mine")
    write_folder_aside(tmp_path / "model", write)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.safetensors", "adapter", "notes.txt"}


def test_what_a_kill_in_mid_write_left_behind_is_thrown_away_and_in_nobodys_way(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "in_use.pid").write_text("99999999")  # of a process that is gone
    (folder / "config.json.part").write_text("{")
    (folder / "last.safetensors.99999999.part").write_bytes(b"half")
    (folder / "model.part").mkdir()
    with claim(folder) as run:  # nothing was finished there, so nothing need be overwritten or resumed
        run.begin({})
        assert {path.name for path in run.path.iterdir()} == {CONFIG, MARKER, LOCK}
