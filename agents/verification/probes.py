"""Probes: tasks so small that value and policy are known by hand, each learned by the real PPO in under two seconds.

    constant, observation, two steps    only the critic learns; a small entropy bonus keeps the policy uniform
    action, both, identity_*, masked    one action is best, in every kind of action space
    truncated, terminated               the same chain, truncated by a time limit or terminated
    mixture                             the best policy is stochastic, with known probabilities
    spelling                            a word, letter by letter, with the reward at its end

Idea: Andy Jones, "Debugging RL, Without the Agonizing Pain" (2021), extended from values to policies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.control.ppo import ControlPPO
from agents.functional.schedules import Linear
from agents.verification.checks import Check, joint, near

GAMMA = 0.9
"""Discount per step of the chains."""


class OneStep(gym.Env):
    """One step: a random observation, one action, ``reward(observation, action)`` in reward units."""

    def __init__(
        self, observation_space: Space[Any], action_space: Space[Any], reward: Callable[[Any, Any], float]
    ) -> None:
        self.observation_space, self.action_space, self.reward = observation_space, action_space, reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw an observation."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.seen = self.observation_space.sample()
        return self.seen, {}

    def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the reward and terminate."""
        assert self.action_space.contains(action), action
        return self.seen, float(self.reward(self.seen, action)), True, False, {}


class Chain(gym.Env):
    """A clock of ``length`` steps. Action 1 continues for a reward of ``pay``, action 0 takes ``cash`` and ends.

    Args:
        length: steps until the time is up.
        pay: reward units a step.
        cash: reward units for leaving; None: action 0 continues like action 1.
        pay_last: reward units of the last step, if it is another one.
        limit: the end of time is a time limit (truncated, clock not seen), not the end of the task (terminated, clock
            is the observation).
    """

    def __init__(
        self, length: int, *, pay: float, cash: float | None, limit: bool, pay_last: float | None = None
    ) -> None:
        self.observation_space, self.action_space = Discrete(1 if limit else length + 1), Discrete(2)
        self.length, self.pay, self.cash, self.limit = length, pay, cash, limit
        self.pay_last = pay if pay_last is None else pay_last
        self.clock = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Back to 0."""
        super().reset(seed=seed)
        self.clock = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One step of the clock."""
        if action == 0 and self.cash is not None:
            return self._seen(), self.cash, True, False, {}
        self.clock += 1
        over = self.clock == self.length
        return self._seen(), self.pay_last if over else self.pay, over and not self.limit, over and self.limit, {}

    def _seen(self) -> int:
        return 0 if self.limit else self.clock


def trained(
    make: Callable[[], gym.Env],
    *,
    updates: int = 28,
    num_envs: int = 8,
    num_steps: int = 16,
    mode: AutoresetMode = AutoresetMode.SAME_STEP,
    **settings: Any,
) -> ControlPPO:
    """The real agent, collector and update, on copies of ``make()``."""
    envs = SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
    size = num_envs * num_steps
    options: dict[str, Any] = {"num_steps": num_steps, "minibatch_size": size, "epochs": 8, "hidden": (16,)}
    options |= {"learning_rate": Linear(1e-2), "gamma": GAMMA, "value_coef": 1.0, "max_grad_norm": 10.0}
    return ControlPPO(envs, PPOConfig(**(options | settings))).learn(updates * size)


@torch.no_grad()
def value_and_policy(agent: ControlPPO, observations: object) -> tuple[np.ndarray, np.ndarray]:
    """V ``[N]`` and the action probabilities ``[N, A]`` (for Box, the means) of ``N`` observations."""
    encode, _ = agent._codecs
    features = torch.from_numpy(encode(observations))
    outputs = agent.policy.outputs(features)
    if not isinstance(agent.spaces[1], Box):  # type: ignore[index]
        outputs = torch.cat([part.softmax(-1) for part in outputs.split(agent.policy.head.sizes, -1)], -1)
    return agent.policy.values(features).numpy(), outputs.numpy()


EVEN: dict[str, Any] = {"normalize_advantages": "none", "entropy_coef": 0.1}
"""With all rewards equal, the optimum of reward plus entropy is the uniform policy, for any bonus."""


def constant() -> Check:
    """Reward 1 whatever happens: V = 1; uniform policy."""
    _, value, policy = _learned(lambda: OneStep(Discrete(1), Discrete(2), lambda o, a: 1.0), [0], **EVEN)
    return _both("constant reward: V = 1, uniform policy", value, 1.0, policy[0], [0.5, 0.5])


def observation() -> Check:
    """Reward -1 or 1 by the observation: V = (-1, 1); uniform policy."""
    _, value, policy = _learned(lambda: OneStep(Discrete(2), Discrete(2), lambda o, a: 2.0 * o - 1), [0, 1], **EVEN)
    return _both("reward by observation: V = (-1, 1), uniform policy", value, [-1, 1], policy[:, 0], [0.5, 0.5])


