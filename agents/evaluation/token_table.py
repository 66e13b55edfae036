"""Per-token numbers of a few texts, from a rollout and its training batch; for `agents.evaluation.token_page`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from agents.rollout import Batch, Rollout
from textenvs.tokens.rows import TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = 8
"""Preceding tokens that are decoded with a token, so that spaces and split characters are correct."""


class Quantity(NamedTuple):
    """A column's label, unit and explanation."""

    label: str
    unit: str
    meaning: str


CUT = "\ufffd"
"""What tokenizers return for part of a character."""
REWARD_UNITS = "reward units"
QUANTITIES = {
    "logprob": Quantity("log-prob", "nats", "log π of the token when it was sampled; 0 is certain, lower is rarer"),
    "ref_logprob": Quantity(
        "reference log-prob", "nats", "log π of the same token under the model that training began from"
    ),
    "kl": Quantity("KL", "nats", "log-prob less reference log-prob: above 0 the token has become likelier"),
    "reward": Quantity(
        "reward", REWARD_UNITS, "what the token was paid: the KL's price, and the score on the last one"
    ),
    "value": Quantity("value", REWARD_UNITS, "what the critic expected to be paid from this token on, before it"),
    "advantage": Quantity(
        "advantage",
        REWARD_UNITS,
        "how much better than expected (GRPO: than its group, in deviations), before any whitening: above 0 the token "
        "is made likelier",
    ),
    "return": Quantity("return", REWARD_UNITS, "what the critic is taught to expect here"),
}
"""All columns, in order."""


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """One text, token by token."""

    prompt: str
    tokens: list[str]  # T texts, special tokens by their names
    columns: dict[str, list[float]]  # those of `QUANTITIES` that were measured, T numbers each
    score: float | None  # reward units, without penalties; None without a scorer
    stop_reason: str  # "eos" or "length"

    def total(self, name: str) -> float:
        """Sum of a column over the text."""
        return sum(self.columns[name])


def token_tables(
    rollout: Rollout,
    batch: Batch,
    rows: TokenRows,
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    has_critic: bool,
) -> list[TokenTable]:
    """The first ``len(prompts)`` texts of a rollout ``[B, T]``, whose decoded prompts these are.

    ``batch`` has the advantages, ``rows`` the scores and stop reasons; ``has_critic`` includes values and returns.
    """
    measured: dict[str, Tensor | None] = {
        "logprob": rollout.logprobs,
        "ref_logprob": rollout.ref_logprobs,
        "kl": None if rollout.ref_logprobs is None else rollout.logprobs - rollout.ref_logprobs,
        "reward": rollout.rewards,
        "value": rollout.values if has_critic else None,
        "advantage": batch.advantages,
        "return": batch.returns if has_critic else None,
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


def token_texts(tokenizer: PreTrainedTokenizerBase, before: list[int], tokens: list[int]) -> list[str]:
    """The text that each of ``tokens`` adds; a character split over tokens belongs to the last one."""

    def decoded(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts, row = [], [*before, *tokens]
    for end in range(len(before) + 1, len(row) + 1):
        start = max(0, end - 1 - CONTEXT)
        earlier, whole = decoded(row[start : end - 1]).rstrip(CUT), decoded(row[start:end])
        texts.append(whole[len(earlier) :] if whole.startswith(earlier) else decoded(row[end - 1 : end]))
    return texts
