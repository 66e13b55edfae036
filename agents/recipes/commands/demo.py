"""The whole road in one go: CartPole, a language model, a reward model from human ratings, PPO on the language model.

    textenvs demo --run-dir runs/demo

PPO must first solve CartPole (greedy mean over 100 episodes of at least 475); if it does not, nothing else is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.ranges import check_values
from agents.runs.cli import command


class NotValidated(RuntimeError):
    """PPO did not solve CartPole, so it is not let near a language model."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the demo."""

    run_dir: str = "runs/demo"
    """Folder; each stage has a folder of its own in it."""
    overwrite: bool = False
    """Throw away a finished demo in that folder."""
    model: str | None = None
    """Causal LM to tune: a directory or name that transformers loads. None: the project's own."""
    seed: int = 0
    """Seed of every stage."""
    device: str = "cpu"
    """Torch device."""

    def __post_init__(self) -> None:
        check_values(self, {">= 0": "seed"})


command_line = command(DemoConfig, "agents.recipes.demo:main", __doc__, refusals={NotValidated: 1}, show=False)
