"""Ensembles: members over one language model are who they would be alone; together they are kept bit for bit."""

import numpy as np
import pytest
import torch

from agents.lm.lora import AdaptedTrunk, RoleTrunk
from reward_models import PreferencePair, RewardModel, TrainingOptions, fit
from reward_models.data.comparisons import PairBatches, pair_comparisons
from reward_models.ensemble import SEEDS_APART, RewardEnsemble, is_ensemble, member_folders, new_members
from reward_models.fitting import trained_state
from reward_models.lora import ADAPTER

PAIRS = [
    PreferencePair(prompt=f"the {noun} ", chosen=f"is {good}", rejected=f"is {bad}")
    for noun in ("film", "plot", "actor")
    for good, bad in (("good", "bad"), ("fine", "dull"))
]
TEXTS = ["a b", "good film", "the plot was dull", "c d"]
ASKED = (["the film ", "the plot ", ""], ["is good", "was dull bad a", "fine"])


def fitted(member, seed):
    options = TrainingOptions(epochs=2, learning_rate=1e-2, eval_every=2, seed=seed)
    fit(member, PairBatches(pairs=PAIRS, batch_size=3), [pair_comparisons(PAIRS)], options)
    member.calibrate(member.encode(TEXTS))
    return member


def ensemble_of(base, lora_rank, num_members=2):
    return RewardEnsemble([fitted(m, seed) for seed, m in new_members(base, num_members, seed=5, lora_rank=lora_rank)])


@pytest.fixture(params=[2, None], ids=["adapters", "whole"])
def lora_rank(request):
    return request.param


def test_each_member_is_who_it_would_be_alone(base, lora_rank):
    ensemble = ensemble_of(base, lora_rank)
    for index, member in enumerate(ensemble.members):
        seed = 5 + SEEDS_APART * index
        torch.manual_seed(seed)
        alone = fitted(RewardModel.from_backbone(base, lora_rank=lora_rank), seed)
        np.testing.assert_array_equal(member(*ASKED), alone(*ASKED))
        assert torch.equal(member.mean, alone.mean)
        assert torch.equal(member.std, alone.std)
    scores = ensemble.score_each(*ASKED)
    assert scores.shape == (2, 3)
    assert (scores.std(axis=0) > 0.01).all()


def test_save_and_load_is_bit_equal_heads_adapters_and_calibration_included(base, lora_rank, tmp_path):
    ensemble = ensemble_of(base, lora_rank)
    ensemble.save(tmp_path / "kept")
    loaded = RewardEnsemble.load(tmp_path / "kept")
    np.testing.assert_array_equal(loaded.score_each(*ASKED), ensemble.score_each(*ASKED))
    for ours, theirs, folder in zip(ensemble.members, loaded.members, member_folders(tmp_path / "kept"), strict=True):
        assert torch.equal(ours.head.weight, theirs.head.weight)
        assert torch.equal(ours.mean, theirs.mean)
        assert not theirs.training
        np.testing.assert_array_equal(RewardModel.load(folder)(*ASKED), ours(*ASKED))
    trunks = {id(getattr(member.backbone, "peft_model", member.backbone)) for member in loaded.members}
    assert len(trunks) == (2 if lora_rank is None else 1)
    loaded.save(tmp_path / "again")
    for one, other in zip(member_folders(tmp_path / "kept"), member_folders(tmp_path / "again"), strict=True):
        for file in one.rglob("*.safetensors"):
            assert file.read_bytes() == (other / file.relative_to(one)).read_bytes()


def test_the_ensemble_scores_like_its_members_and_their_mean(base):
    ensemble = ensemble_of(base, 2)
    flags = [True, False, True]
    each = np.stack([member(*ASKED, finished=flags) for member in ensemble.members])
    np.testing.assert_array_equal(ensemble.score_each(*ASKED, finished=flags), each)
    np.testing.assert_allclose(ensemble(*ASKED, finished=flags), each.mean(axis=0), rtol=1e-6)
    texts = [prompt + completion for prompt, completion in zip(*ASKED, strict=True)]
    rows = ensemble.members[0].encode(texts, finished=flags)
    width = max(map(len, rows))
    tokens = np.array([[*row, *[-1] * (width - len(row))] for row in rows])
    np.testing.assert_allclose(ensemble.score_tokens(tokens[:, :2], tokens[:, 2:]), each.mean(axis=0), rtol=1e-4)


def test_the_adapters_score_the_same_on_a_trunk_that_they_share_with_a_policy(base, tmp_path):
    from transformers import AutoModelForCausalLM

    ensemble = ensemble_of(base, 2)
    ensemble.save(tmp_path / "kept")
    trunk = AdaptedTrunk(AutoModelForCausalLM.from_pretrained(base))
    roles = [f"reward_{index}" for index in range(2)]
    for folder, role in zip(member_folders(tmp_path / "kept"), roles, strict=True):
        trunk.load(folder / ADAPTER, role)
    shared = RewardEnsemble.load(tmp_path / "kept", backbones=[RoleTrunk(trunk, role) for role in roles])
    np.testing.assert_array_equal(shared.score_each(*ASKED), ensemble.score_each(*ASKED))
    assert trunk.active == "policy"


def test_only_what_a_member_trains_is_averaged_and_put_back(base):
    members = new_members(base, 2, seed=0, lora_rank=2)
    _, first = next(members)
    _, second = next(members)
    kept = trained_state(second)
    assert all(".lora_" in name or name in ("head.weight", "mean", "std") for name in kept)
    assert {name.split(".")[-2] for name in kept if ".lora_" in name} == {second.backbone.name}
    assert {name for name, p in first.named_parameters() if p.requires_grad and ".lora_" in name} == {
        name for name in kept if ".lora_" in name
    }
    whole = RewardModel.from_backbone(base)
    assert trained_state(whole).keys() == whole.state_dict().keys()


def test_what_is_no_ensemble_is_refused(base, gpt2, tmp_path):
    with pytest.raises(ValueError, match="at least one reward model"):
        RewardEnsemble([])
    gpt2.save(tmp_path / "single")
    assert not is_ensemble(tmp_path / "single")
    with pytest.raises(ValueError, match=r"holds no reward ensemble: reward_ensemble\.json is missing"):
        RewardEnsemble.load(tmp_path / "single")
    ensemble = RewardEnsemble([gpt2])
    ensemble.save(tmp_path / "kept")
    assert is_ensemble(tmp_path / "kept")
    (tmp_path / "kept" / "reward_ensemble.json").write_text('{"format": "textenvs reward ensemble", "version": 1}')
    with pytest.raises(ValueError, match="lists the members None"):
        RewardEnsemble.load(tmp_path / "kept")
    (tmp_path / "kept" / "reward_ensemble.json").write_text('{"format": "textenvs reward ensemble", "version": 2}')
    with pytest.raises(ValueError, match="of version 1"):
        RewardEnsemble.load(tmp_path / "kept")
    (tmp_path / "kept" / "reward_ensemble.json").write_text("{")
    with pytest.raises(ValueError, match="damaged reward ensemble"):
        RewardEnsemble.load(tmp_path / "kept")


def test_members_of_different_vocabularies_are_refused(gpt2):
    import copy

    other = copy.deepcopy(gpt2)
    other.tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="expected equal tokenizers"):
        RewardEnsemble([gpt2, other])
