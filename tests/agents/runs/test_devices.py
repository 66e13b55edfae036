"""A device that cannot be had is said at every script's door, before anything is written."""

import pytest
import torch

from agents.recipes import best_of_n, demo, pipeline
from agents.recipes import control as train_control
from agents.recipes import evaluate as evaluate_agent
from agents.recipes import reward_model as train_reward_model
from agents.recipes.rlhf import train as text
from agents.recipes.sft import train as train_language_model
from agents.runs.devices import check_device


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_what_every_torch_has_is_taken(name):
    check_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_a_name_that_torch_does_not_know_is_refused(name):
    with pytest.raises(ValueError, match=f"device {name}: torch knows no such device; pass cpu"):
        check_device(name)


def test_cuda_is_refused_where_there_is_none_and_so_is_an_index_past_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="device cuda: this torch has no CUDA; pass cpu"):
        check_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    with pytest.raises(ValueError, match="device cuda: there is no CUDA device to be had; pass cpu"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device cuda:2: the last CUDA device is cuda:1"):
        check_device("cuda:2")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has that device")
def test_a_backend_that_this_torch_was_built_without_is_refused():
    with pytest.raises(ValueError, match="device mps: this torch cannot use it"):
        check_device("mps")


@pytest.mark.parametrize(
    ("main", "config"),
    [
        (train_control.main, train_control.Config),
        (text.main, text.TrainTextConfig),
        (train_language_model.main, train_language_model.TrainLanguageModelConfig),
        (train_reward_model.main, train_reward_model.TrainRewardModelConfig),
        (evaluate_agent.main, lambda **options: evaluate_agent.EvaluateAgentConfig(agent=".", **options)),
        (best_of_n.main, best_of_n.BestOfNConfig),
        (pipeline.main, pipeline.PipelineConfig),
        (demo.main, demo.DemoConfig),
    ],
    ids=["control", "text", "language_model", "reward_model", "evaluate", "best_of_n", "pipeline", "demo"],
)
def test_every_script_refuses_it_at_the_door(main, config, tmp_path):
    with pytest.raises(ValueError, match="device gpu: torch knows no such device"):
        main(config(run_dir=str(tmp_path / "run"), device="gpu"))
    assert not (tmp_path / "run").exists()
