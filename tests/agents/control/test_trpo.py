"""TRPO's update held against the distributions themselves; everything an agent can do, with TRPO in it."""

from __future__ import annotations

import copy
import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import agents.control.trpo
from agents import PPO, TRPO, Batch, MLPPolicy, PPOConfig, TRPOConfig, load_agent
from agents.control.heads import CategoricalHead
from agents.functional.schedules import Linear
from agents.runs.checkpoint import CheckpointError
from agents.runs.logging import METRICS

BOX = spaces.Box(-1, 1, (4,))
ACTIONS = {
    "discrete": spaces.Discrete(3, start=5),
    "masked": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,)),
    "state-dependent": spaces.Box(-1, 1, (2,)),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
}


class Anything(gym.Env):
    """Any action will do; an episode lasts 5 steps. With ``masked``, an action is forbidden in every other one."""

    def __init__(self, action_space, masked: bool = False) -> None:
        self.action_space, self.masked, self.clock = action_space, masked, 0
        mask = {"action_mask": spaces.MultiBinary(3)} if masked else {}
        self.observation_space = spaces.Dict({"x": BOX, **mask})

    def observe(self):
        seen = {"x": self.np_random.uniform(-1, 1, 4).astype(np.float32)}
        if self.masked:
            seen["action_mask"] = np.array([1, self.clock % 2, 1], np.int8)
        return seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        assert not (self.masked and action == 1 and self.clock % 2 == 0)
        self.clock += 1
        return self.observe(), float(np.sum(action)), False, self.clock == 5, {}


def make_agent(kind: str, **changes) -> TRPO:
    freq = 4 if kind == "state-dependent" else None
    settings = {"num_steps": 40, "hidden": (8, 8), "critic_epochs": 2, "sde_sample_freq": freq, **changes}
    return TRPO(Anything(ACTIONS[kind], kind == "masked"), TRPOConfig(**settings))


def make_batch(agent: TRPO) -> Batch:
    return agent.compute_advantages(agent.collector.collect(agent.learner)[0])


def distributions(policy: MLPPolicy, observations) -> list:
    """By torch.distributions, from the network's raw outputs."""
    outputs = policy.outputs(observations).detach()
    if isinstance(policy.head, CategoricalHead):
        return [Categorical(logits=part.clamp(min=-1e9)) for part in outputs.split(policy.head.sizes, -1)]
    means, std = outputs[..., :2], policy.head.log_std.detach().exp()
    if outputs.shape[-1] > 2:
        std = (outputs[..., 2:].square() @ std.square() + 1e-6).sqrt()
    return [Independent(Normal(means, std.expand_as(means)), 1)]


