"""Train PPO or TRPO on a control task: any Gymnasium id, your own included.

    textenvs train-control --env CartPole-v1 --seed 0 --run-dir runs/cartpole
    textenvs train-control --env my_module:MyEnv-v0 --algorithm trpo --run-dir runs/mine

The run directory gets ``config.json``, ``progress.csv`` and TensorBoard events, ``last.safetensors`` (from which
``--resume`` continues, bit for bit; also after Ctrl-C or SIGTERM), ``best.safetensors`` (the agent of the best greedy
evaluation), ``report.html`` and ``summary.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.config import PlacementConfig
from agents.ranges import check_values
from agents.runs.cli import command
from agents.runs.flags import RunFlags


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags, PlacementConfig):
    """Task: what is learned, and for how long."""

    env: str = "CartPole-v1"
    """Gymnasium id; "module:Env-v0" imports the module first"""
    algorithm: Literal["ppo", "trpo"] = "ppo"
    """what trains"""
    total_steps: int | None = None
    """transitions to train for; default: the preset's"""
    stop_at_return: float | None = None
    """end as soon as a greedy evaluation over --eval-episodes reaches this mean return"""
    evaluate_every: int | None = None
    """transitions between two evaluations; default: the preset's"""
    eval_episodes: int = 100
    """episodes per evaluation, and in the final one"""
    save_every: int = 20
    """updates between two checkpoints to resume from"""
    threads: int = 1
    """CPU threads; networks this small are fastest on one"""

    def __post_init__(self) -> None:
        at_least_1 = "total_steps evaluate_every eval_episodes save_every threads"
        check_values(self, {">= 1": at_least_1, ">= 0": "seed"})


command_line = command(Config, "agents.recipes.control:_reported", __doc__, show=False)
