"""What happened to each token of a few texts: numbers out of a rollout and how it was judged. No page is written here.

`agents.evaluation.token_page` shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agents.rollout import Batch, Rollout
from textenvs.tokens.rows import TokenRows

CONTEXT = 8
"""Tokens before a token with which it is decoded, so that the space before it and split characters come out right."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A column: what a person reads above it."""

    label: str
    unit: str
    meaning: str


CUT = "\ufffd"
"""What tokenizers decode a piece of a character to."""
REWARD_UNITS = "reward units"
QUANTITIES = {
    "logprob": Quantity(
        label="log-prob", unit="nats", meaning="log π of the token when it was sampled; 0 is certain, lower is rarer"
    ),
    "ref_logprob": Quantity(
        label="reference log-prob",
        unit="nats",
        meaning="log π of the same token under the model that training began from",
    ),
    "kl": Quantity(
        label="KL", unit="nats", meaning="log-prob less reference log-prob: above 0 the token has become likelier"
    ),
    "reward": Quantity(
        label="reward",
        unit=REWARD_UNITS,
        meaning="what the token was paid: the KL's price, and the score on the last one",
    ),
    "value": Quantity(
        label="value", unit=REWARD_UNITS, meaning="what the critic expected to be paid from this token on, before it"
    ),
    "advantage": Quantity(
        label="advantage",
        unit=REWARD_UNITS,
        meaning="how much better than expected (GRPO: than its group, in deviations), before any whitening: above 0 "
        "the token is made likelier",
    ),
    "return": Quantity(label="return", unit=REWARD_UNITS, meaning="what the critic is taught to expect here"),
}
"""Every column there can be, in order."""


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """One text, token by token.

    Attributes:
        prompt: what it was written after.
        tokens: T texts, special tokens by their names.
        columns: of `QUANTITIES`, those that were measured: T numbers each.
        score: reward units, before any price; None where nothing was scored.
        stop_reason: "eos" or "length".
    """

    prompt: str
    tokens: list[str]
    columns: dict[str, list[float]]
    score: float | None
    stop_reason: str

    def total(self, name: str) -> float:
        """Sum of a column over the text."""
        return sum(self.columns[name])


def token_tables(
    rollout: Rollout, batch: Batch, rows: TokenRows, prompts: Sequence[str], tokenizer: Any, *, valued: bool
) -> list[TokenTable]:
    """The first texts of a rollout, as many as there are ``prompts``.

    Args:
        rollout: ``[B, T]``, as it was collected.
        batch: ``[B, T]``, as it was judged.
        rows: the same texts, with score and reason to stop.
        prompts: the first texts' prompts, decoded.
        tokenizer: decodes tokens.
        valued: whether a critic judged; else there are neither values nor returns to show.
    """
    measured: dict[str, Tensor | None] = {
        "logprob": rollout.logprobs,
        "ref_logprob": rollout.ref_logprobs,
        "kl": None if rollout.ref_logprobs is None else rollout.logprobs - rollout.ref_logprobs,
        "reward": rollout.rewards,
        "value": rollout.values if valued else None,
        "advantage": batch.advantages,
        "return": batch.returns if valued else None,
    }
    tables = []
    for i, prompt in enumerate(prompts):
        mask = rollout.mask[i]
        before, after = rollout.observations[i], rollout.actions[i][mask]
        tables.append(
            TokenTable(
                prompt=prompt,
                tokens=token_texts(tokenizer, before[before >= 0].tolist(), after.tolist()),
                columns={name: of[i][mask].float().tolist() for name, of in measured.items() if of is not None},
                score=None if rows.scores is None else float(rows.scores[i]),
                stop_reason=str(rows.stop_reason[i]),
            )
        )
    return tables


def token_texts(tokenizer: Any, before: list[int], tokens: list[int]) -> list[str]:
    """The text that each of ``tokens`` adds to those before it; a character cut in pieces comes with its last one."""

    def decoded(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts, row = [], [*before, *tokens]
    for end in range(len(before) + 1, len(row) + 1):
        start = max(0, end - 1 - CONTEXT)
        earlier, whole = decoded(row[start : end - 1]).rstrip(CUT), decoded(row[start:end])
        texts.append(whole[len(earlier) :] if whole.startswith(earlier) else decoded(row[end - 1 : end]))
    return texts
