"""Tasks whose value and policy are known by hand, learned by the real PPO through its real collector."""

import numpy as np
import pytest
from gymnasium import spaces

from agents.control.ppo import ControlPPO as PPO
from agents.verification.exact.probes import PROBES, Chain, OneStep, trained, value_and_policy


@pytest.mark.parametrize("name", PROBES)
def test_value_and_policy_are_the_known_ones(name):
    check = PROBES[name]()
    assert check.passed, f"{check.claim}: expected {check.expected}, found {check.measured}"


def test_a_probe_fails_where_time_limits_are_taken_for_ends(monkeypatch):
    compute = PPO.compute_advantages

    def forgetful(self, rollout):
        rollout.terminated.copy_(rollout.ended)
        return compute(self, rollout)

    monkeypatch.setattr(PPO, "compute_advantages", forgetful)
    assert not PROBES["truncated_SameStep"]().passed


def test_another_reward_is_not_taken_for_the_known_one():
    agent = trained(lambda: OneStep(spaces.Discrete(1), spaces.Discrete(2), lambda o, a: 1.0 - 2 * a), updates=20)
    value, policy = value_and_policy(agent, np.array([0]))
    assert value[0] == pytest.approx(1, abs=0.05)
    assert policy[0, 1] < 0.1


def test_a_chain_is_truncated_or_terminated_by_its_clock_and_terminated_by_leaving():
    for limit in (True, False):
        chain = Chain(2, pay=1.0, cash=5.0, limit=limit)
        chain.reset(seed=0)
        assert chain.step(1)[1:4] == (1.0, False, False)
        assert chain.step(1)[1:4] == (1.0, not limit, limit)
        chain.reset()
        assert chain.step(0)[1:4] == (5.0, True, False)
