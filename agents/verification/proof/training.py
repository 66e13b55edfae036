"""Checks that train: probes, optimality gaps, a resumed run, CartPole solved."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.control.best import BestKeeper
from agents.control.environments import make_vector
from agents.control.evaluation import evaluate
from agents.control.presets import preset_for
from agents.functional.schedules import Linear
from agents.text.config import Algorithm, Paper
from agents.verification.checks import Check, Checking, at_least, at_most
from agents.verification.environments.learning import fingerprint
from agents.verification.exact.gap import train
from agents.verification.exact.settings import ALGORITHMS, DIALOGUES, ENVS

ROOT = Path(__file__).resolve().parents[3]
SOLVED = 475.0
"""CartPole-v1's reward threshold, reward units."""
GAP: dict[Paper, float] = dict.fromkeys(ALGORITHMS, 0.03) | {"ppo": 0.02}
"""Largest accepted gap to the optimum, share of (optimum - start)."""
RESUMED = PPOConfig(
    num_envs=3, num_steps=24, minibatch_size=20, epochs=2, learning_rate=Linear(1e-3), clip=Linear(0.2),
    normalize_observations=True, normalize_rewards=True, hidden=(8, 8), seed=5,
)  # fmt: skip
DIALOGUE_GAP = 0.03
"""The same for dialogues."""
CONTINUE = """
import sys, torch
torch.set_num_threads(1)
from agents import PPO
from agents.verification.environments.learning import fingerprint
for path in sys.argv[1:]:
    print(fingerprint(PPO.load(path).learn()))
"""


def gap_checks(*, full: bool) -> list[Checking]:
    """The gap of each algorithm, a line for all environments: of a table, and of a GPT-2 (not ``full``: PPO's)."""
    asked: list[tuple[str, Paper, Sequence[str]]] = [("tabular", algorithm, ENVS) for algorithm in ALGORITHMS]
    asked += [("gpt2", algorithm, ENVS) for algorithm in get_args(Algorithm)] if full else [("gpt2", "ppo", ENVS[:1])]
    talked: list[Checking] = [
        (f"optimality gap, dialogues, {a}, credit {c}, {e}", partial(dialogue_gap, e, a, c))
        for e, a, c in (DIALOGUES if full else DIALOGUES[:4])
    ]
    return talked + [
        (f"optimality gap, {policy}, {algorithm}, {len(envs)} environments", partial(gap, policy, algorithm, envs))
        for policy, algorithm, envs in asked
    ]


def gap(policy: str, algorithm: Paper, envs: Sequence[str]) -> Check:
    """Train with the default number of updates and seed 0 on each environment; the worst gap counts."""
    gaps = {env_id: train(policy, env_id, algorithm).gap for env_id in envs}
    shares = [f"{env_id.removeprefix('textenvs/Exact').removesuffix('-v0')} {gaps[env_id]:.2%}" for env_id in envs]
    claim = f"optimality gap, {policy}, {algorithm}: worst environment"
    return at_most(claim, max(gaps.values()), GAP[algorithm], f": {', '.join(shares)}")


def dialogue_gap(env_id: str, algorithm: Paper, credit: str) -> Check:
    """Train with the default number of updates and seed 0."""
    claim = f"optimality gap, dialogues, {algorithm}, credit {credit}, {env_id.removeprefix('textenvs/')}"
    return at_most(claim, train("dialogue", env_id, algorithm, credit=credit).gap, DIALOGUE_GAP)


def resumed() -> list[Check]:
    """Six updates, and three, a new process, and three more; with normalizers and schedules."""
    tasks = ("CartPole-v1", "Pendulum-v1", "MountainCar-v0", "Acrobot-v1")
    total = 6 * RESUMED.num_envs * RESUMED.num_steps
    with tempfile.TemporaryDirectory() as folder:
        straight = [fingerprint(PPO(env_id, RESUMED).learn(total)) for env_id in tasks]
        paths = [
            str(PPO(env_id, RESUMED).learn(total, lambda agent: agent.updates < 3).save(Path(folder) / env_id))
            for env_id in tasks
        ]
        done = subprocess.run([sys.executable, "-c", CONTINUE, *paths], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the new process failed: {done.stderr[-200:]}")
    rows = zip(tasks, straight, done.stdout.split(), strict=True)
    claim = "resumed in a new process = uninterrupted, bit for bit"
    return [Check(f"{env_id}: {claim}", mine, other, mine == other) for env_id, mine, other in rows]


def cart_pole() -> Check:
    """Train for the preset's steps, keep the best weights, evaluate them on separate episodes."""
    preset = preset_for("CartPole-v1")
    agent, envs = PPO("CartPole-v1", preset.config), make_vector("CartPole-v1", 100)
    keeper = BestKeeper(envs, every=preset.evaluate_every, seed=77)
    agent.learn(preset.total_steps, keeper)
    keeper.restore_best(agent)
    returns, _ = evaluate(agent, envs, 100, seed=99)
    return at_least("", returns.mean(), SOLVED, f" after {agent.steps} steps")
