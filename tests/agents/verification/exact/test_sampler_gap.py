"""The gap to a known optimum where another distribution samples than the one that learns, with and without correction.

The slow test measures the table of docs/results/exact.md: python -m pytest -m slow -s -n0 this file.
"""

import copy
from typing import get_args

import gymnasium as gym
import pytest
import torch

from agents.engines.local import LocalEngine
from agents.functional.schedules import Linear
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import Correction, TextAgentConfig
from agents.text.kl_controllers import AnnealedKL
from agents.text.stepwise import generate_by_acting
from agents.verification.exact.settings import ANNEALED, NUM_ENVS, SETTINGS
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


def gap(env_id, mode, *, seed, updates, num_envs=NUM_ENVS["tabular"], **changed):
    """Share of the way to the optimum that RLOO leaves on a table, with the settings of the exact measurements."""
    asked = {"minibatch_size": num_envs, "max_grad_norm": 1.0, "kl_in": "reward", "kl_estimator": None, "seed": seed}
    asked |= SETTINGS["tabular"]["rloo"] | changed
    config = TextAgentConfig.for_algorithm("rloo", **asked | {"learning_rate": Linear(asked["learning_rate"], 0.0)})
    envs = gym.make_vec(env_id, num_envs=num_envs, group_size=config.group_size)
    task = envs.unwrapped.task
    logits = task.ref_logprobs.reshape(-1, len(task.words))
    policy = TabularTextPolicy(task.states, logits, prompt_length=task.prompts.shape[1], eos_token_id=EOS_TOKEN)
    (multiple, share), texts = ANNEALED["tabular"], updates * num_envs
    engine = None if mode == "no engine" else OffEngine(policy, seed)
    collector = TextCollector(
        envs,
        seed=seed,
        engine=engine,
        generate=generate_by_acting,
        correction=None if mode == "no engine" else mode,
        kl_controller=AnnealedKL(start=multiple * task.beta, end=task.beta, horizon=share * texts),
    )
    TextAgent(config, policy=policy, collector=collector).learn(texts)
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
        return gap("textenvs/ExactSpelling-v0", mode, seed=0, updates=120, learning_rate=0.2)

    uncorrected, corrected = left("none"), left("sequence_truncate")
    assert corrected <= uncorrected / 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["no engine", *get_args(Correction)])
@pytest.mark.parametrize("env_id", ["textenvs/ExactSpelling-v0", "textenvs/ExactSentiment-v0"])
def test_table(env_id, mode):
    torch.set_num_threads(1)
    gaps = [gap(env_id, mode, seed=seed, updates=1600) for seed in range(5)]
    print(f"{env_id} {mode}: " + ", ".join(f"{100 * each:.2f}" for each in gaps) + " %", flush=True)