def two_steps() -> Check:
    """0, then 1 after the second step: V = (gamma, 1) = (0.9, 1)."""
    make = lambda: Chain(2, pay=0.0, pay_last=1.0, cash=None, limit=False)  # noqa: E731
    _, value, policy = _learned(make, [0, 1], **EVEN)
    return _both("two-step discount: V = (gamma, 1), uniform policy", value, [GAMMA, 1.0], policy[:, 0], [0.5, 0.5])


def action() -> Check:
    """Reward 1 for action 1, -1 for action 0: V = 1."""
    _, value, policy = _learned(lambda: OneStep(Discrete(1), Discrete(2), lambda o, a: 2.0 * a - 1), [0])
    return _both("reward by action: V = 1, p(best) = 1", value, 1.0, policy[0, 1], 1.0)


def both() -> Check:
    """Reward 1 where the action is the observation, -1 where not: V = 1 everywhere."""
    make = lambda: OneStep(Discrete(2), Discrete(2), lambda o, a: 1.0 if a == o else -1.0)  # noqa: E731
    _, value, policy = _learned(make, [0, 1])
    return _both("reward by observation and action: V = 1", value, [1, 1], np.diag(policy), [1, 1])


def truncated(mode: AutoresetMode = AutoresetMode.SAME_STEP) -> Check:
    """Reward 1 a step, truncated every 5 steps: V = 1 / (1 - 0.9) = 10; leaving for 1.5 is never best.

    The policy stays: Q(stay) = 10 > 1.5.
    """
    make = lambda: Chain(5, pay=1.0, cash=1.5, limit=True)  # noqa: E731
    _, value, policy = _learned(make, [0], updates=46, num_envs=4, num_steps=20, mode=mode)
    claim = f"chain truncated by a time limit ({mode.value}): V = 1/(1-gamma), stay"
    return _both(claim, value, 10.0, policy[:, 1], 1)


def terminated(mode: AutoresetMode = AutoresetMode.SAME_STEP) -> Check:
    """The same chain, ended by its clock: one step before the end 1.5 is more than 1, so the policy leaves there.

    V(last) = 1.5, then V(k) = 1 + 0.9 V(k + 1): 2.35, 3.115, 3.8035, 4.42315.
    """
    make = lambda: Chain(5, pay=1.0, cash=1.5, limit=False)  # noqa: E731
    _, value, policy = _learned(make, range(5), updates=36, num_envs=4, num_steps=20, mode=mode)
    claim = f"chain that terminates ({mode.value}): V(k) = 1 + gamma V(k+1), leave at the last step"
    return _both(claim, value, [4.42315, 3.8035, 3.115, 2.35, 1.5], policy[:, 1], [1, 1, 1, 1, 0])


def mixture() -> Check:
    """Rewards (0, 0.5, 1) with an entropy bonus of 0.5 a nat: pi = exp(r / 0.5) / Z = (1, e, e^2) / (1 + e + e^2).

    V is the mean reward, the bonus is no reward: 0.5 * 0.2447 + 1 * 0.6652 = 0.7876.
    """
    make = lambda: OneStep(Discrete(1), Discrete(3), lambda o, a: a / 2)  # noqa: E731
    _, value, policy = _learned(make, [0], updates=44, num_steps=64, **(EVEN | {"entropy_coef": 0.5}))
    best = [0.09003, 0.24473, 0.66524]
    return _both("a stochastic optimum: pi = exp(r / alpha) / Z", value, 0.7876, policy[0], best, within=0.03)


def masked() -> Check:
    """Rewards (0, 0.5, 1), the last arm forbidden: p = (0, 1, 0), V = 0.5."""
    seen = Dict({"x": Discrete(1), "action_mask": Box(0, 1, (3,), np.int8)})

    class Forbidding(OneStep):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.seen = {"x": np.int64(0), "action_mask": np.array([1, 1, 0], np.int8)}
            return self.seen, {}

    def pay(seen: Any, chosen: int) -> float:
        assert seen["action_mask"][chosen], "a masked action was taken"
        return chosen / 2

    asked = {"x": np.array([0]), "action_mask": np.array([[1, 1, 0]])}
    _, value, policy = _learned(lambda: Forbidding(seen, Discrete(3), pay), asked, updates=25)
    parts = [_both("", value, 0.5, policy[0], [0, 1, 0]), near("", policy[0, 2], 0.0, 0.0)]
    return joint("the best arm is masked: p = 0 exactly, the second best is found", parts)


def identity_discrete() -> Check:
    """Discrete(4, start=-1): 1 for the action that names the observation, so V = 1."""
    make = lambda: OneStep(Discrete(4), Discrete(4, start=-1), lambda o, a: float(a == o - 1))  # noqa: E731
    agent, value, policy = _learned(make, range(4), updates=20, num_steps=32)
    chosen, _ = agent.predict(np.arange(4), deterministic=True)
    parts = [_both("", value, [1] * 4, np.diag(policy), [1] * 4), near("", chosen, [-1, 0, 1, 2], 0)]
    return joint("identity, Discrete(4, start=-1)", parts)


