"""Rows of tokens: how prompts and completions are laid out, padded, joined and split. Numpy only.

Not here: tokenizers (see `prompts`) and models (see `reference`). Padding is the number -1, which is no vocabulary id,
so a tokenizer whose padding token equals its end-of-text token can confuse nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = -1
"""Marks a place without a token. Never a vocabulary id; models see it only as a zero in the attention mask."""

EOS = "eos"
"""Stop reason: the end-of-text token was produced."""

LENGTH = "length"
"""Stop reason: the budget of new tokens was used up."""


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """N finished episodes, one a row. T is the width of the completions, P that of the prompts.

    Per-token arrays are 0 where `mask` is False.
    """

    prompts: NDArray[np.int64]
    """``[N, P]`` token ids, right-padded with PAD."""
    completions: NDArray[np.int64]
    """``[N, T]`` token ids as they were sampled (an end-of-text token included), right-padded with PAD."""
    rewards: NDArray[np.float32]
    """``[N, T]`` reward units, all prices included."""
    terminated: NDArray[np.bool_]
    """``[N]`` the episode ended by the rules of the task: nothing is bootstrapped."""
    truncated: NDArray[np.bool_]
    """``[N]`` the episode was cut by a time limit: the value of the final state is bootstrapped."""
    stop_reason: NDArray[np.str_]
    """``[N]`` "eos" or "length"."""
    scores: NDArray[np.float32] | None = None
    """``[N]`` reward units: what `PreferenceReward` paid at the last action."""
    score_std: NDArray[np.float32] | None = None
    """``[N]`` reward units: how far its scorers' members are apart; 0 where there is one."""
    member_scores: dict[str, NDArray[np.float32]] | None = None
    """``[N]`` reward units for the name of each member, before they are combined."""
    logprobs: NDArray[np.float32] | None = None
    """``[N, T]`` nats, of the agent that acted."""
    ref_logprobs: NDArray[np.float32] | None = None
    """``[N, T]`` nats, of the reference."""
    kl: NDArray[np.float32] | None = None
    """``[N, T]`` nats: the log-ratio logprobs - ref_logprobs that `KLShaping` charged for, before beta."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """``[N, T]`` True on the tokens of the completions."""
        return self.completions != PAD


def join_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """The episodes of all parts, one behind the other; arrays must be of the same widths and known in every part."""

    def join(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        if isinstance(values[0], dict):
            return {name: join([value[name] for value in values]) for name in values[0]}
        return np.concatenate(values)

    return TokenRows(**{name: join([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def pad_rows(rows: Sequence[Sequence[int] | NDArray[np.int64]], width: int | None = None) -> NDArray[np.int64]:
    """Lists of token ids as one array ``[N, width]``, right-padded with PAD.

    Args:
        rows: N lists of token ids.
        width: tokens; the longest row's length when None.

    Raises:
        ValueError: a row is longer than `width`.
    """
    longest = max((len(row) for row in rows), default=0)
    if width is None:
        width = longest
    if longest > width:
        raise ValueError(f"a row of {longest} tokens does not fit into {width}")
    padded = np.full((len(rows), width), PAD, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def concatenate(prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Joint rows ``[N, P + T]``: the tokens in order without holes, all padding moved to the right.

    Whatever side the inputs ``[N, P]`` and ``[N, T]`` are padded on with PAD, the result is the same.
    """
    joint = np.concatenate([prompts, completions], axis=1)
    order = np.argsort(joint == PAD, axis=1, kind="stable")
    return np.take_along_axis(joint, order, axis=1)


def split(
    tokens: NDArray[np.int64],
    prompt_lengths: NDArray[np.int64],
    lengths: NDArray[np.int64],
    prompt_width: int,
    completion_width: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The inverse of `concatenate`: prompts ``[N, prompt_width]`` and completions ``[N, completion_width]``.

    Args:
        tokens: ``[N, L]`` right-padded joint rows.
        prompt_lengths: ``[N]`` tokens of each prompt.
        lengths: ``[N]`` tokens of each joint row.
        prompt_width: columns of the prompts, at least the longest one's length.
        completion_width: columns of the completions, likewise.
    """
    places = np.arange(prompt_width)[None, :]
    prompts = np.where(places < prompt_lengths[:, None], tokens[:, :prompt_width], PAD)
    places = prompt_lengths[:, None] + np.arange(completion_width)[None, :]
    inside = places < lengths[:, None]
    gathered = np.take_along_axis(tokens, np.minimum(places, tokens.shape[1] - 1), axis=1)
    return prompts, np.where(inside, gathered, PAD)


def ended_by_themselves(completions: NDArray[np.int64], eos_token_id: int | None) -> NDArray[np.bool_]:
    """``[N]`` True where a row of ``completions [N, T]`` has its end-of-text token; False where it was cut."""
    if eos_token_id is None:
        return np.zeros(len(completions), dtype=np.bool_)
    ended: NDArray[np.bool_] = (completions == eos_token_id).any(axis=1)
    return ended


def last_action_index(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Column ``[N]`` of the last True of each row of ``mask [N, T]``: the action that ended the episode.

    Raises:
        ValueError: a row of the mask is all False.
    """
    if not mask.any(axis=1).all():
        raise ValueError(f"rows {np.flatnonzero(~mask.any(axis=1)).tolist()} have no action")
    return mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
