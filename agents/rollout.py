"""What was lived (``Rollout``) and what is learned from it (``Batch``): rows by steps, ``[B, T]``, with a mask.

Control: B environments by T steps. Text: B episodes by T tokens. Neither class computes anything but cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """Experience as it was collected, before anyone judged it."""

    observations: Tensor
    """``[B, T, *obs]``, what the policy saw at each step; or, for a policy that keeps rows, ``[B, P]`` prompts."""
    actions: Tensor
    """``[B, T, *action]`` as sampled (a Box action is stored unclipped); tokens are padded with -1."""
    logprobs: Tensor
    """``[B, T]`` nats, of the policy that acted."""
    values: Tensor
    """``[B, T]`` V of the state acted in, reward units."""
    next_values: Tensor
    """``[B, T]`` V of the state after the step, before any reset."""
    rewards: Tensor
    """``[B, T]`` reward units."""
    terminated: Tensor
    """``[B, T]`` bool, the task ended here: nothing is bootstrapped."""
    ended: Tensor
    """``[B, T]`` bool, the chain is cut here: terminated, truncated or end of row."""
    mask: Tensor
    """``[B, T]`` bool, True on steps that were really taken."""
    ref_logprobs: Tensor | None = None
    """``[B, T]`` nats, of the reference that a KL is measured against; None: there is none."""

    def __post_init__(self) -> None:
        shape = tuple(self.mask.shape)
        for name in ("logprobs", "values", "next_values", "rewards", "terminated", "ended"):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Rollout.{name} has shape {tuple(getattr(self, name).shape)}, the mask has {shape}")
        if self.actions.shape[:2] != self.mask.shape or self.observations.shape[0] != shape[0]:
            raise ValueError(
                f"Rollout of shape {shape} has actions {tuple(self.actions.shape)} "
                f"and observations {tuple(self.observations.shape)}"
            )

    @property
    def num_rows(self) -> int:
        """B."""
        return self.mask.shape[0]

    @property
    def num_steps(self) -> int:
        """The number of steps that count."""
        return int(self.mask.sum())

    def to_batch(self, advantages: Tensor, returns: Tensor | None = None) -> Batch:
        """The batch to learn from; ``returns`` default to ``advantages + values``."""
        return Batch(
            observations=self.observations,
            actions=self.actions,
            old_logprobs=self.logprobs,
            old_values=self.values,
            advantages=advantages,
            returns=advantages + self.values if returns is None else returns,
            mask=self.mask,
            ref_logprobs=self.ref_logprobs,
        )


@dataclass(frozen=True)
class Batch:
    """Experience with its advantages, ready to be shuffled and learned from."""

    observations: Tensor
    """``[B, T, *obs]`` or ``[B, P]``, as in ``Rollout``."""
    actions: Tensor
    """``[B, T, *action]``."""
    old_logprobs: Tensor
    """``[B, T]`` nats, of the policy that acted."""
    old_values: Tensor
    """``[B, T]`` reward units."""
    advantages: Tensor
    """``[B, T]`` reward units, or standard deviations once whitened."""
    returns: Tensor
    """``[B, T]`` reward units, what the critic learns."""
    mask: Tensor
    """``[B, T]`` bool, True on steps that count."""
    ref_logprobs: Tensor | None = None
    """``[B, T]`` nats, as in ``Rollout``."""

    @property
    def num_rows(self) -> int:
        """B."""
        return self.mask.shape[0]

    def rows(self, index: Tensor | slice) -> Batch:
        """The rows at ``index``, whole: ``[len(index), T]``."""
        return self._each(lambda values: values[index])

    def _each(self, cut: Callable[[Tensor], Tensor]) -> Batch:
        parts: dict[str, Any] = {name: None if values is None else cut(values) for name, values in vars(self).items()}
        return Batch(**parts)

    def single_steps(self) -> Batch:
        """Every step that counts as a row of its own, ``[N, 1]``, in row order; masked steps are gone.

        Raises:
            ValueError: if the observations are prompts rather than one observation a step, or no step counts.
        """
        if self.observations.dim() < 3 or self.observations.shape[:2] != self.mask.shape:
            raise ValueError(
                f"observations of shape {tuple(self.observations.shape)} are not one a step of {tuple(self.mask.shape)}"
            )
        if not bool(self.mask.any()):
            raise ValueError(f"the mask of shape {tuple(self.mask.shape)} selects no step")
        if bool(self.mask.all()):
            return self._each(lambda values: values.flatten(0, 1).unsqueeze(1))
        return self._each(lambda values: values[self.mask].unsqueeze(1))
