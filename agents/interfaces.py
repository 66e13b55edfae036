"""What PPO asks of a policy and of a collector: protocols, nothing more."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from agents.rollout import Rollout


class Evaluation(NamedTuple):
    """What a policy says now about actions taken earlier."""

    logprobs: Tensor
    """``[B, T]`` nats."""
    entropy: Tensor
    """``[B, T]`` nats."""
    values: Tensor
    """``[B, T]`` reward units."""
    kl: Tensor | None = None
    """``[B, T]`` nats, the exact KL to a reference in each state, where it was asked for."""


@runtime_checkable
class Policy(Protocol):
    """An ``nn.Module`` that acts and judges.

    ``keeps_rows`` says how its batches are shuffled: whole rows (a causal LM scores all tokens of a row in one pass),
    or single steps (an MLP does not care which step came before).
    """

    keeps_rows: bool

    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities (nats) for ``observations`` ``[B, *obs]``; no gradient."""
        ...

    def values(self, observations: Tensor) -> Tensor:
        """V of each observation: ``[..., *obs]`` to ``[...]``, reward units."""
        ...

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None) -> Evaluation:
        """Log-probabilities, entropies and values of a batch, with gradient; masked entries may be anything finite."""
        ...

    def parameters(self) -> Any:
        """As in ``nn.Module``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As in ``nn.Module``."""
        ...


@runtime_checkable
class Collector(Protocol):
    """Lives with a policy for a while and hands over what happened."""

    counts: str
    """What ``PPO.learn`` counts as progress: "steps" (that the mask selects) or "rows" (episodes of text)."""

    def collect(self, policy: Any) -> tuple[Rollout, dict[str, float]]:
        """One rollout, and figures to log beside it (``rollout/...``)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the next ``collect`` depends on: a tree of plain values, arrays and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        ...
