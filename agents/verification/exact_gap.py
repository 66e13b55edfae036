"""The optimality gap of each algorithm on enumerable text problems, whose best policy is known.

    python -m scripts.exact_gap                                    PPO on a table of logits
    python -m scripts.exact_gap --algorithm all                    PPO, GRPO, RLOO and REINFORCE
    python -m scripts.exact_gap --algorithm grpo --policy gpt2     a tiny GPT-2, by whole texts

The gap is (optimum - attained) / (optimum - start) of the objective ``E[score] - beta KL(pi || pi_ref)``, all three by
enumeration: no sampling enters the measurement. The start is the reference, as in the tuning of a language model: the
table starts as the task's own, the GPT-2 as itself before training. 0 % is optimal, 100 % has learned nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from agents.runs.cli import enter
from agents.runs.run_dir import RunDir
from agents.text.config import Algorithm
from agents.verification.exact_training import ALGORITHMS, TRAINERS

ENVS = ("textenvs/ExactSpelling-v0", "textenvs/ExactSentiment-v0", "textenvs/ExactRandom-v0")


@dataclass(frozen=True, kw_only=True)
class ExactGapConfig:
    """Settings of the measurement."""

    policy: Literal["tabular", "gpt2"] = "tabular"
    """what is trained"""
    algorithm: Algorithm | Literal["all"] = "ppo"
    """what trains it; "all": one after the other"""
    envs: tuple[str, ...] = ENVS
    """ids of environments with a known optimum"""
    seed: int = 0
    """of actions, prompts and minibatches; and of the GPT-2's weights"""
    updates: int | None = None
    """rollouts to learn from, each of 512 episodes side by side; None: as ``exact_training.UPDATES`` has it"""
    run_dir: Path | None = None
    """folder for config.json and summary.json; None writes nothing"""
    overwrite: bool = False
    """throw away a finished run in that folder"""

    def __post_init__(self) -> None:
        if not self.envs:
            raise ValueError("envs must name an environment, received none")
        if self.updates is not None and self.updates < 1:
            raise ValueError(f"updates must be at least 1, received {self.updates}")

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """What is trained with."""
        return ALGORITHMS if self.algorithm == "all" else (self.algorithm,)


def main(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment, and leave the summary in the run directory if there is one.

    Returns:
        The summary, one flat object.

    Raises:
        RunDirError: if the run directory cannot be used.
        gymnasium.error.Error: if an id is unknown.
    """
    torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it brings
    if config.run_dir is None:
        return measure(config)
    with RunDir(config.run_dir, script="exact_gap", overwrite=config.overwrite) as run:
        summary = measure(config)
        run.begin(asdict(config))
        run.write_json("summary.json", summary)
        return summary


def measure(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment and print a line for each; the summary, one flat object.

    Its keys are ``{algorithm}_{environment}_{figure}``, ``{algorithm}_gap_worst`` of an algorithm's environments, and
    ``gap_worst`` of all.
    """
    summary: dict[str, Any] = {"policy": config.policy, "algorithm": config.algorithm, "seed": config.seed}
    columns = f"{'start':>9}{'attained':>10}{'optimum':>9}{'KL':>7}{'of best':>9}{'gap %':>8}{'s':>7}"
    print(f"{'algorithm':11}{'environment':28}{columns}")
    for algorithm in config.algorithms:
        gaps = []
        for env_id in config.envs:
            result = TRAINERS[config.policy](env_id, algorithm, seed=config.seed, updates=config.updates)
            print(
                f"{algorithm:11}{env_id:28}{result.start:9.4f}{result.attained:10.4f}{result.optimum:9.4f}"
                f"{result.kl:7.3f}{result.optimal_kl:9.3f}{100 * result.gap:8.3f}{result.train_s:7.1f}",
                flush=True,
            )
            name = f"{algorithm}_{env_id.removeprefix('textenvs/').removesuffix('-v0')}"
            summary |= {f"{name}_{key}": value for key, value in asdict(result).items()}
            gaps.append(result.gap)
        summary[f"{algorithm}_gap_worst"] = max(gaps)
    summary["gap_worst"] = max(summary[f"{algorithm}_gap_worst"] for algorithm in config.algorithms)
    summary["wall_s"] = sum(value for key, value in summary.items() if key.endswith("_train_s"))
    return summary


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; returns the exit code: 0, 2 on bad input, 130 after Ctrl-C."""
    return enter(ExactGapConfig, main, description=__doc__, arguments=arguments, show=False)
