"""Reward models learned from human preferences: pairs, the Bradley–Terry fit, and the model that scores a text.

Names load on first use, so ``import reward_models`` does not import torch and transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_models.classifier import RewardClassifier
    from reward_models.data.pairs import PreferencePair, read_pairs, write_pairs
    from reward_models.ensemble import RewardEnsemble
    from reward_models.model import RewardModel
    from reward_models.options import TrainingOptions
    from reward_models.training import fit

_MODULES = {
    "classifier": ("RewardClassifier",),
    "data.pairs": ("PreferencePair", "read_pairs", "write_pairs"),
    "ensemble": ("RewardEnsemble",),
    "model": ("RewardModel",),
    "training": ("TrainingOptions", "fit"),
}
__all__ = [
    "PreferencePair",
    "RewardClassifier",
    "RewardEnsemble",
    "RewardModel",
    "TrainingOptions",
    "fit",
    "read_pairs",
    "write_pairs",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"reward_models.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
