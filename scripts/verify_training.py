"""What the proof shows by training: probes, the distance from known optima, a resumed run, CartPole solved."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from agents.best import BestKeeper
from agents.config import PPOConfig
from agents.control_presets import preset_for
from agents.environments import make_vector
from agents.evaluation import evaluate
from agents.ppo import PPO
from agents.schedules import Linear
from scripts import exact_gap
from scripts.checks import Check, Checking, at_least, at_most
from scripts.probes import PROBES

ROOT = Path(__file__).resolve().parents[1]
SOLVED = 475.0
"""CartPole-v1's reward threshold, reward units."""
GAP = 0.02
"""Of PPO, share of (optimum - start)."""
RESUMED = PPOConfig(
    num_envs=3,
    num_steps=24,
    minibatch_size=20,
    epochs=2,
    learning_rate=Linear(1e-3),
    clip=Linear(0.2),
    normalise_observations=True,
    normalise_rewards=True,
    hidden=(8, 8),
    seed=5,
)
CONTINUE = """
import sys, torch
torch.set_num_threads(1)
from agents import PPO
from scripts.verify_training import fingerprint
for path in sys.argv[1:]:
    print(fingerprint(PPO.load(path).learn()))
"""


def probe_checks() -> list[Checking]:
    """Every probe; about a second each."""
    return [(f"probe {name}", probe) for name, probe in PROBES.items()]


def resume_checks() -> list[Checking]:
    """One new process for all tasks."""
    return [("saved, loaded in a new process and gone on = undisturbed, bit for bit", resumed)]


def cart_pole_checks() -> list[Checking]:
    """The preset of ``train_control``."""
    return [("CartPole-v1 is solved by its preset: greedy mean over 100 episodes", cart_pole)]


def gap_checks(*, full: bool) -> list[Checking]:
    """The optimality gap of whatever ``exact_gap`` trains.

    Args:
        full: every policy, algorithm and environment; else PPO, a table on all environments and a tiny GPT-2 on one.
    """
    algorithms = list(get_args(get_type_hints(exact_gap.ExactGapConfig)["algorithm"]))
    checkings: list[Checking] = []
    for key, trainer in exact_gap.TRAINERS.items():
        name = key if isinstance(key, str) else " ".join(key)
        takes = "algorithm" in inspect.signature(trainer).parameters
        named = next((one for one in algorithms if one in name.split()), None)
        for algorithm in algorithms if takes else [named or "ppo"]:
            if algorithm != "ppo" and not full:
                continue
            options = {"algorithm": algorithm} if takes else {}
            envs = exact_gap.ENVS if full or "tabular" in name else exact_gap.ENVS[:1]
            label = name if algorithm in name else f"{name}, {algorithm}"
            checkings += [
                (f"optimality gap, {label}, {env_id}", partial(gap, trainer, env_id, label, options)) for env_id in envs
            ]
    return checkings


def gap(trainer: Callable[..., Any], env_id: str, label: str, options: dict[str, Any]) -> Check:
    """One training of its usual length, seed 0."""
    result = trainer(env_id, seed=0, **options)
    note = f": J = {result.start:.4f} -> {result.attained:.4f} of {result.optimum:.4f}"
    short = env_id.removeprefix("textenvs/").removesuffix("-v0")
    return at_most(f"optimality gap, {label}, {short}", result.gap, GAP, note)


def resumed() -> list[Check]:
    """Six updates, and three, a new process, and three more; normalisers and schedules at work."""
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
    claim = "saved, loaded in a new process and gone on = undisturbed, bit for bit"
    return [Check(f"{env_id}: {claim}", mine, other, mine == other) for env_id, mine, other in rows]


def fingerprint(agent: PPO) -> str:
    """A hash of the parameters and of the last loss."""
    digest = hashlib.sha256()
    for value in agent.policy.state_dict().values():
        digest.update(value.numpy().tobytes())
    digest.update(repr(agent.metrics["train/loss"]).encode())
    return digest.hexdigest()[:16]


def cart_pole() -> Check:
    """Train for the preset's steps, keep the best weights, judge them by episodes of their own."""
    preset = preset_for("CartPole-v1")
    agent, envs = PPO("CartPole-v1", preset.config), make_vector("CartPole-v1", 100)
    keeper = BestKeeper(envs, every=preset.evaluate_every, seed=77)
    agent.learn(preset.total_steps, keeper)
    keeper.give_back(agent)
    returns, _ = evaluate(agent, envs, 100, seed=99)
    claim = "CartPole-v1 is solved by its preset: greedy mean over 100 episodes"
    return at_least(claim, returns.mean(), SOLVED, f" after {agent.steps} steps")
