"""Verify update, advantages, autoreset, ratios and gradients against independent derivations, without training.

Checks that train are in ``agents.verification.proof.training``.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from agents.config import UpdateConfig
from agents.control.environments import make_vector
from agents.control.fast_mlp import FastMLP, is_fast
from agents.control.mlp import MLPPolicy
from agents.functional.advantages import generalized_advantages
from agents.rollout import Batch
from agents.update import update
from agents.verification.checks import Check, Checking, at_least, at_most, flat_grad, joint, near, relative_error, run
from agents.verification.environments.contract import modes_agree
from agents.verification.environments.learning import counted
from agents.verification.environments.subject import Subject
from agents.verification.exact.kl_bias import TASKS, kl_biases
from agents.verification.models.policy import Model, model_checks
from agents.verification.models.text import text_checks
from agents.verification.proof.peers import NumpyPPO, advantage_difference, advantages_by_definition, update_difference

SEEN = spaces.Box(-1, 1, (4,))
ACTIONS: dict[str, spaces.Space[Any]] = {
    "Discrete": spaces.Discrete(3, start=5),
    "Box": spaces.Box(-1, 1, (2,)),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
}
CLASSIC = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")


def core_checks() -> list[Checking]:
    """All checks of the core; about a second each."""
    checkings: list[Checking] = [
        ("the update equals an independent numpy PPO in float64", update_equals_numpy),
        ("the update equals Stable-Baselines3's PPO.train()", update_equals_sb3),
        ("GAE equals its O(T^2) definition and SB3's RolloutBuffer", advantages),
        ("autoreset modes give the same batch", autoreset_modes),
    ]
    checkings += [(f"{name}: ratio 1, KL 0, gradient", partial(first_minibatch, name)) for name in ACTIONS]
    claim = "the native vector environment equals the scalar one"
    checkings += [(f"{name}: {claim}", partial(native, name)) for name in CLASSIC]
    return checkings + [(f"KL estimators on {task}", partial(kl_estimators, task)) for task in TASKS]


def language_model_checks() -> list[Checking]:
    """The checks of ``--model`` on a tiny random GPT-2 (absolute positions) and Llama (rotary positions)."""
    checkings: list[Checking] = []
    for name, model in tiny_models().items():
        subject = Model(model)
        for checking in [*model_checks(subject), *text_checks(subject)]:
            checkings.append((checking[0], partial(_named, f"tiny {name}", checking)))
    return checkings


def tiny_models() -> dict[str, Any]:
    """Of `families`; weights large enough for a non-uniform distribution."""
    from agents.verification.models.families import build

    return {"GPT-2": build("gpt2", {}), "Llama": build("llama", {})}


def update_equals_numpy() -> Check:
    """Three epochs of three minibatches, with clipping, entropy bonus and gradient clipping."""
    policy = _policy(spaces.Discrete(3), hidden=(8, 8)).double()
    batch, reference = _batch(policy), NumpyPPO(policy)
    config = UpdateConfig(epochs=3, minibatch_size=10, value_coef=0.7, entropy_coef=0.01)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3, eps=1e-5)
    update(policy, optimizer, batch, config, clip=0.05, generator=torch.Generator().manual_seed(7))
    names = ("observations", "actions", "old_logprobs", "advantages", "returns")
    x, actions, old, advantages, returns = (getattr(batch, name).flatten(0, 1).numpy() for name in names)
    advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
    settings = {"clip": 0.05, "value_coef": 0.7, "entropy_coef": 0.01, "max_norm": 0.5, "rate": 1e-3}
    shuffles = torch.Generator().manual_seed(7)
    for _ in range(3):
        for part in np.split(torch.randperm(30, generator=shuffles).numpy(), 3):
            reference.step(x[part], actions[part], old[part], advantages[part], returns[part], **settings)
    gaps = [np.abs(value.detach().numpy() - reference.p[name]).max() for name, value in policy.named_parameters()]
    return at_most("the update equals an independent numpy PPO in float64, parameters", float(np.max(gaps)), 1e-9)


def update_equals_sb3() -> list[Check]:
    """Discrete and Box, by autograd and by the analytic gradient."""
    checks = []
    for env_id, fast in product(("CartPole-v1", "Pendulum-v1"), (False, True)):
        claim = f"the update equals SB3's PPO.train(), {env_id}{', analytic gradient' if fast else ''}, parameters"
        checks.append(at_most(claim, update_difference(env_id, fast=fast), 1e-6))
    return checks


def advantages() -> list[Check]:
    """Five random mixtures of terminated, truncated and masked steps."""
    worst = 0.0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        terminated = rng.random((6, 17)) < 0.15
        ended = terminated | (rng.random((6, 17)) < 0.15)
        ended[:, -1] = True
        mask = rng.random((6, 17)) < 0.85
        rollout = dict(zip(("rewards", "values", "next_values"), rng.normal(size=(3, 6, 17)), strict=True))
        rollout |= {"terminated": terminated, "ended": ended}
        tensors = {name: torch.from_numpy(value) for name, value in rollout.items()}
        ours = generalized_advantages(**tensors, gamma=0.97, lam=0.9, mask=torch.from_numpy(mask)).numpy()
        gap = np.abs(ours - advantages_by_definition(rollout, gamma=0.97, lam=0.9, mask=mask)).max()
        worst = float(np.maximum(worst, gap))
    return [
        at_most("GAE equals its O(T^2) definition, any mixture of episode ends and masks", worst, 1e-12),
        at_most("GAE and returns equal SB3's RolloutBuffer (float32)", advantage_difference(), 1e-5),
    ]


def autoreset_modes() -> list[Check]:
    """Acrobot and Pendulum truncated after 25 steps; CartPole also terminates."""
    checks = []
    for env_id in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1"):
        subject = Subject(env_id)
        claim = "all autoreset modes give the same training data (A2)"
        for checking in ((claim, partial(modes_agree, subject)), ("A1", partial(counted, subject))):
            checks += _named(env_id, checking)
    return checks


def first_minibatch(kind: str) -> list[Check]:
    """At learning rate 0: two epochs of ratio 1. At ratio 1: PPO's gradient against that of ``-mean(log pi A)``."""
    policy = _policy(ACTIONS[kind])
    batch = _batch(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.0)
    config = UpdateConfig(epochs=2, minibatch_size=7)
    metrics = update(policy, optimizer, batch, config, clip=1e-3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        now = policy.evaluate(batch.observations, batch.actions).logprobs
    ratio = float((now - batch.old_logprobs).exp().sub(1).abs().max())
    policy.zero_grad()
    (-(policy.evaluate(batch.observations, batch.actions).logprobs * batch.advantages).mean()).backward()
    plain = flat_grad(policy.actor)
    policy.zero_grad()
    whole = UpdateConfig(epochs=1, minibatch_size=10**6, normalize_advantages="none", max_grad_norm=1e9)
    update(policy, optimizer, batch, whole, clip=0.2, generator=torch.Generator())
    ours = flat_grad(policy.actor)
    checks = [
        at_most(f"{kind}: first minibatch, largest |ratio - 1|", ratio, 1e-5),
        at_most(f"{kind}: approximate KL, nats, at learning rate 0", metrics["train/approx_kl"], 1e-9),
        at_most(f"{kind}: clip fraction at clip 0.001, learning rate 0", metrics["train/clip_fraction"], 0.0),
        at_most(f"{kind}: at ratio 1 PPO's gradient = policy gradient's", relative_error(ours, plain), 1e-5),
    ]
    if is_fast(policy):
        fast = FastMLP(policy)
        fast.ppo_gradient(batch.single_steps(), whole, 0.2)
        # in the order of `policy.actor.parameters()`
        layers = zip(fast.weight_gradients, fast.bias_gradients, strict=True)
        quick = torch.cat([part.flatten() for w, bias in layers for part in (w[0], bias[: len(w[0])])])
        checks.append(at_most(f"{kind}: analytic gradient = policy gradient's", relative_error(quick, plain), 1e-5))
    return checks


def native(env_id: str) -> Check:
    """Sixteen copies; after every one of 60 steps each is compared with the scalar environment in the same state."""
    envs = make_vector(env_id, 16, AutoresetMode.SAME_STEP)
    observations, _ = envs.reset(seed=3)
    scalar = gym.make(env_id).unwrapped
    firsts = [gym.make(env_id).reset(seed=3 + i)[0] for i in range(envs.num_envs)]
    worst, rng, wrong = float(np.abs(firsts - observations).max()), np.random.default_rng(0), 0
    for _ in range(60):
        before = envs.state_dict()["state"].T.copy()  # type: ignore[attr-defined]
        actions = _random_actions(envs, rng)
        observations, rewards, terminated, _, info = envs.step(actions)
        for i in range(envs.num_envs):
            scalar.reset(seed=0)
            scalar.state = before[i].astype(np.float32) if env_id == "MountainCarContinuous-v0" else before[i]  # type: ignore[attr-defined]
            seen, reward, ended, _, _ = scalar.step(actions[i])
            mine = info["final_obs"][i] if "final_obs" in info and info["_final_obs"][i] else observations[i]
            gap = np.abs(mine - seen).max() + abs(float(rewards[i]) - float(reward))
            worst, wrong = float(np.maximum(worst, gap)), wrong + (bool(terminated[i]) != ended)
    note = f" over {60 * envs.num_envs} steps; {wrong} ends differ"
    claim = f"{env_id}: the native vector form equals the scalar original"
    return at_most(claim, np.inf if wrong else worst, 1e-5, note)


def kl_estimators(task: str) -> list[Check]:
    """Halfway from the reference to the optimum, by enumeration (``scripts.kl_bias`` explains the two truths)."""
    found, exact = kl_biases(TASKS[task]()), 1e-9
    value = {name: bias.value_error for name, bias in found.items()}
    token = {name: bias.token_gradient_error for name, bias in found.items()}
    priced = near("", found["k1 in the reward"].sequence_gradient_error, 0.0, exact)
    no_gradient = near("", token["k1"], 1, exact)
    rows = {
        "k1: value exact; as a loss it has no gradient": [near("", value["k1"], 0, exact), no_gradient],
        "k2: value biased; gradient exact": [at_least("", abs(value["k2"]), 1e-3), near("", token["k2"], 0, exact)],
        "k3: value exact; gradient biased": [near("", value["k3"], 0, exact), at_least("", token["k3"], 0.01)],
        "full KL: value and gradient exact": [near("", value["full"], 0, exact), near("", token["full"], 0, exact)],
        "k1 as a price in the reward: the sequences' gradient exact": [priced],
    }
    return [joint(f"{task}, relative errors, {claim}", parts) for claim, parts in rows.items()]


def _policy(action_space: spaces.Space[Any], **options: Any) -> MLPPolicy:
    """Weights large enough for a non-uniform policy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = MLPPolicy(SEEN, action_space, **options)
        for parameter in policy.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return policy


def _batch(policy: MLPPolicy, rows: int = 6, steps: int = 5) -> Batch:
    """Its own actions on random observations, with random values, advantages and returns."""
    generator, kind = torch.Generator().manual_seed(0), next(policy.parameters()).dtype
    draw = partial(torch.randn, rows, steps, generator=generator)
    observations = torch.randn(rows, steps, 4, generator=generator).to(kind)
    actions, logprobs = policy.act(observations, generator=generator)
    values, advantages, returns = (draw().to(kind) for _ in range(3))
    mask = torch.ones(rows, steps, dtype=torch.bool)
    return Batch(observations, actions, logprobs.to(kind), values, advantages, returns, mask)


def _random_actions(envs: Any, rng: np.random.Generator) -> Any:
    """Continuous ones also leave their bounds."""
    if isinstance(envs.single_action_space, spaces.Box):
        return rng.normal(0.0, 1.5, envs.action_space.shape).astype(np.float32)
    return rng.integers(envs.single_action_space.n, size=envs.num_envs)


def _named(subject: str, checking: Checking) -> list[Check]:
    return [check._replace(claim=f"{subject}: {check.claim}") for check in run([checking])]
