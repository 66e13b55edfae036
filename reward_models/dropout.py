"""Dropout rates of a transformers model: set for training, and restored.

A rate is in a dropout layer (GPT-2), in a float of an attention or decoder layer that calls the function (Llama's
``attention_dropout``, OPT's ``dropout``), or in the configuration that a layer reads at each call (GPT-Neo, Falcon).
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import nn

NAMES = ("dropout", "pdrop")
"""Every dropout rate has one of these in its name; ``layerdrop`` is no dropout rate."""


DropoutRate: TypeAlias = "tuple[Any, str, float]"
"""A module or configuration, the attribute that holds the rate, and the rate, in [0, 1)."""


def dropout_rates(model: nn.Module) -> list[DropoutRate]:
    """Every current dropout rate of a model's layers and configurations."""
    found: list[DropoutRate] = [(module, "p", module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    for place in (*model.modules(), *configs.values()):
        for name, value in vars(place).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and any(part in name for part in NAMES):
                found.append((place, name, value))
    return found


def set_dropout(model: nn.Module, rate: float) -> list[DropoutRate]:
    """Set every dropout rate of ``model``; returns the old ones for `restore_dropout`."""
    old = dropout_rates(model)
    for place, name, _ in old:
        setattr(place, name, rate)
    return old


def restore_dropout(old: list[DropoutRate]) -> None:
    """Undo `set_dropout`."""
    for place, name, rate in old:
        setattr(place, name, rate)
