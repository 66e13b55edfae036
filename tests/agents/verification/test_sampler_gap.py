"""The gap to a known optimum where another distribution samples than the one that learns, with and without correction.

The slow test measures the table of docs/results/exact.md: python -m pytest -m slow -s -n0 this file.
"""

import copy

import gymnasium as gym
import pytest
import torch

from agents.engines.local import LocalEngine
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.verification.exact_gap import TABLE, _normalized, settings
from agents.verification.tabular import TabularTextPolicy, write
from textenvs.exact.envs import EOS_TOKEN
from textenvs.tokens.rows import PAD

OFF = 0.5


class OffEngine(LocalEngine):
    """Samples by logits that are shifted by fixed noise: its tokens' log-probs are ``OFF`` nats from the start's."""

    def __init__(self, policy, seed):
        super().__init__(copy.deepcopy(policy), write)
        self.shift = torch.randn(policy.table.logits.shape, generator=torch.Generator().manual_seed(seed))
        before = torch.log_softmax(policy.table.logits.detach(), -1)
        for _ in range(5):
            off = (torch.log_softmax(before + self.shift, -1) - before).abs()
            self.shift *= OFF / float((off * before.exp()).sum(-1).mean())

    def update(self, named_tensors, version):
        super().update(named_tensors, version)
        with torch.no_grad():
            self.policy.table.logits += self.shift


def gap(env_id, algorithm, mode, *, seed, updates, num_envs, **changed):
    """Share of the way to the optimum that is left after training, and the first rollout's mismatch in nats."""
    config = settings(algorithm, TABLE[algorithm] | {"minibatch_size": num_envs} | changed, num_envs, seed)
    envs = gym.make_vec(env_id, num_envs=num_envs, group_size=config.group_size)
    task = envs.unwrapped.task
    logits = task.ref_logprobs.reshape(-1, len(task.words))
    policy = TabularTextPolicy(task.states, logits, prompt_length=task.prompts.shape[1], eos_token_id=EOS_TOKEN)
    engine = None if mode == "no engine" else OffEngine(policy, seed)
    collector = TextCollector(
        envs, seed=seed, engine=engine, generate=write, correction=None if mode == "no engine" else mode
    )
    agent = TextAgent(config, policy=policy, collector=collector)
    agent.learn(updates * num_envs)
    return task.gap(_normalized(policy.table.logits, task))


def test_the_engine_is_off_by_what_it_says():
    envs = gym.make_vec("textenvs/ExactSpelling-v0", num_envs=512)
    task = envs.unwrapped.task
    logits = task.ref_logprobs.reshape(-1, len(task.words))
    policy = TabularTextPolicy(task.states, logits, prompt_length=task.prompts.shape[1], eos_token_id=EOS_TOKEN)
    collector = TextCollector(envs, engine=OffEngine(policy, 0), generate=write, correction="token_truncate")
    rollout, metrics = collector.collect(policy)
    own = policy.evaluate(rollout.observations, rollout.actions).logprobs.detach()
    off = (own - rollout.behavior_logprobs)[rollout.actions != PAD].abs()
    assert metrics["rollout/mismatch_mean"] == pytest.approx(float(off.mean()), rel=1e-5)
    assert 0.35 < metrics["rollout/mismatch_mean"] < 0.65


def test_a_correction_closes_the_gap_that_another_sampler_leaves():
    def left(mode):
        return gap("textenvs/ExactSpelling-v0", "rloo", mode, seed=0, updates=60, num_envs=256, learning_rate=0.2)

    uncorrected, corrected = left("none"), left("sequence_truncate")
    assert corrected <= uncorrected / 3


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["textenvs/ExactSpelling-v0", "textenvs/ExactSentiment-v0"])
def test_table(env_id):
    torch.set_num_threads(1)
    modes = ("no engine", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    for mode in modes:
        gaps = [gap(env_id, "rloo", mode, seed=seed, updates=400, num_envs=512) for seed in range(3)]
        print(f"{env_id} {mode}: " + ", ".join(f"{100 * each:.2f}" for each in gaps) + " %", flush=True)
