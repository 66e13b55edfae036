"""Verification: run every check of this project, or check your own environment or language model.

    textenvs verify                                          all checks, a few minutes
    textenvs verify --env CartPole-v1                        an environment: any Gymnasium id
    textenvs verify --env my_module:MyEnv-v0 --policy agent  with an agent that PPO.save wrote
    textenvs verify --env my_module:MyGame                   an environment over strings, for dialogues
    textenvs verify --model path/or/name                     a causal language model

Prints a table: claim, expected, measured, verdict. The exit code is 1 if a check fails. With --run-dir the table is
saved as verify.md, beside config.json and summary.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from agents.runs.cli import command

Room = Literal["core", "text", "families", "probes", "gap", "resume", "cartpole"]


class CheckFailed(RuntimeError):
    """At least one check failed; the table says which."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Settings of the verification."""

    env: str | None = None
    """Gymnasium id of an environment of your own, single or vector; "module:Env-v0" imports the module first. Of an
    environment over strings also "module:Class"."""
    policy: Path | None = None
    """an agent that PPO.save wrote, to act in --env; default: a fresh network"""
    model: str | None = None
    """directory or name of a causal language model of your own"""
    rooms: tuple[Room, ...] = get_args(Room)
    """groups of checks to run if neither --env nor --model is given"""
    gap: Literal["quick", "full"] = "quick"
    """optimality gaps: each algorithm on a table, and PPO on a GPT-2 in one environment; or all of them"""
    families: Literal["quick", "full"] = "quick"
    """families of language models in transformers: sixteen that differ in kind; or all of them (minutes)"""
    seed: int = 0
    """seed of episodes in --env and of texts by --model"""
    run_dir: Path | None = None
    """folder for config.json, summary.json and verify.md; None writes nothing"""
    overwrite: bool = False
    """throw away a finished run in that folder"""

    def __post_init__(self) -> None:
        if self.policy is not None and self.env is None:
            raise ValueError(f"--policy {self.policy} needs an --env to act in")


command_line = command(
    VerifyConfig, "agents.verification.proof.run:main", __doc__, refusals={CheckFailed: 1}, show=False
)
