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
from functools import partial
from typing import Any, NamedTuple

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

    The last step may pay ``pay_last`` instead; with no ``cash`` action 0 continues, too. With ``limit`` the end of time
    is a time limit (truncated, clock not seen), else the end of the task (terminated, clock is the observation).
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


class Probe(NamedTuple):
    """A task, and what is known of it where it shows ``seen``."""

    claim: str
    make: Callable[[], gym.Env]
    seen: Any
    value: Any  # V to within reward units; or a function of the agent
    policy: Any = None  # probabilities of the actions (Box: means) to 0.1; those of masked ones are 0
    actions: Any = None  # the likeliest ones, exactly
    settings: dict[str, Any] = {}  # noqa: RUF012 (of a named tuple)
    within: float = 0.05

    def check(self, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> Check:
        """Train, and compare."""
        agent = trained(self.make, mode=mode, **self.settings)
        seen = self.seen if isinstance(self.seen, dict) else np.array(self.seen)
        value, policy = value_and_policy(agent, seen)
        parts = [near("", value, self.value(agent) if callable(self.value) else self.value, self.within)]
        if self.policy is not None:
            parts.append(near("", np.ravel(policy), np.ravel(self.policy), 0.1))
        if self.actions is not None:
            chosen, _ = agent.predict(seen, deterministic=True)
            parts.append(near("", np.ravel(chosen), np.ravel(self.actions), 0))
        if isinstance(seen, dict):
            forbidden = policy[seen["action_mask"] == 0]
            parts.append(near("", forbidden, np.zeros_like(forbidden), 0))
        return joint(self.claim.format(mode=mode.value), parts)


class Forbidding(OneStep):
    """The last of three arms is forbidden."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """The mask, and an observation without information."""
        super().reset(seed=seed)
        self.seen = {"x": np.int64(0), "action_mask": np.array([1, 1, 0], np.int8)}
        return self.seen, {}


def one_step(seen: Space[Any], acts: Space[Any], reward: Callable[[Any, Any], float]) -> Callable[[], OneStep]:
    """What makes a `OneStep`."""
    return partial(OneStep, seen, acts, reward)


EVEN: dict[str, Any] = {"normalize_advantages": "none", "entropy_coef": 0.1}
"""With all rewards equal, the optimum of reward plus entropy is the uniform policy, for any bonus."""
MASKED = Dict({"x": Discrete(1), "action_mask": Box(0, 1, (3,), np.int8)})
START, PAIRS = np.array([1, 0]), np.array([(i, j) for i in range(2) for j in range(3)])
BITS = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.int8)
TARGETS = np.array([[0, 0], [0.4, -0.4], [-0.3, 0.2]], np.float32)
KNOWN = {
    "constant": Probe(
        "constant reward: V = 1, uniform policy",
        one_step(Discrete(1), Discrete(2), lambda o, a: 1.0), [0], 1.0, [0.5, 0.5], settings=EVEN,
    ),
    "observation": Probe(
        "reward by observation: V = (-1, 1), uniform policy",
        one_step(Discrete(2), Discrete(2), lambda o, a: 2.0 * o - 1), [0, 1], [-1, 1], [[0.5, 0.5]] * 2, settings=EVEN,
    ),
    "two_steps": Probe(
        "two-step discount: V = (gamma, 1), uniform policy",
        partial(Chain, 2, pay=0.0, pay_last=1.0, cash=None, limit=False),
        [0, 1], [GAMMA, 1.0], [[0.5, 0.5]] * 2, settings=EVEN,
    ),
    "action": Probe(
        "reward by action: V = 1, p(best) = 1",
        one_step(Discrete(1), Discrete(2), lambda o, a: 2.0 * a - 1), [0], 1.0, [0, 1],
    ),
    "both": Probe(
        "reward by observation and action: V = 1",
        one_step(Discrete(2), Discrete(2), lambda o, a: 1.0 if a == o else -1.0), [0, 1], [1, 1], np.eye(2),
    ),
    # V is the mean reward, the bonus is no reward: 0.5 * 0.2447 + 1 * 0.6652 = 0.7876. pi = (1, e, e^2) / (1 + e + e^2)
    "mixture": Probe(
        "a stochastic optimum: pi = exp(r / alpha) / Z",
        one_step(Discrete(1), Discrete(3), lambda o, a: a / 2), [0], 0.7876, [0.09003, 0.24473, 0.66524],
        settings={"updates": 44, "num_steps": 64, **EVEN, "entropy_coef": 0.5}, within=0.03,
    ),
    "masked": Probe(
        "the best arm is masked: p = 0 exactly, the second best is found",
        partial(Forbidding, MASKED, Discrete(3), lambda o, a: a / 2 if o["action_mask"][a] else np.nan),
        {"x": np.array([0]), "action_mask": np.array([[1, 1, 0]])}, 0.5, [0, 1, 0], settings={"updates": 25},
    ),
    "identity_discrete": Probe(
        "identity, Discrete(4, start=-1)",
        one_step(Discrete(4), Discrete(4, start=-1), lambda o, a: float(a == o - 1)),
        range(4), [1] * 4, np.eye(4), [-1, 0, 1, 2], settings={"updates": 20, "num_steps": 32},
    ),
    # half a point for each part that is right
    "identity_multidiscrete": Probe(
        "identity, MultiDiscrete([2, 3], start=[1, 0])",
        one_step(MultiDiscrete([2, 3]), MultiDiscrete([2, 3], start=START), lambda o, a: np.mean(a - START == o)),
        PAIRS, [1] * 6, actions=PAIRS + START, settings={"updates": 20, "num_steps": 32},
    ),
    # a third of a point for each bit that is right
    "identity_multibinary": Probe(
        "identity, MultiBinary(3)", one_step(MultiBinary(3), MultiBinary(3), lambda o, a: np.mean(o == a)),
        BITS, [1] * 8, actions=BITS, settings={"updates": 20, "num_steps": 32},
    ),
    # 1 minus the squared distance
    "identity_box": Probe(
        "identity, Box: mean = observation, V = 1 - variance",
        one_step(Box(-0.5, 0.5, (2,)), Box(-2, 2, (2,)), lambda o, a: 1 - np.square(o - a).sum()),
        TARGETS, lambda agent: [1 - float((2 * agent.policy.head.log_std).exp().sum().detach())] * 3, TARGETS,
        settings={"updates": 26, "num_steps": 32, "log_std": -1.0},
    ),
}  # fmt: skip
# Reward 1 a step for five steps: V = 1 / (1 - 0.9) = 10 with a time limit, so that leaving for 1.5 is never best. Ended
# by its clock, 1.5 is more than 1 one step before the end: V(last) = 1.5, then V(k) = 1 + 0.9 V(k + 1).
CHAINS = {
    "truncated": Probe(
        "chain truncated by a time limit ({mode}): V = 1/(1-gamma), stay",
        partial(Chain, 5, pay=1.0, cash=1.5, limit=True), [0], 10.0, [0, 1],
        settings={"updates": 46, "num_envs": 4, "num_steps": 20},
    ),
    "terminated": Probe(
        "chain that terminates ({mode}): V(k) = 1 + gamma V(k+1), leave at the last step",
        partial(Chain, 5, pay=1.0, cash=1.5, limit=False),
        range(5), [4.42315, 3.8035, 3.115, 2.35, 1.5], [[0, 1]] * 4 + [[1, 0]],
        settings={"updates": 36, "num_envs": 4, "num_steps": 20},
    ),
}  # fmt: skip


def spelling() -> Check:
    """Spell "c a b" and stop, in token environments: a quarter for each token in its place, paid at the end; V = 1."""
    from agents.verification.exact.tabular import TabularPolicy
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
    parts = [near("", found, [3, 1, 2, 0], 0), near("", values, [1] * 4, 0.05), near("", likely, [1] * 4, 0.1)]
    return joint("spelling a word, token by token: V = 1, p(word) = 1", parts)


PROBES: dict[str, Callable[[], Check]] = {name: probe.check for name, probe in KNOWN.items()} | {"spelling": spelling}
PROBES |= {
    f"{name}_{mode.value}": partial(probe.check, mode) for name, probe in CHAINS.items() for mode in AutoresetMode
}
