"""Dropout rates of a transformers model: set for the time of training, and given back.

A rate lives in a dropout layer (GPT-2), in a float of an attention or decoder layer that calls the function (Llama's
``attention_dropout``, OPT's ``dropout``), or in the configuration that a layer looks up at each call (GPT-Neo, Falcon).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

NAMES = ("dropout", "pdrop")
"""One of these is part of the name of every number that is a dropout rate; ``layerdrop``, for one, is none."""


class DropoutRate(NamedTuple):
    """One rate, and where it lives."""

    place: Any
    """A module or a configuration."""
    name: str
    """Of its attribute."""
    rate: float
    """In [0, 1)."""


def dropout_rates(model: nn.Module) -> list[DropoutRate]:
    """Every dropout rate of a model's layers and configurations, as it is now."""
    found = [DropoutRate(module, "p", module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    for place in (*model.modules(), *configs.values()):
        for name, value in vars(place).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and any(part in name for part in NAMES):
                found.append(DropoutRate(place, name, value))
    return found


def set_dropout(model: nn.Module, rate: float) -> list[DropoutRate]:
    """Set every dropout rate of ``model``; returns what they were, for `restore_dropout`."""
    usual = dropout_rates(model)
    for place, name, _ in usual:
        setattr(place, name, rate)
    return usual


def restore_dropout(usual: list[DropoutRate]) -> None:
    """Undo `set_dropout`."""
    for place, name, rate in usual:
        setattr(place, name, rate)
