"""Protocols of policies and collectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from agents.rollout import Rollout


class Evaluation(NamedTuple):
    """Actions taken earlier, evaluated under the current policy."""

    logprobs: Tensor
    """``[B, T]`` nats."""
    entropy: Tensor
    """``[B, T]`` nats."""
    values: Tensor
    """``[B, T]`` reward units."""
    kl: Tensor | None = None
    """``[B, T]`` nats, the exact KL to a reference in each state, if there is one."""
    branch_logprobs: Tensor | None = None
    """``[B, T, K]`` nats, of a batch's ``branches``."""


class Learner(Protocol):
    """What ``agents.update`` optimizes."""

    keeps_rows: bool
    """Shuffle batches by whole rows (a causal LM evaluates all tokens of a row in one pass) or by single steps."""

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None) -> Evaluation:
        """Log-probabilities, entropies and values of a batch, with gradient; masked entries may be anything finite."""
        ...


@runtime_checkable
class Policy(Learner, Protocol):
    """An ``nn.Module`` that acts, and evaluates its actions."""

    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities (nats) for ``observations`` ``[B, *obs]``; no gradient."""
        ...

    def values(self, observations: Tensor) -> Tensor:
        """V of each observation: ``[..., *obs]`` to ``[...]``, reward units."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in ``nn.Module``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As in ``nn.Module``."""
        ...


def check_memoryless(policy: Any, observations: Tensor) -> None:
    """Raise ValueError if ``act`` answers otherwise to the same ``observations`` the second time.

    Nothing passes a recurrent state along with a rollout, nor tells ``act`` and ``evaluate`` where episodes begin: a
    policy with a memory would be trained on probabilities of other states than it acted in.
    """
    own = next(iter(policy.parameters()), observations)
    seen, answers = observations.to(own.device), []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            answers.append(policy.act(seen, generator=torch.Generator().manual_seed(0)))
    if not all(torch.allclose(one, other, atol=1e-6, equal_nan=True) for one, other in zip(*answers, strict=True)):
        raise ValueError(
            f"policy: expected act to depend on its observations only, received a {type(policy).__name__} that answers "
            "otherwise to the same ones a second time. A recurrent one may read the last observations from one: wrap "
            "the environment in gymnasium.wrappers.FrameStackObservation"
        )


@runtime_checkable
class Collector(Protocol):
    """Runs a policy in environments and returns rollouts."""

    counts: str
    """The unit of ``learn``: "steps" (that the mask selects) or "rows" (episodes of text)."""

    # Any: each collector takes the policies of its own kind, and parameters of a method are contravariant.
    def collect(self, policy: Any) -> tuple[Rollout, dict[str, float]]:
        """One rollout and its metrics (``rollout/...``)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the next ``collect`` depends on: a tree of plain values, arrays and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from ``state_dict``."""
        ...
