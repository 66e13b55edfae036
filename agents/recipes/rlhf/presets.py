"""What a run starts from where its settings leave it open: the algorithm's preset, and a critic that knows the reward.

Read before torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agents.text.config import Paper
from agents.text.presets import REWARD_CRITIC, critic_starts_as_reward, described, preset_settings


def run_settings(algorithm: Paper, changed: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``TrainTextConfig``: the preset of ``algorithm``, updated by ``changed``; learning rate None if open.

    Raises:
        ValueError: if there is no such algorithm.
    """
    more: dict[str, Any] = {}
    if critic_starts_as_reward(algorithm, changed, *_models(changed)):
        more = {"memory": "full", **REWARD_CRITIC}
    return preset_settings(algorithm, {"learning_rate": None, **more, **changed})


def _models(given: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """The language model and the one reward model that ``given`` names, as ``described``; None if there is none."""
    asked = given.get("reward") or ()
    rewards = [asked] if isinstance(asked, str) else list(asked)
    if len(rewards) > 1 or given.get("reward_weights"):
        return iter((None, None))
    if not rewards and given.get("model") is None:
        return iter(({}, {}))  # the shipped ones are alike
    from textenvs import assets  # which imports gymnasium, and --help does not

    scorer = rewards[0] if rewards else assets.reward_model_dir()
    folders = Path(given.get("model") or assets.language_model_dir()), Path(scorer)
    try:
        if "base" in _json(folders[1], "reward_model"):  # an adapter has no trunk to be copied
            return iter((None, None))
        words = [_json(folder, "tokenizer")["model"]["vocab"] for folder in folders]
        configs = [_json(folder, "config") for folder in folders]
    except (OSError, ValueError, KeyError):
        return iter((None, None))
    return map(described, configs, words)


def _json(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_bytes())
