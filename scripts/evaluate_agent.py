"""Evaluate a saved agent: whole episodes in fresh environments.

python -m scripts.evaluate_agent --agent runs/cartpole/best.safetensors --episodes 100
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from agents import PPO, checkpoint
from agents.environments import make_vector
from agents.evaluation import evaluate


@dataclass(frozen=True, kw_only=True)
class Config:
    """Evaluate a saved control agent."""

    agent: Path
    """what ``PPO.save`` wrote (best.safetensors in a run directory), or the run directory itself"""
    env: str | None = None
    """Gymnasium id; default: the one the agent was trained on"""
    episodes: int = 100
    """episodes to play"""
    seed: int = 0
    """of the environments' first reset"""
    stochastic: bool = False
    """sample actions instead of taking the likeliest"""
    device: str = "cpu"
    """where the networks live"""


def main(config: Config) -> dict[str, Any]:
    """Play, and return the figures.

    Raises:
        CheckpointError: if the agent cannot be loaded.
        ValueError: if neither the agent nor ``--env`` names an environment.
    """
    torch.set_num_threads(1)
    path = config.agent / "best.safetensors" if config.agent.is_dir() else config.agent
    agent = PPO.load(path, device=config.device)
    env_id = config.env or agent.env_id
    if env_id is None:
        raise ValueError("the agent was not trained on an id: pass --env")
    envs = make_vector(env_id, min(config.episodes, 100))
    returns, lengths = evaluate(agent, envs, config.episodes, seed=config.seed, deterministic=not config.stochastic)
    return {
        "env": env_id,
        "eval_return_mean": float(returns.mean()),
        "eval_return_std": float(returns.std()),
        "eval_length_mean": float(lengths.mean()),
        "eval_episodes": len(returns),
    }


def run(config: Config) -> int:
    """``main`` with errors turned into messages; the exit code."""
    try:
        print(json.dumps(main(config), indent=2))
    except (checkpoint.CheckpointError, gym.error.Error, ModuleNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    import tyro

    sys.exit(run(tyro.cli(Config)))