def identity_multidiscrete() -> Check:
    """MultiDiscrete([2, 3], start=[1, 0]): half a point for each part that is right, so V = 1."""
    pairs = [(i, j) for i in range(2) for j in range(3)]
    acts = MultiDiscrete([2, 3], start=[1, 0])
    make = lambda: OneStep(MultiDiscrete([2, 3]), acts, lambda o, a: np.mean(a == o + np.array([1, 0])))  # noqa: E731
    agent, value, _ = _learned(make, pairs, updates=20, num_steps=32)
    chosen, _ = agent.predict(np.array(pairs), deterministic=True)
    right = (chosen - [1, 0] == pairs).mean(0)
    return _both("identity, MultiDiscrete([2, 3], start=[1, 0])", value, [1] * 6, right, [1, 1])


def identity_multibinary() -> Check:
    """MultiBinary(3): a third of a point for each bit that is right, so V = 1."""
    bits = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.int8)
    make = lambda: OneStep(MultiBinary(3), MultiBinary(3), lambda o, a: np.mean(o == a))  # noqa: E731
    agent, value, _ = _learned(make, bits, updates=20, num_steps=32)
    chosen, _ = agent.predict(bits, deterministic=True)
    return _both("identity, MultiBinary(3)", value, [1] * 8, (chosen == bits).mean(0), [1] * 3)


def identity_box() -> Check:
    """Box(2): 1 minus the squared distance, so the mean is the observation and V = 1 - (sum of the variances)."""
    make = lambda: OneStep(Box(-0.5, 0.5, (2,)), Box(-2, 2, (2,)), lambda o, a: 1 - np.square(o - a).sum())  # noqa: E731
    targets = np.array([[0, 0], [0.4, -0.4], [-0.3, 0.2]], np.float32)
    agent, value, means = _learned(make, targets, updates=26, num_steps=32, log_std=-1.0)
    spread = float((2 * agent.policy.head.log_std).exp().sum().detach())
    return _both("identity, Box: mean = observation, V = 1 - variance", value, [1 - spread] * 3, means, targets)


def spelling() -> Check:
    """Spell "c a b" and stop, in token environments: a quarter for each token in its place, paid at the end; V = 1."""
    from agents.verification.tabular import TabularPolicy
    from textenvs import PreferenceReward, TokenVectorEnv
    from textenvs.exact.enumeration import TokenTree

    class Spelling:
        @staticmethod
        def score_tokens(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
            return (completions == np.array([3, 1, 2, 0])).mean(1)

    tree = TokenTree.build(vocab_size=4, eos_token_id=0, max_new_tokens=4)
    states = np.concatenate([np.ones((len(tree.prefixes), 1), np.int64), tree.prefixes], 1)
    envs = TokenVectorEnv(32, prompts=[[1]], eos_token_id=0, vocab_size=4, max_new_tokens=4)
    policy = TabularPolicy(states, 4)
    sizes: dict[str, Any] = {"num_steps": 16, "epochs": 4, "minibatch_size": 512}
    settings = PPOConfig(learning_rate=Linear(0.1), gamma=1.0, value_coef=1.0, **sizes)
    agent = PPO(PreferenceReward(envs, Spelling()), settings, policy).learn(36 * 512)
    row, found, values, likely = states[:1].copy(), [], [], []
    for place in range(1, 5):
        with torch.no_grad():
            values.append(float(policy.values(torch.from_numpy(row))))
            likely.append(float(policy.logits[policy.index(torch.from_numpy(row))].softmax(-1).max()))
        found.append(int(agent.predict(row, deterministic=True)[0][0]))
        row[0, place] = found[-1]
    parts = [near("", found, [3, 1, 2, 0], 0), _both("", values, [1] * 4, likely, [1] * 4)]
    return joint("spelling a word, token by token: V = 1, p(word) = 1", parts)


KNOWN = (constant, observation, two_steps, action, both, mixture, masked)
IDENTITIES = (identity_discrete, identity_multidiscrete, identity_multibinary, identity_box)
PROBES: dict[str, Callable[[], Check]] = {probe.__name__: probe for probe in (*KNOWN, *IDENTITIES, spelling)}
PROBES |= {
    f"{probe.__name__}_{mode.value}": (lambda probe=probe, mode=mode: probe(mode))  # type: ignore[misc]
    for probe in (truncated, terminated)
    for mode in AutoresetMode
}


def _learned(make: Callable[[], OneStep | Chain], seen: Any, **settings: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """The agent trained on ``make()``, and its values and policy where it sees ``seen``."""
    agent = trained(make, **settings)
    return agent, *value_and_policy(agent, seen if isinstance(seen, dict) else np.array(seen))


def _both(claim: str, value: Any, known_value: Any, policy: Any, known_policy: Any, within: float = 0.05) -> Check:
    """Value to ``within`` reward units and policy to 0.1."""
    parts = [near("", value, known_value, within), near("", np.ravel(policy), np.ravel(known_policy), 0.1)]
    return joint(claim, parts)