def logprob(parts: list, actions):
    alone = len(parts) == 1
    return sum(part.log_prob(actions if alone else actions[..., i]) for i, part in enumerate(parts))


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_step_gains_within_the_trust_region_as_the_distributions_themselves_say(kind):
    agent = make_agent(kind, target_kl=0.02)
    for _ in range(3):
        batch = make_batch(agent)
        before = distributions(copy.deepcopy(agent.policy), batch.observations)
        figures = agent.update(batch)
        after = distributions(agent.policy, batch.observations)
        kl = sum(kl_divergence(one, other) for one, other in zip(before, after, strict=True)).mean().item()
        assert figures["train/kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert 0.005 < kl <= 0.02
        ratio = (logprob(after, batch.actions) - logprob(before, batch.actions)).exp()
        advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
        gain = ((ratio - 1.0) * advantages).mean().item()
        assert figures["train/surrogate_gain"] == pytest.approx(gain, rel=1e-3, abs=1e-6)
        assert gain > 0.0
        assert figures["train/line_search_tries"] >= 1


class Coin(torch.nn.Module):
    """One state, two actions, nothing else."""

    keeps_rows = False

    def __init__(self) -> None:
        super().__init__()
        self.head, self.critic = CategoricalHead(spaces.Discrete(2)), torch.nn.Linear(1, 1)
        self.logits = torch.nn.Parameter(torch.zeros(2))

    def outputs(self, observations):
        return self.logits.expand(*observations.shape[:-1], 2)

    def values(self, observations):
        return self.critic(observations).squeeze(-1)


def coins(mask=None, **changes) -> Batch:
    """Heads paid 1, tails -1, each thrown once; then what ``mask`` forbids."""
    rows = 2 if mask is None else len(mask)
    ones = torch.ones(rows, 1)
    parts = {
        "observations": ones[..., None].clone(),
        "actions": torch.arange(rows)[:, None] % 2,
        "old_logprobs": ones * math.log(0.5),
        "old_values": 0 * ones,
        "advantages": torch.where(torch.arange(rows)[:, None] % 2 == 0, 1.0, -1.0),
        "returns": ones.clone(),
        "mask": torch.ones(rows, 1, dtype=torch.bool) if mask is None else mask,
    }
    return Batch(**{**parts, **changes})


def coin_agent(**changes) -> TRPO:
    torch.manual_seed(0)
    settings = {"target_kl": 0.02, "normalize_advantages": "none", "num_envs": 1, **changes}
    return TRPO(None, TRPOConfig(**settings), Coin())


@pytest.mark.parametrize("damping", [1e-6, 0.1])
def test_the_whole_step_of_a_coin_is_the_one_worked_out_by_hand(damping):
    """g = (1, -1)/2 and F = [[1, -1], [-1, 1]]/4, so s = c (1, -1) with s.F s / 2 = c^2 / 2 = target.

    For target 0.02 c is 0.2, heads then has sigmoid(0.4), and the true KL, 0.01987, allows it: one try.
    """
    agent = coin_agent(cg_damping=damping)
    figures = agent.update(coins())
    torch.testing.assert_close(agent.policy.logits.detach(), torch.tensor([0.2, -0.2]), rtol=1e-4, atol=0)
    heads = 1 / (1 + math.exp(-0.4))
    kl = 0.5 * math.log(0.5 / heads) + 0.5 * math.log(0.5 / (1 - heads))
    assert figures["train/kl"] == pytest.approx(kl, rel=1e-3)
    assert figures["train/surrogate_gain"] == pytest.approx(heads - (1 - heads), rel=1e-4)
    assert figures["train/line_search_tries"] == 1
    assert figures["train/entropy"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("normalize", ["batch", "none"])
def test_masked_steps_carry_no_weight_whatever_they_hold(normalize):
    plain, masked = coin_agent(normalize_advantages=normalize), coin_agent(normalize_advantages=normalize)
    mask = torch.tensor([[True], [True], [False], [False]])
    poisoned = {}
    for name in ("observations", "old_logprobs", "old_values", "advantages", "returns"):
        values = getattr(coins(mask), name)
        values[2:] = float("nan")
        poisoned[name] = values
    expected, figures = plain.update(coins()), masked.update(coins(mask, **poisoned))
    assert figures == expected
    for name, value in plain.policy.state_dict().items():
        assert torch.equal(value, masked.policy.state_dict()[name])


def test_the_policy_is_put_back_if_no_length_will_do_and_the_critic_learns_all_the_same(monkeypatch):
    agent = make_agent("discrete")
    real = agents.control.trpo.natural_step
    monkeypatch.setattr(agents.control.trpo, "natural_step", lambda *a, **k: (-real(*a, **k)[0], 0.0))  # downhill
    before = copy.deepcopy(agent.policy.state_dict())
    figures = agent.update(make_batch(agent))
    assert figures["train/line_search_tries"] == figures["train/kl"] == figures["train/surrogate_gain"] == 0.0
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("actor")


def test_equal_advantages_move_nothing():
    agent = coin_agent(normalize_advantages="batch")
    figures = agent.update(coins(advantages=torch.full((2, 1), 3.0)))
    assert not agent.policy.logits.any()
    assert figures["train/line_search_tries"] == 0.0


def test_the_critic_learns_the_returns_and_its_step_size_follows_the_schedule():
    agent = make_agent("box", learning_rate=Linear(1e-2, 1e-3), critic_epochs=40, critic_minibatch_size=16)
    batch = make_batch(agent)
    batch = replace(batch, returns=batch.observations.sum(-1))
    first = agent.update(batch)
    agent.span, agent.steps = (0, 80), 40
    last = agent.update(batch)
    assert last["train/value_loss"] < first["train/value_loss"]
    values = agent.policy.values(batch.observations).detach()
    assert float((values - batch.returns).square().mean() / batch.returns.var()) < 0.01
    assert first["train/learning_rate"] == 1e-2
    assert last["train/learning_rate"] == pytest.approx(5.5e-3)


def test_the_fast_form_acts_by_what_was_learned():
    agent = make_agent("discrete")
    batch = make_batch(agent)
    agent.update(batch)
    seen = batch.observations[0]
    assert agent.learner is not agent.policy
    assert torch.equal(agent.learner.choose(seen, None), agent.policy.choose(seen, None))
    together = sum(float(parameter.detach().sum()) for parameter in agent.policy.parameters())
    assert float(agent.learner.flat.detach().sum()) == pytest.approx(together, abs=1e-4)


def test_what_is_not_finite_is_reported():
    with pytest.raises(FloatingPointError, match="surrogate"):
        coin_agent().update(coins(advantages=torch.full((2, 1), float("inf"))))
    with pytest.raises(FloatingPointError, match="critic"):
        coin_agent().update(coins(returns=torch.full((2, 1), float("inf"))))


def test_every_figure_is_explained():
    agent = TRPO("CartPole-v1", TRPOConfig(num_envs=2, num_steps=64)).learn(128)
    assert set(agent.metrics) <= set(METRICS)
    assert all(math.isfinite(value) for value in agent.metrics.values())


def test_a_policy_without_outputs_is_refused():
    from agents.verification.exact.tabular import TabularPolicy

    with pytest.raises(ValueError, match="TabularPolicy without outputs, head, critic"):
        TRPO(None, TRPOConfig(), TabularPolicy(np.arange(3)[:, None], 2))


@pytest.mark.parametrize(
    "bad",
    [
        {"target_kl": 0.0},
        {"cg_steps": 0},
        {"cg_damping": -0.1},
        {"line_search_steps": 0},
        {"line_search_shrink": 1.0},
        {"critic_epochs": 0},
        {"critic_minibatch_size": 0},
        {"normalize_advantages": "minibatch"},
        {"gamma": 2.0},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TRPOConfig(**bad)


@pytest.mark.parametrize("kind", ACTIONS)
def test_learns_predicts_saves_and_loads_with_any_actions(kind, tmp_path):
    agent = make_agent(kind).learn(80)
    observation, _ = agent.env.envs[0].reset(seed=0)
    action, _ = agent.predict(observation, deterministic=True)
    loaded = load_agent(agent.save(tmp_path / "agent"))
    assert type(loaded) is TRPO
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)
    restored = make_agent(kind).restore(tmp_path / "agent")
    assert torch.equal(restored.policy.actor[0].weight, agent.policy.actor[0].weight)


def test_each_algorithm_loads_its_own_and_refuses_the_others(tmp_path):
    trpo = TRPO("CartPole-v1", TRPOConfig(num_envs=2)).save(tmp_path / "trpo")
    ppo = PPO("CartPole-v1", PPOConfig(num_envs=2)).save(tmp_path / "ppo")
    assert isinstance(load_agent(trpo), TRPO)
    assert isinstance(load_agent(ppo), PPO)
    for kind, file in ((PPO, trpo), (TRPO, ppo)):
        with pytest.raises(CheckpointError, match=f"not '{kind.algorithm}'"):
            kind.load(file)
    with pytest.raises(CheckpointError, match="is of 'ppo', not 'trpo'"):
        TRPO("CartPole-v1", TRPOConfig(num_envs=2)).restore(ppo)


SETTINGS = {
    "num_envs": 3,
    "num_steps": 24,
    "hidden": (8, 8),
    "critic_epochs": 2,
    "critic_minibatch_size": 20,
    "seed": 5,
}
SETTINGS |= {"normalize_observations": True, "normalize_rewards": True, "learning_rate": Linear(1e-3)}
CONFIGS = {
    "CartPole-v1": TRPOConfig(**SETTINGS),
    "sync MountainCarContinuous-v0": TRPOConfig(**SETTINGS, sde_sample_freq=4),
    "sync Acrobot-v1": TRPOConfig(**SETTINGS),
}
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_trpo import TRPO, fingerprint, make_env
for kind, file in zip(sys.argv[2::2], sys.argv[3::2]):
    print(fingerprint(TRPO.load(file, env=make_env(kind)).learn()))
"""


def make_env(kind: str):
    if not kind.startswith("sync "):
        return kind
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gym.make_vec(kind[5:], num_envs=3, vectorization_mode="sync", vector_kwargs=mode)


def fingerprint(agent: TRPO) -> str:
    digest = hashlib.sha256()
    for tensor in agent.policy.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest() + repr(agent.metrics["train/value_loss"])


def test_a_run_resumed_in_a_new_process_ends_where_an_undisturbed_one_ends(tmp_path):
    torch.set_num_threads(1)
    straight, arguments = [], [str(Path(__file__).parent)]
    for i, (kind, config) in enumerate(CONFIGS.items()):
        straight.append(fingerprint(TRPO(make_env(kind), config).learn(3 * 24 * 6)))
        broken = TRPO(make_env(kind), config).learn(3 * 24 * 6, lambda agent: agent.updates < 3)
        arguments += [kind, str(broken.save(tmp_path / str(i)))]
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(1)" + CODE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == straight


def test_a_token_environment_is_refused_unless_small_networks_are_asked_for(tmp_path):
    task = "textenvs/ExactSpelling-v0"
    with pytest.raises(ValueError, match=r"TRPO tunes no language model; received textenvs/ExactSpelling-v0: take PPO"):
        TRPO(task)
    agent = TRPO(task, policy="MlpPolicy", num_envs=2, num_steps=8)
    assert TRPO.load(agent.save(tmp_path / "ids")).env_id == task
