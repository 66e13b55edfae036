import errno
import json
import os
import subprocess
import sys

import pytest

from scripts.run_dir import CONFIG, LOCK, SUMMARY, RunDir, RunDirError, write_aside, write_folder_aside


def test_a_folder_in_use_is_refused_and_names_the_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / LOCK).write_text(str(other.pid))
        with pytest.raises(RunDirError, match=f"in use by process {other.pid}"):
            RunDir(tmp_path, overwrite=True)
        other.communicate(b"\n")
    (tmp_path / CONFIG).write_text("{}")
    with RunDir(tmp_path, resume=True):  # its process is gone, so the folder is free
        assert (tmp_path / LOCK).read_text() == str(os.getpid())
    assert not (tmp_path / LOCK).exists()


def test_a_finished_run_is_kept_unless_told_otherwise(tmp_path):
    with RunDir(tmp_path / "run") as run:
        run.write_json(CONFIG, {})
        run.write_json(SUMMARY, {"score": 1})
    with pytest.raises(RunDirError, match=r"a finished run.*--overwrite"):
        RunDir(tmp_path / "run")
    assert json.loads((tmp_path / "run" / SUMMARY).read_text()) == {"score": 1}
    with RunDir(tmp_path / "run", overwrite=True):
        assert not (tmp_path / "run" / SUMMARY).exists()


def test_a_folder_that_is_no_run_is_never_thrown_away(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(RunDirError, match="not a run"):
        RunDir(tmp_path, overwrite=True)
    with pytest.raises(RunDirError, match="no run to resume"):
        RunDir(tmp_path, resume=True)
    with pytest.raises(RunDirError, match="is a file"):
        RunDir(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"


def test_a_full_disk_leaves_the_old_file_whole_and_no_part_of_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_aside(path, "old")

    def full(self, text, encoding=None):
        with open(self, "w") as file:
            file.write(text[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_aside(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    write_folder_aside(tmp_path / "model", lambda folder: (folder / "weights").write_text("old"))

    def fails(folder):
        (folder / "weights").write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_folder_aside(tmp_path / "model", fails)
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_kill_in_mid_write_left_behind_is_thrown_away_and_in_nobodys_way(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "in_use.pid").write_text("99999999")  # of a process that is gone
    (folder / "config.json.part").write_text("{")
    (folder / "last.safetensors.99999999.part").write_bytes(b"half")
    (folder / "model.part").mkdir()
    with RunDir(folder) as run:  # nothing was finished there, so nothing need be overwritten or resumed
        assert [path.name for path in run.path.iterdir()] == ["in_use.pid"]
