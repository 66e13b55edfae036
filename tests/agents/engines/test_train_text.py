"""``train-text`` by an engine: what fails for good leaves a run that resumes where an undisturbed one would be."""

import pytest
import torch
from safetensors.torch import load_file

from agents.engines import vllm
from agents.recipes.rlhf.config import TrainTextConfig, command_line
from agents.runs.run_dir import read_json
from textenvs import assets
from textenvs.lm.loading import load_causal_lm

PATH = "/inference/v1/generate"


def words(run, fake, *more):
    short = "--algorithm rloo --episodes 16 --batch-size 8 --group-size 4 --minibatch-size 8 --max-new-tokens 4"
    small = "--num-eval-rows 4 --evaluate-every 0 --no-judge --quiet --checkpoint-every 1"
    return ["--run-dir", str(run), *short.split(), *small.split(), "--engine", fake.url, *more]


@pytest.mark.parametrize("ahead", ["0", "1"])
def test_a_run_whose_engine_fails_for_good_is_resumed_from_what_it_had(tmp_path, serve, monkeypatch, capsys, ahead):
    fake = serve(load_causal_lm(assets.language_model_dir()))
    monkeypatch.setattr(vllm.time, "sleep", lambda seconds: None)
    more = ["--async-rollouts", ahead]
    fake.faults[PATH] = [None] * 12 + ["oom"] * 40
    assert command_line(words(tmp_path / "stopped", fake, *more)) == 2
    said = capsys.readouterr().err
    assert "out of memory" in said
    assert "--resume continues it" in said
    fake.faults.clear()
    assert command_line(words(tmp_path / "stopped", fake, *more, "--resume")) == 0
    assert read_json(tmp_path / "stopped" / "summary.json", "episodes")["episodes"] == 16
    if ahead == "0":  # else the batch that failed is written by newer weights
        assert command_line(words(tmp_path / "whole", fake)) == 0
        whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
        torch.testing.assert_close(whole, resumed)


def test_a_resumed_run_may_have_its_engine_elsewhere():
    settings = TrainTextConfig.preset("rloo", run_dir="runs/x", engine="http://here:8000").identity()
    assert settings == TrainTextConfig.preset("rloo", run_dir="runs/x", engine="http://there:8000").identity()
