"""One file, whole or not at all; damaged and foreign ones refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.runs import checkpoint

STATE = {
    "numbers": [1, 2.5, None, True, "text", 2**100],
    "tuple": (1, (2, 3)),
    "by_number": {0: torch.arange(3), 1: {"deep": np.float64(0.1)}},
    "arrays": [np.array([[True, False]]), np.zeros((0, 2), np.float32), np.array(7, np.int64)],
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "bytes": torch.get_rng_state(),
}


def test_what_was_saved_comes_back_with_types_and_bits(tmp_path):
    back = checkpoint.load(checkpoint.save(tmp_path / "deep" / "a.safetensors", STATE))
    assert back["numbers"] == STATE["numbers"]
    assert back["tuple"] == (1, (2, 3))
    assert torch.equal(back["by_number"][0], torch.arange(3))
    assert float(back["by_number"][1]["deep"]) == 0.1
    for one, other in zip(back["arrays"], STATE["arrays"], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert torch.equal(back["half"], STATE["half"])
    assert torch.equal(back["bytes"], STATE["bytes"])


def test_objects_are_refused_rather_than_pickled(tmp_path):
    with pytest.raises(TypeError, match="object"):
        checkpoint.save(tmp_path / "a.safetensors", {"x": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = checkpoint.save(tmp_path / "a.safetensors", {"x": 1})

    def full(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"x": 2})
    assert checkpoint.load(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_file_is_called_damaged(tmp_path, cut):
    path = checkpoint.save(tmp_path / "a.safetensors", STATE)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_one_flipped_bit_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path / "a.safetensors", {"x": torch.zeros(100)})
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(checkpoint.CheckpointError, match="checksum"):
        checkpoint.load(path)


def test_missing_foreign_and_other_versions_are_told_apart(tmp_path, monkeypatch):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path / "nowhere")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "foreign")
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.save(tmp_path / "newer", {})
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match="version 99"):
        checkpoint.load(tmp_path / "newer")


def test_another_configuration_is_refused_by_name(tmp_path):
    path = PPO("CartPole-v1", PPOConfig(num_envs=2)).save(tmp_path / "a")
    with pytest.raises(checkpoint.CheckpointError, match=r"gamma=0.99 \(here 0.5\)"):
        PPO("CartPole-v1", PPOConfig(num_envs=2, gamma=0.5)).restore(path)
    with pytest.raises(checkpoint.CheckpointError, match="does not fit"):
        PPO("Acrobot-v1", PPOConfig(num_envs=2)).restore(path)
