"""Evaluate what a run left behind: a control agent in fresh episodes, or a tuned language model on held-out prompts.

    textenvs evaluate --agent runs/cartpole --episodes 100
    textenvs evaluate --agent runs/text --episodes 400

A control agent plays whole episodes. A language model writes on as many prompts that its training never saw, and is
compared with the model it started from, as in `textenvs train-text`. With --run-dir the figures are kept there, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.ranges import check_values
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class EvaluateAgentConfig:
    """Evaluate a saved agent."""

    agent: Path
    """run directory of train-control or train-text, or a file that a control agent's `save` wrote"""
    run_dir: Path | None = None
    """folder for config.json and summary.json; default: the figures are only printed"""
    overwrite: bool = False
    """throw away a finished evaluation in that folder"""
    env: str | None = None
    """Gymnasium id for a control agent; default: the one it was trained on"""
    episodes: int = 100
    """episodes to play, or prompts to write on; a run with --tools plays as many as it held out"""
    seed: int = 0
    """of the environments' first reset (a language model writes with the fixed seed of its own run)"""
    stochastic: bool = False
    """a control agent samples its actions instead of taking the likeliest"""
    device: str = "cpu"
    """where the networks live"""

    def __post_init__(self) -> None:
        check_values(self, {">= 1": "episodes", ">= 0": "seed"})


command_line = command(EvaluateAgentConfig, "agents.recipes.evaluate:main", __doc__)
