"""The gap to a known optimum where another distribution samples than the one that learns, with and without correction.

The slow test measures the table of docs/results/exact.md: python -m pytest -m slow -s -n0 this file.
"""

import copy

import gymnasium as gym
import pytest
import torch

from agents.engines.local import LocalEngine
from agents.functional.schedules import Linear
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from agents.text.stepwise import generate_by_acting
from agents.verification.exact.tabular import TabularTextPolicy
from textenvs.exact.envs import EOS_TOKEN
from textenvs.tokens.rows import PAD

OFF = 0.5


class OffEngine(LocalEngine):
    """Samples by logits that are shifted by fixed noise: its tokens' log-probs are ``OFF`` nats from the start's."""

    def __init__(self, policy, seed):
        super().__init__(copy.deepcopy(policy), generate_by_acting)
        self.shift = torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(seed))
        before = torch.log_softmax(policy.logits.detach(), -1)
        for _ in range(5):
            off = (torch.log_softmax(before + self.shift, -1) - before).abs()
            self.shift *= OFF / float((off * before.exp()).sum(-1).mean())

    def update(self, named_tensors, version):
        super().update(named_tensors, version)
        with torch.no_grad():
            self.policy.logits += self.shift


def gap(env_id, algorithm, mode, *, seed, updates, num_envs, high=3.0, **changed):
    """Share of the way to the optimum that is left after training, and the first rollout's mismatch in nats."""
    asked = {"minibatch_size": num_envs, "max_grad_norm": 1.0, "kl_in": "reward", "kl_estimator": None, "seed": seed}
    asked |= {"learning_rate": 0.05, "group_size": 8} | changed
    asked["learning_rate"] = Linear(asked["learning_rate"], 0.0)
    config = TextAgentConfig.for_algorithm(algorithm, **asked)
    envs = gym.make_vec(env_id, num_envs=num_envs, group_size=config.group_size)
    task = envs.unwrapped.task
    logits = task.ref_logprobs.reshape(-1, len(task.words))
    policy = TabularTextPolicy(task.states, logits, prompt_length=task.prompts.shape[1], eos_token_id=EOS_TOKEN)
    engine = None if mode == "no engine" else OffEngine(policy, seed)
    collector = TextCollector(
        envs,
        seed=seed,
        engine=engine,
        generate=generate_by_acting,
        correction=None if mode == "no engine" else mode,
        correction_bounds=(0.0, high),
    )
    agent = TextAgent(config, policy=policy, collector=collector)
    agent.learn(updates * num_envs)
    table = torch.log_softmax(policy.logits[:-1].detach().double(), -1).numpy()
    return task.gap(table.reshape(task.ref_logprobs.shape))


def test_the_engine_is_off_by_what_it_says():
    envs = gym.make_vec("textenvs/ExactSpelling-v0", num_envs=512)
    task = envs.unwrapped.task
    logits = task.ref_logprobs.reshape(-1, len(task.words))
    policy = TabularTextPolicy(task.states, logits, prompt_length=task.prompts.shape[1], eos_token_id=EOS_TOKEN)
    collector = TextCollector(
        envs, engine=OffEngine(policy, 0), generate=generate_by_acting, correction="token_truncate"
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_truncation_costs_time_and_leads_nowhere_else(seed):
    """At the optimum the return, score less the KL's price, is that of every text: no weight moves it from there."""
    torch.set_num_threads(1)

    def left(mode, **options):
        options = {"updates": 400, **options}
        found = gap("textenvs/ExactSentiment-v0", "rloo", mode, seed=seed, num_envs=512, **options)
        print(f"seed {seed} {mode} {options}: {100 * found:.2f} %", flush=True)
        return found

    short, wide = left("sequence_truncate"), left("sequence_truncate", high=10.0)
    assert abs(short - wide) < 0.01
    assert left("sequence_truncate", updates=1600) < left("none", updates=1600) / 10
