"""A reward model as an adapter: head and adapter are kept together, bit for bit; the model below is not (trap T16)."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.lm.lora import REWARD, AdaptedTrunk, RoleTrunk
from reward_models import RewardModel
from reward_models.files import base_of
from reward_models.lora import ADAPTER

TEXTS = (["the film ", "the plot "], ["is good", "was dull bad a"])


def trained(base):
    model = RewardModel.from_backbone(base, lora_rank=2)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.calibrate(model.encode(["a b", "good film", "the plot was dull"]))
    return model.eval()


def test_save_and_load_is_bit_equal_head_adapter_and_calibration_included(base, tmp_path):
    model = trained(base)
    model.save(tmp_path / "reward")
    loaded = RewardModel.load(tmp_path / "reward")
    theirs = loaded.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    assert (loaded(*TEXTS) == model(*TEXTS)).all()
    assert (RewardModel.from_backbone(base, lora_rank=2)(*TEXTS) != model(*TEXTS)).all()


def test_only_adapter_and_head_are_trained_and_kept(base, tmp_path):
    model = trained(base)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name == "head.weight" for name in names)
    model.save(tmp_path / "reward")
    kept = sum(file.stat().st_size for file in (tmp_path / "reward").rglob("*.safetensors"))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert kept < 4 * trainable + 20_000


def test_the_adapter_scores_the_same_on_a_trunk_that_it_shares(base, tmp_path):
    model = trained(base)
    model.save(tmp_path / "reward")
    trunk = AdaptedTrunk(AutoModelForCausalLM.from_pretrained(base))
    trunk.load(tmp_path / "reward" / ADAPTER, REWARD)
    shared = RewardModel.load(tmp_path / "reward", backbone=RoleTrunk(trunk, REWARD))
    assert (shared(*TEXTS) == model(*TEXTS)).all()
    assert sum(p.numel() for p in shared.parameters()) == 16


def test_a_reward_model_on_a_shared_trunk_saves_its_adapter_and_stands_alone_again(base, tmp_path):
    model = trained(base)
    model.save(tmp_path / "reward")
    trunk = AdaptedTrunk(AutoModelForCausalLM.from_pretrained(base))
    trunk.load(tmp_path / "reward" / ADAPTER, REWARD)
    RewardModel.load(tmp_path / "reward", backbone=RoleTrunk(trunk, REWARD)).save(tmp_path / "again")
    alone = RewardModel.load(tmp_path / "again")
    assert (alone(*TEXTS) == model(*TEXTS)).all()
    assert base_of(tmp_path / "again") == str(base)
    bare = RewardModel(RoleTrunk(trunk, None), model.tokenizer)
    with pytest.raises(ValueError, match="expected one with an adapter"):
        bare.save(tmp_path / "bare")
    trunk.model.name_or_path = ""
    with pytest.raises(ValueError, match="a model with a name below the adapter"):
        RewardModel(RoleTrunk(trunk, REWARD), model.tokenizer).save(tmp_path / "nameless")
    assert not (tmp_path / "nameless").exists()


def test_bad_input_is_named(base, tmp_path):
    with pytest.raises(ValueError, match="rank"):
        RewardModel.from_backbone(base, lora_rank=0)
    trained(base).save(tmp_path / "reward")
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="base"):
        RewardModel.load(tmp_path / "reward")
