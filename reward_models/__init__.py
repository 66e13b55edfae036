"""Reward models learned from human preferences: pairs, the Bradley–Terry fit, and the model that scores a text.

Names load on first use, so ``import reward_models`` is light; torch and transformers come with `RewardModel` and
`RewardEnsemble`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_models.data.pairs import PreferencePair as PreferencePair
    from reward_models.data.pairs import read_pairs as read_pairs
    from reward_models.data.pairs import write_pairs as write_pairs
    from reward_models.ensemble import RewardEnsemble as RewardEnsemble
    from reward_models.model import RewardModel as RewardModel
    from reward_models.training import TrainingOptions as TrainingOptions
    from reward_models.training import fit as fit

_HOMES = {
    "PreferencePair": "reward_models.data.pairs",
    "RewardEnsemble": "reward_models.ensemble",
    "RewardModel": "reward_models.model",
    "TrainingOptions": "reward_models.training",
    "fit": "reward_models.training",
    "read_pairs": "reward_models.data.pairs",
    "write_pairs": "reward_models.data.pairs",
}
__all__ = ["PreferencePair", "RewardEnsemble", "RewardModel", "TrainingOptions", "fit", "read_pairs", "write_pairs"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
