"""What wrappers ask of the parts that they are given: protocols, so that any object with these methods will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from textenvs.envs.vector import TokenVectorEnv

Numbers: TypeAlias = "ArrayLike | Tensor"
"""What callables of a user's own may return."""
Acting: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.int64]], Numbers]
"""``(observations [N, L], actions [N]) -> [N]`` log-probs, nats, of the agent that acts."""


class TextScorer(Protocol):
    """Scores texts. One with a parameter ``finished`` is also told which texts ended by themselves."""

    def __call__(self, prompts: list[str], completions: list[str]) -> Numbers:
        """Scores ``[N]``, higher is better."""


@runtime_checkable
class TokenScorer(Protocol):
    """Scores token ids; preferred to text if it has no ``tokenizer``, or the environment's."""

    def score_tokens(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> Numbers:
        """Scores ``[N]`` of rows padded with PAD."""


@runtime_checkable
class ScorerEnsemble(Protocol):
    """Several scorers of the same question, in the same unit."""

    @property
    def members(self) -> Sequence[TextScorer | TokenScorer]:
        """At least one."""


Scorer: TypeAlias = TextScorer | TokenScorer | ScorerEnsemble


class Reference(Protocol):
    """A fixed distribution over texts."""

    def __call__(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> Numbers:
        """Log-probs ``[N, T]``, nats, of each token of ``completions`` given all before it; any number at padding."""


@runtime_checkable
class StepReference(Protocol):
    """A reference that also scores one token at a time, and knows which environments it fits."""

    def __call__(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `Reference`; 0 at padding."""

    def step(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        actions: NDArray[np.int64],
        running: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Log-probs ``[N]``, nats, of one more token in rows ``[N, L]`` of ``lengths``; 0 where not ``running``."""

    def check_fits(self, envs: TokenVectorEnv) -> None:
        """Raise ValueError unless every row of ``envs`` can be scored."""
