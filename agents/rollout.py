"""Collected experience (``Rollout``) and the training batch built from it (``Batch``): ``[B, T]`` with a mask.

Control: B environments by T steps. Text: B episodes by T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """Experience as collected, without advantages."""

    observations: Tensor
    """``[B, T, *obs]`` at each step; or, for a policy that keeps rows, ``[B, P]`` prompts."""
    actions: Tensor
    """``[B, T, *action]`` as sampled (a Box action is stored unclipped); tokens are padded with -1."""
    logprobs: Tensor
    """``[B, T]`` nats, of the policy before the update."""
    values: Tensor
    """``[B, T]`` V of the state before the step, reward units."""
    next_values: Tensor
    """``[B, T]`` V of the state after the step, before any reset."""
    rewards: Tensor
    """``[B, T]`` reward units."""
    terminated: Tensor
    """``[B, T]`` bool, the task ended here: no bootstrapping."""
    ended: Tensor
    """``[B, T]`` bool, terminated, truncated or end of row."""
    mask: Tensor
    """``[B, T]`` bool, True on steps that were taken."""
    ref_logprobs: Tensor | None = None
    """``[B, T]`` nats, of the reference of the KL; None: there is none."""
    turns: Tensor | None = None
    """``[B, T]`` of dialogues: number of the turn of each step, -1 elsewhere; None: each row is one turn."""
    states: Tensor | None = None
    """``[B, T]`` of dialogues: a number that names the state in which the step's turn began."""
    behavior_logprobs: Tensor | None = None
    """``[B, T]`` nats, of what sampled the actions; None: it was that policy."""
    versions: Tensor | None = None
    """``[B, T]`` updates that the weights had seen which sampled each action; None: as for ``behavior_logprobs``."""
    weights: Tensor | None = None
    """``[B, T]`` importance weights (``agents.functional.correction``); None: all are 1."""

    def __post_init__(self) -> None:
        shape = tuple(self.mask.shape)
        for name in ("logprobs", "values", "next_values", "rewards", "terminated", "ended"):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Rollout.{name}: expected shape {shape}, received {tuple(getattr(self, name).shape)}")
        if self.actions.shape[:2] != self.mask.shape or self.observations.shape[0] != shape[0]:
            raise ValueError(
                f"Rollout: expected actions and observations {shape}, received {tuple(self.actions.shape)} and "
                f"{tuple(self.observations.shape)}"
            )

    @property
    def num_rows(self) -> int:
        """B."""
        return self.mask.shape[0]

    @property
    def num_steps(self) -> int:
        """The number of steps that the mask selects."""
        return int(self.mask.sum())

    def to_batch(self, advantages: Tensor, returns: Tensor | None = None) -> Batch:
        """The training batch; ``returns`` default to ``advantages + values``."""
        return Batch(
            observations=self.observations,
            actions=self.actions,
            old_logprobs=self.logprobs,
            old_values=self.values,
            advantages=advantages,
            returns=advantages + self.values if returns is None else returns,
            mask=self.mask,
            ref_logprobs=self.ref_logprobs,
            weights=self.weights,
        )


@dataclass(frozen=True)
class Batch:
    """Experience with its advantages."""

    observations: Tensor
    """``[B, T, *obs]`` or ``[B, P]``, as in ``Rollout``."""
    actions: Tensor
    """``[B, T, *action]``."""
    old_logprobs: Tensor
    """``[B, T]`` nats, of the policy before the update."""
    old_values: Tensor
    """``[B, T]`` reward units."""
    advantages: Tensor
    """``[B, T]`` reward units, or standard deviations once whitened."""
    returns: Tensor
    """``[B, T]`` reward units, the critic's targets."""
    mask: Tensor
    """``[B, T]`` bool, True on valid steps."""
    ref_logprobs: Tensor | None = None
    """``[B, T]`` nats, as in ``Rollout``."""
    weights: Tensor | None = None
    """``[B, T]`` of the steps' terms in the policy loss, as in ``Rollout``."""
    branches: Tensor | None = None
    """``[B, T, K]`` other tokens in the states (``agents.lm.branches``)."""
    branch_logprobs: Tensor | None = None
    """``[B, T, K]`` nats, of the policy before the update."""
    branch_advantages: Tensor | None = None
    """``[B, T, K]`` as ``advantages``."""

    @property
    def num_rows(self) -> int:
        """B."""
        return self.mask.shape[0]

    def rows(self, index: Tensor | slice) -> Batch:
        """The rows at ``index``: ``[len(index), T]``."""
        return self._map(lambda values: values[index])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        parts: dict[str, Any] = {name: None if each is None else function(each) for name, each in vars(self).items()}
        return Batch(**parts)

    def single_steps(self) -> Batch:
        """Every valid step as a row of its own, ``[N, 1]``, in row order.

        Raises:
            ValueError: if the observations are prompts rather than one observation per step, or no step is valid.
        """
        if self.observations.dim() < 3 or self.observations.shape[:2] != self.mask.shape:
            raise ValueError(
                f"expected observations [{self.mask.shape[0]}, {self.mask.shape[1]}, ...], received "
                f"{tuple(self.observations.shape)}"
            )
        if not bool(self.mask.any()):
            raise ValueError(f"the mask of shape {tuple(self.mask.shape)} selects no step")
        if bool(self.mask.all()):
            return self._map(lambda values: values.flatten(0, 1).unsqueeze(1))
        return self._map(lambda values: values[self.mask].unsqueeze(1))
