"""k updates, save, load in a new process, k updates: 2k updates, bit for bit."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.control.evaluation import evaluate
from agents.functional.schedules import Linear

CONFIG = PPOConfig(
    num_envs=3,
    num_steps=24,
    minibatch_size=20,
    epochs=2,
    learning_rate=Linear(1e-3),
    clip=Linear(0.2),
    normalize_observations=True,
    normalize_rewards=True,
    hidden=(8, 8),
    seed=5,
)
TOTAL = 3 * 24 * 4


def make_env(kind: str):
    """A native vector environment by id, Gymnasium's own vector CartPole, and scalar environments run in turn."""
    if kind == "gymnasium-native":
        return gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point")
    if kind.startswith("sync "):
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        return gym.make_vec(kind[5:], num_envs=3, vectorization_mode="sync", vector_kwargs=mode)
    return kind


def fingerprint(agent: PPO) -> str:
    digest = hashlib.sha256()
    for tensor in agent.policy.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    digest.update(repr(agent.metrics["train/loss"]).encode())
    digest.update(repr(agent.metrics["rollout/return_mean"]).encode())
    return digest.hexdigest()


def stop_at(updates: int):
    return lambda agent: agent.updates < updates


CODE = """
import sys, torch
torch.set_num_threads(1)
sys.path[:0] = {path!r}
from test_resume import PPO, fingerprint, make_env
for kind, file in {pairs!r}:
    agent = PPO.load(file, env=make_env(kind))
    agent.learn()
    print(fingerprint(agent))
"""
KINDS = ["CartPole-v1", "gymnasium-native"]
KINDS += [f"sync {name}" for name in ("CartPole-v1", "Pendulum-v1", "MountainCar-v0", "Acrobot-v1")]


def test_a_run_resumed_in_a_new_process_ends_where_an_undisturbed_one_ends(tmp_path):
    torch.set_num_threads(1)
    expected, pairs = [], []
    for i, kind in enumerate(KINDS):
        straight = PPO(make_env(kind), CONFIG).learn(TOTAL)
        broken = PPO(make_env(kind), CONFIG).learn(TOTAL, stop_at(2))
        assert broken.steps < straight.steps
        pairs.append((kind, str(broken.save(tmp_path / str(i)))))
        straight.metrics.setdefault("rollout/return_mean", 0.0)
        expected.append(straight)
    code = textwrap.dedent(CODE).format(path=[str(__import__("pathlib").Path(__file__).parent)], pairs=pairs)
    code = code.replace("    print(", "    agent.metrics.setdefault('rollout/return_mean', 0.0)\n    print(")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.split() == [fingerprint(agent) for agent in expected]


def test_the_same_seed_gives_the_same_parameters_and_looking_changes_nothing():
    def run(look: bool) -> str:
        agent = PPO("CartPole-v1", CONFIG)
        envs = PPO("CartPole-v1", CONFIG).env

        def callback(agent: PPO) -> bool:
            if look:
                evaluate(agent, envs, 3, seed=0)
                agent.predict(envs.reset(seed=1)[0])
                agent.state_dict()
            return True

        return fingerprint(agent.learn(TOTAL, callback))

    assert run(False) == run(False) == run(True)


def test_another_seed_gives_other_parameters():
    one = PPO("CartPole-v1", PPOConfig(num_envs=2, num_steps=8, epochs=1, seed=0))
    other = PPO("CartPole-v1", PPOConfig(num_envs=2, num_steps=8, epochs=1, seed=1))
    assert not torch.equal(one.policy.actor[0].weight, other.policy.actor[0].weight)


def test_there_is_nothing_to_go_on_with_in_a_fresh_agent():
    with pytest.raises(ValueError, match="expected total_timesteps"):
        PPO("CartPole-v1", CONFIG).learn()
