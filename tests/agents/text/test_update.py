"""A language model in the same update as control: ratio one, microbatches, seeds, resume, learning (P2, P13, S)."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.functional.advantages import generalized_advantages
from agents.lm.causal_lm import CausalLMPolicy
from agents.text.collector import TextCollector
from agents.update import update
from textenvs.envs.vector import TokenVectorEnv
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

V, EOS, T = 13, 0, 5
IDS = dict(vocab_size=V, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, initializer_range=0.2)


def policy_of(kind="gpt2", critic="shared"):
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, **IDS))
    else:
        config = LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=16, **IDS,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    return CausalLMPolicy(model, critic=critic)


def count_threes(prompts, completions):
    return (completions == 3).sum(1).astype(np.float32)


class Scorer:
    score_tokens = staticmethod(count_threes)


def agent_of(kind="gpt2", critic="shared", num_envs=24, **options):
    policy = policy_of(kind, critic)
    start = copy.deepcopy(policy)

    def reference(prompts, completions):
        with torch.no_grad():
            return start.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs

    prompts = [[1 + i % 5] * (1 + i % 3) for i in range(20)]
    envs = TokenVectorEnv(num_envs, prompts=prompts, eos_token_id=EOS, vocab_size=V, max_new_tokens=T)
    collector = TextCollector(KLShaping(PreferenceReward(envs, Scorer()), reference, 0.05), seed=2)
    settings = dict(epochs=3, minibatch_size=8, learning_rate=1e-2, gamma=1.0, lam=0.95, value_coef=0.1)
    return PPO(None, PPOConfig(**(settings | options)), policy=policy, collector=collector)


def judged(agent):
    rollout, _ = agent.collector.collect(agent.policy)
    return rollout.to_batch(
        generalized_advantages(
            rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended,
            gamma=1.0, lam=0.95, mask=rollout.mask,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_without_learning_every_minibatch_of_every_epoch_has_ratio_one(kind, critic):
    agent = agent_of(kind, critic, learning_rate=0.0)
    agent.learn(24)
    assert agent.metrics["train/approx_kl"] == pytest.approx(0.0, abs=1e-8)
    assert 0 <= agent.metrics["train/logprob_drift"] < 1e-5
    assert agent.metrics["train/clip_fraction"] == 0.0
    assert agent.metrics["rollout/kl_per_sequence"] == pytest.approx(0.0, abs=1e-5)


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradients():
    agent = agent_of(epochs=1, minibatch_size=24, value_coef=0.0, normalize_advantages="none", max_grad_norm=1e9)
    batch = judged(agent)
    mask = batch.mask
    evaluation = agent.policy.evaluate(batch.observations, batch.actions, mask)
    (-(evaluation.logprobs * batch.advantages)[mask].sum() / mask.sum()).backward()
    expected = [p.grad.clone() for p in agent.policy.model.parameters()]
    optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.0)
    update(agent.policy, optimizer, batch, agent.config, clip=0.2, generator=torch.Generator())
    got = [p.grad for p in agent.policy.model.parameters()]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 5])
def test_microbatches_of_ragged_rows_equal_the_whole_minibatch(size):
    def learned(microbatch_size):
        agent = agent_of(epochs=2, minibatch_size=12, microbatch_size=microbatch_size, entropy_coef=0.01)
        batch = judged(agent)
        assert len(set(batch.mask.sum(1).tolist())) > 2
        optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.5)
        update(agent.policy, optimizer, batch, agent.config, clip=0.2, generator=torch.Generator().manual_seed(0))
        return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])

    torch.testing.assert_close(learned(size), learned(None), atol=1e-5, rtol=1e-5)


def parameters_of(agent):
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def test_same_seed_same_parameters():
    first, second = agent_of().learn(72), agent_of().learn(72)
    assert torch.equal(parameters_of(first), parameters_of(second))


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_saved_and_restored_training_ends_where_undisturbed_training_ends(critic, tmp_path):
    undisturbed = agent_of(critic=critic).learn(96)
    half = agent_of(critic=critic)
    half.learn(96, callback=lambda agent: agent.updates < 2)
    half.save(tmp_path / "half.safetensors")
    resumed = agent_of(critic=critic)
    with torch.no_grad():
        resumed.policy.value_head.bias.add_(1.0)
    resumed.restore(tmp_path / "half.safetensors").learn()
    assert resumed.steps == 96
    assert torch.equal(parameters_of(resumed), parameters_of(undisturbed))


@pytest.mark.parametrize("kind", [pytest.param("llama", marks=pytest.mark.slow), "gpt2"])
def test_it_learns_to_say_what_is_paid_for(kind):
    agent = agent_of(kind, num_envs=48)
    scores = []
    agent.learn(48 * 15, callback=lambda agent: scores.append(agent.metrics["rollout/score"]))
    assert scores[0] < 0.8
    assert np.mean(scores[-3:]) > 2.0
    assert agent.metrics["rollout/kl_per_sequence"] > 0.5


def test_logprob_drift_is_the_gap_between_sampled_and_recomputed_log_probs_before_any_step():
    agent = agent_of(epochs=2, minibatch_size=8, learning_rate=0.05)
    rollout, _ = agent.collector.collect(agent.policy)
    batch = agent.compute_advantages(rollout)
    shifted = type(batch)(**{**vars(batch), "old_logprobs": batch.old_logprobs - 0.25 * batch.mask})
    figures = agent.update(shifted)
    assert figures["train/logprob_drift"] == pytest.approx(0.25, abs=1e-5)  # later minibatches drift on top of it
