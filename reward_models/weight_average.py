"""A running average of the trained weights, which can replace a model's own for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without its frozen parameters, which never change and may be shared."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def put_back(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state of `trained_state` or `WeightAverage` into the model."""
    model.load_state_dict(state, strict=False)


class WeightAverage:
    """Exponential running average of a model's trained weights; early steps use a smaller decay, against bias.

    ``decay`` is the share of the average that a step keeps, in [0, 1]; 0 follows the newest weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self._mean = {name: tensor.detach().clone() for name, tensor in trained_state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Include the model's current weights."""
        self.count += 1
        decay = min(self.decay, (self.count - 1) / (self.count + 9)) if self.decay else 0.0
        state = trained_state(model)
        own = [self._mean[name] for name in state if state[name].is_floating_point()]
        theirs = [tensor.detach() for tensor in state.values() if tensor.is_floating_point()]
        torch._foreach_lerp_(own, theirs, 1 - decay)

    def copy(self) -> dict[str, Tensor]:
        """A copy of the average that later updates do not change."""
        return {name: tensor.clone() for name, tensor in self._mean.items()}

    def state_dict(self) -> dict[str, Any]:
        """The average and its number of updates."""
        return {"count": self.count, "mean": self.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.count, self._mean = state["count"], {name: tensor.clone() for name, tensor in state["mean"].items()}

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the averaged weights."""
        own = {name: tensor.detach().clone() for name, tensor in trained_state(model).items()}
        put_back(model, self._mean)
        try:
            yield
        finally:
            put_back(model, own)
