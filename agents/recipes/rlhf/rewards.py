"""The scorers of a text run: reward models from folders, ready rewards, functions of a user's own, and their names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agents.evaluation.metrics import PassingRule
from agents.lm.loading import autocast_of
from agents.lm.lora import REWARD, AdaptedTrunk, RoleTrunk
from agents.ranges import refuse_changed
from agents.recipes.rlhf.task import TextTask
from agents.runs.cli import imported
from reward_models import RewardClassifier, RewardModel
from reward_models.ensemble import RewardEnsemble, is_ensemble, member_folders
from reward_models.files import base_of, is_foreign
from reward_models.lora import ADAPTER
from textenvs import assets
from textenvs.rewards import by_name, is_ready
from textenvs.wrappers.interfaces import Scorer

if TYPE_CHECKING:
    from agents.recipes.rlhf.config import TrainTextConfig


def build_scorers(task: TextTask, trunk: AdaptedTrunk | None) -> tuple[list[Scorer], list[str]]:
    """The scorers that ``--reward`` names, and what their figures are called.

    Adapters over the model of ``trunk`` join it there.

    Raises:
        ValueError: if one cannot be loaded, or is named twice.
    """
    given = reward_sources(task)
    names = scorer_names(given)
    scorers = [
        load_reward_model(one, trunk, device=task.device) if _is_folder(one) else _function(one) for one in given
    ]
    if torch.device(task.device).type != "cpu":  # a CPU's scores stay float32, whatever the policy's products are
        for scorer in scorers:
            for model in getattr(scorer, "members", [scorer]):
                if isinstance(model, RewardModel):
                    model.autocast = autocast_of(task.dtype, task.device)
    return scorers, names


def is_checked(task: TextTask) -> bool:
    """Whether texts after a user's own rows are right or wrong: a function or a ready reward is the first to score."""
    return task.rows is not None and bool(task.reward) and not _is_folder(task.reward[0])


def passing_rule(config: TrainTextConfig) -> PassingRule | None:
    """When the first reward calls a text right; None where no text is.

    Raises:
        ValueError: if it is None, and settings of it were given.
    """
    if config.plays or is_checked(config):
        return PassingRule(least=config.pass_score, samples=config.eval_samples)
    why = "expected --rows, and a function or ready reward as the first --reward"
    refuse_changed(config, ("eval_samples", "pass_score"), why)
    return None


def reward_sources(task: TextTask) -> list[str]:
    """What ``--reward`` names, or the project's own."""
    return list(task.reward) or [str(assets.reward_model_dir())]


def scorer_names(given: Sequence[str]) -> list[str]:
    """Short names that differ: a function's own, or a folder's last part (``model`` aside), or as many as it takes;
    ValueError if two are the same."""
    if len(set(given)) != len(given):
        raise ValueError(f"--reward names one of these twice: {', '.join(given)}; give it more weight instead")
    parts = [_parts(one) for one in given]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{names[index]}-{index}" for index in range(len(names))]


def _parts(given: str) -> list[str]:
    if is_ready(given):
        return [given.partition("(")[0].strip()]
    parts = list(Path(given).resolve().parts[1:] if _is_folder(given) else filter(None, re.split(r"[:.]", given)))
    if _is_folder(given) and parts[-1] == "model" and len(parts) > 1:
        parts.pop()
    return [re.sub(r"[^\w.-]", "_", part) for part in parts]


def _is_folder(given: str) -> bool:
    return not is_ready(given) and ("/" in given or os.path.exists(given))


def _function(given: str) -> Scorer:
    if ":" in given and not is_ready(given):
        scorer: Scorer = named("--reward", given)
        return scorer
    try:
        return by_name(given)
    except ValueError as fault:
        nothing = "" if is_ready(given) else "no such folder, and "
        raise ValueError(f"--reward {given}: {nothing}{fault}") from fault


def named(flag: str, given: str) -> Any:
    """What ``module:name``, ``given`` with ``flag``, names; raise ValueError if there is none."""
    try:
        return imported(given)
    except (ImportError, AttributeError, ValueError) as fault:
        raise ValueError(f"{flag} {given}: {fault}") from fault


def load_reward_model(folder: str, trunk: AdaptedTrunk | None, *, device: str) -> Scorer:
    """The reward model, ensemble or sequence classifier in ``folder``, or that classifier of the hub.

    Adapters over the model of ``trunk`` join it there.

    Raises:
        ValueError: if the folder holds none.
    """
    if is_foreign(folder):
        return RewardClassifier.load(folder, device=device)
    if not is_ensemble(folder):
        joined = _joined([Path(folder)], trunk)
        return RewardModel.load(folder, device=device, backbone=joined[0] if joined else None)
    return RewardEnsemble.load(folder, device=device, backbones=_joined(member_folders(folder), trunk))


def _joined(folders: Sequence[Path], trunk: AdaptedTrunk | None) -> list[RoleTrunk] | None:
    """The trunk in as many new roles as there are folders; None unless all of them are adapters over its model."""
    if trunk is None or not all(stands_on(folder, str(trunk.model.name_or_path)) for folder in folders):
        return None
    joined = []
    for folder in folders:
        role = f"{REWARD}_{sum(name.startswith(REWARD) for name in trunk.peft.peft_config)}"
        trunk.load(folder / ADAPTER, role)
        joined.append(RoleTrunk(trunk, role))
    return joined


def stands_on(folder: Path, model: str) -> bool:
    """Whether the reward model in ``folder`` is an adapter over ``model``, a directory or name."""
    base = base_of(folder)
    if base is None:
        return False
    return base == model or (Path(base).is_dir() and Path(model).is_dir() and Path(base).samefile(model))
