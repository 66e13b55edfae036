"""The optimality gap of each algorithm and credit on dialogues whose best policy is known.

    python -m scripts.exact_gap --policy dialogue --algorithm all

A table of every state starts as the reference. PPO learns where the limit of turns ends the game and where it truncates
it; algorithms without a critic only where it ends it, since nothing tells them what a truncated dialogue would bring.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import torch

from agents.functional.schedules import Linear
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import Algorithm, TextAgentConfig
from agents.text.stepwise import generate_by_acting
from agents.verification.tabular import TabularDialoguePolicy
from textenvs.exact.dialogues import DialogueTask
from textenvs.exact.envs import EOS_TOKEN

ENDS, TRUNCATES = "textenvs/ExactDialogue-v0", "textenvs/ExactDialogueTruncated-v0"
CASES: tuple[tuple[str, Algorithm, str], ...] = (
    (ENDS, "ppo", "token"),
    (ENDS, "ppo", "turn"),
    (TRUNCATES, "ppo", "token"),
    (TRUNCATES, "ppo", "turn"),
    (ENDS, "grpo", "token"),
    (ENDS, "grpo", "turn"),
    (ENDS, "grpo", "state"),
    (ENDS, "rloo", "token"),
    (ENDS, "rloo", "turn"),
    (ENDS, "rloo", "state"),
    (ENDS, "reinforce", "token"),
    (ENDS, "reinforce", "turn"),
)
"""Environment, algorithm and credit."""
NUM_ENVS = 512
UPDATES: dict[Algorithm, int] = {"ppo": 60, "grpo": 400, "rloo": 400, "reinforce": 400}
"""Rollouts that each training learns from."""
SETTINGS: dict[Algorithm, dict[str, Any]] = {
    "ppo": {"minibatch_size": 128, "epochs": 2, "lam": 0.95, "value_coef": 1.0, "max_grad_norm": 10.0},
    "grpo": {"minibatch_size": NUM_ENVS, "epochs": 1, "group_size": 8, "max_grad_norm": 1.0},
    "rloo": {"minibatch_size": NUM_ENVS, "group_size": 8, "max_grad_norm": 1.0},
    "reinforce": {"minibatch_size": NUM_ENVS, "max_grad_norm": 1.0},
}
"""Over the papers' choices, for a table."""


def train_dialogue(
    env_id: str, algorithm: Algorithm, credit: str, *, seed: int = 0, updates: int | None = None
) -> dict[str, float]:
    """Train a table, and compare its objective with the best one; neither is sampled.

    Returns:
        ``gap``, share of (optimum - start) that is still to go; ``start``, ``attained`` and ``optimum``, reward units;
        ``train_s``, seconds.
    """
    group_size = SETTINGS[algorithm].get("group_size", 1)
    envs = gym.make_vec(env_id, num_envs=NUM_ENVS, group_size=group_size)
    task: DialogueTask = envs.unwrapped.task  # type: ignore[attr-defined]
    discount = {"gamma_turn": task.gamma_turn} if algorithm == "ppo" else {}
    config = TextAgentConfig.for_algorithm(
        algorithm,
        **SETTINGS[algorithm],
        **discount,
        credit=credit,
        kl_in="reward",
        learning_rate=Linear(0.05, 0.0),
        seed=seed,
    )
    policy: Any = TabularDialoguePolicy(task, eos_token_id=EOS_TOKEN, has_critic=config.uses_critic)
    agent = TextAgent(config, policy, TextCollector(envs, seed=seed, generate=generate_by_acting))
    began = time.perf_counter()
    agent.learn(NUM_ENVS * (UPDATES[algorithm] if updates is None else updates))
    table = torch.log_softmax(policy.logits[:-1].detach().double(), -1).numpy()
    return {
        "gap": task.gap(table),
        "start": task.objective(task.ref_logprobs),
        "attained": task.objective(table),
        "optimum": task.objective(task.optimum),
        "train_s": time.perf_counter() - began,
    }


def measure_dialogues(algorithms: tuple[str, ...], *, seed: int, updates: int | None) -> dict[str, Any]:
    """Train each case of ``algorithms`` and print a line for it; the summary, one flat object."""
    summary: dict[str, Any] = {}
    columns = f"{'start':>9}{'attained':>10}{'optimum':>9}{'gap %':>8}{'s':>7}"
    print(f"{'algorithm':11}{'credit':8}{'environment':36}{columns}")
    for env_id, algorithm, credit in CASES:
        if algorithm not in algorithms:
            continue
        found = train_dialogue(env_id, algorithm, credit, seed=seed, updates=updates)
        print(
            f"{algorithm:11}{credit:8}{env_id:36}{found['start']:9.4f}{found['attained']:10.4f}{found['optimum']:9.4f}"
            f"{100 * found['gap']:8.3f}{found['train_s']:7.1f}",
            flush=True,
        )
        name = f"{algorithm}_{credit}_{env_id.removeprefix('textenvs/').removesuffix('-v0')}"
        summary |= {f"{name}_{key}": value for key, value in found.items()}
    summary["gap_worst"] = max(value for key, value in summary.items() if key.endswith("_gap"))
    summary["wall_s"] = sum(value for key, value in summary.items() if key.endswith("_train_s"))
    return summary
