"""Protocols of scorers, references and acting agents; any object with these methods fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from textenvs.tokens.rows import Ids, Numbers

if TYPE_CHECKING:
    from torch import nn

Acting: TypeAlias = Callable[[Ids, Ids], Numbers]
"""``(observations [N, L], actions [N]) -> [N]`` log-probs, nats, of the acting agent."""


Scores: TypeAlias = "Numbers | Sequence[float | None]"
"""``[N]``, higher is better; None: does not apply to that text."""
TextScorer: TypeAlias = "Callable[..., Scores | Coroutine[Any, Any, Scores]]"
"""Scores N texts; called by the names of its parameters, see `textenvs.wrappers.scorers.arguments_of`."""


class TokenScorer(Protocol):
    """Scores token ids; preferred to text if it has no ``tokenizer``, or the environment's."""

    def score_tokens(self, prompts: Ids, completions: Ids, /) -> Numbers:
        """Scores ``[N]`` of rows padded with PAD."""


class ScorerEnsemble(Protocol):
    """Several scorers of the same question, in the same unit."""

    @property
    def members(self) -> Sequence[TextScorer | TokenScorer]:
        """At least one."""


Scorer: TypeAlias = "TextScorer | TokenScorer | ScorerEnsemble"


class Reference(Protocol):
    """A fixed distribution over texts."""

    def __call__(self, prompts: Ids, completions: Ids, /) -> Numbers:
        """Log-probs ``[N, T]``, nats, of each token of ``completions`` given all before it; any number at padding."""


ReferenceSource: TypeAlias = "Reference | nn.Module | str | os.PathLike[str]"
"""A reference, or a `transformers` causal LM, its directory or name."""
