"""Train PPO or TRPO on a control task: any Gymnasium id, your own included.

    textenvs train-control --env CartPole-v1 --seed 0 --run-dir runs/cartpole
    textenvs train-control --env my_module:MyEnv-v0 --algorithm trpo --run-dir runs/mine
    textenvs train-control --env my_module:MyEnv-v0 --learning-rate 1e-3:0 --hidden 128 128 --run-dir runs/mine

Defaults below are those of --env and --algorithm: the task's preset, or the algorithm's own where it has none.

The run directory gets ``config.json``, ``progress.csv`` and TensorBoard events, ``last.safetensors`` (from which
``--resume`` continues, bit for bit; also after Ctrl-C or SIGTERM, and with larger --total-steps),
``best.safetensors`` (the agent of the best greedy evaluation), ``report.html`` and ``summary.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agents.config import PlacementConfig, PPOConfig, TRPOConfig
from agents.control.presets import preset_for
from agents.ranges import check_values
from agents.runs.cli import enter, peek
from agents.runs.flags import RunFlags


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags, PlacementConfig):
    """Task: what is learned, and for how long; with the settings of the task's preset."""

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


@dataclass(frozen=True, kw_only=True)
class PPORun(Config, PPOConfig):
    """The same with PPO's settings, instead of a preset's."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        PPOConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TRPORun(Config, TRPOConfig):
    """The same with TRPO's settings, instead of a preset's."""

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        TRPOConfig.__post_init__(self)


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; returns the exit code: 0, 2 on bad input, 130 after Ctrl-C."""
    given = {"env": Config.env, "algorithm": Config.algorithm} | peek(arguments, "env", "algorithm")
    preset = preset_for(given["env"], given["algorithm"])
    return enter(
        TRPORun if given["algorithm"] == "trpo" else PPORun,
        "agents.recipes.control:_reported",
        description=__doc__,
        arguments=arguments,
        defaults=vars(preset.config) | {name: getattr(preset, name) for name in ("total_steps", "evaluate_every")},
        show=False,
    )
