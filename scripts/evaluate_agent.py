"""Evaluate what a run left behind: a control agent in fresh episodes, or a tuned language model on held-out prompts.

    python -m scripts.evaluate_agent --agent runs/cartpole --episodes 100
    python -m scripts.evaluate_agent --agent runs/text --episodes 400

A control agent plays whole episodes. A language model writes on as many prompts that its training never saw, and is
compared with the model it started from, as in `scripts.train_text`. With --run-dir the figures are kept there, too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agents import load_agent
from agents.environments import make_vector
from agents.evaluation import evaluate
from scripts.front_door import enter
from scripts.run_dir import CONFIG, SUMMARY, RunDir
from scripts.train_control import BEST
from scripts.train_text import MODEL


@dataclass(frozen=True, kw_only=True)
class EvaluateAgentConfig:
    """Evaluate a saved agent."""

    agent: Path
    """run directory of train_control or train_text, or a file that an agent's `save` wrote"""
    run_dir: Path | None = None
    """folder for config.json and summary.json; default: the figures are only printed"""
    overwrite: bool = False
    """throw away a finished evaluation in that folder"""
    env: str | None = None
    """Gymnasium id for a control agent; default: the one it was trained on"""
    episodes: int = 100
    """episodes to play, or prompts to write on"""
    seed: int = 0
    """of the environments' first reset (a language model writes with the fixed seed of its own run)"""
    stochastic: bool = False
    """a control agent samples its actions instead of taking the likeliest"""
    device: str = "cpu"
    """where the networks live"""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, received {self.episodes}")


def main(config: EvaluateAgentConfig) -> dict[str, Any]:
    """Evaluate, and return the figures.

    Raises:
        CheckpointError: if the agent cannot be loaded.
        ValueError: if there is no agent, or neither it nor ``--env`` names an environment.
        RunDirError: if the run directory cannot be used.
    """
    if config.run_dir is None:
        return _evaluate(config)
    with RunDir(config.run_dir, overwrite=config.overwrite) as run:
        run.write_json(CONFIG, asdict(config))
        figures = _evaluate(config)
        run.write_json(SUMMARY, figures)
        return figures


def _evaluate(config: EvaluateAgentConfig) -> dict[str, Any]:
    if (config.agent / MODEL).is_dir():
        return evaluate_text(config)
    if config.agent.is_dir() and not (config.agent / BEST).exists():
        raise ValueError(f"{config.agent} holds neither {BEST} (train_control) nor {MODEL}/ (train_text)")
    return evaluate_control(config)


def evaluate_control(config: EvaluateAgentConfig) -> dict[str, Any]:
    """Figures of whole episodes, greedy unless ``stochastic``."""
    torch.set_num_threads(1)
    agent = load_agent(config.agent / BEST if config.agent.is_dir() else config.agent, device=config.device)
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


def evaluate_text(config: EvaluateAgentConfig) -> dict[str, Any]:
    """Figures of the tuned model beside those of the model it started from, on the run's own held-out prompts."""
    from agents.causal_lm import CausalLMPolicy
    from scripts.text_config import TrainTextConfig
    from scripts.text_metrics import compare
    from scripts.text_parts import build_parts

    settings = json.loads((config.agent / CONFIG).read_text())
    settings |= {"run_dir": str(config.agent), "num_eval_prompts": config.episodes, "device": config.device}
    parts = build_parts(TrainTextConfig(**settings))
    tuned = CausalLMPolicy.from_pretrained(config.agent / MODEL, sampling=parts.policy.sampling).to(config.device)
    figures, samples = compare(parts.assess(parts.start), parts.assess(tuned))
    return {"model": str(config.agent / MODEL), "eval_prompts": len(samples), **figures}


if __name__ == "__main__":
    sys.exit(enter(EvaluateAgentConfig, main, description=__doc__))
