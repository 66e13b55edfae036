"""Rows of tokens: layout, padding, joining and splitting of prompts and completions. Numpy only.

Padding is -1, which is no vocabulary id, so a padding token that equals the end-of-text token causes no ambiguity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float32]

PAD = -1
"""Marks a position without a token. Never a vocabulary id; for models it is a zero in the attention mask."""

EOS = "eos"
"""Stop reason: the end-of-text token was produced."""

LENGTH = "length"
"""Stop reason: the budget of new tokens was used up."""


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """N finished episodes, one a row. T is the width of the completions, P that of the prompts.

    Per-token arrays are 0 where `mask` is False.
    """

    prompts: Ids
    """``[N, P]`` token ids, right-padded with PAD."""
    completions: Ids
    """``[N, T]`` sampled token ids (an end-of-text token included), right-padded with PAD."""
    rewards: Floats
    """``[N, T]`` reward units, scores and penalties included."""
    terminated: Mask
    """``[N]`` the episode ended by the task's rules: no bootstrap."""
    truncated: Mask
    """``[N]`` a time limit cut the episode: bootstrap from the final state's value."""
    stop_reason: NDArray[np.str_]
    """``[N]`` "eos" or "length"."""
    scores: Floats | None = None
    """``[N]`` reward units, added by `PreferenceReward` at the last action."""
    score_std: Floats | None = None
    """``[N]`` reward units, standard deviation over the scorers' members; 0 for one."""
    member_scores: dict[str, Floats] | None = None
    """``[N]`` reward units by member name, before they are combined."""
    logprobs: Floats | None = None
    """``[N, T]`` nats, of the acting agent."""
    ref_logprobs: Floats | None = None
    """``[N, T]`` nats, of the reference."""
    kl: Floats | None = None
    """``[N, T]`` nats: the log-ratio logprobs - ref_logprobs of `KLShaping`, before beta."""

    @property
    def mask(self) -> Mask:
        """``[N, T]`` True on the tokens of the completions."""
        mask: Mask = self.completions != PAD
        return mask


def join_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """Concatenate the episodes of all parts, which have the same widths and the same optional arrays."""

    def join(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        if isinstance(values[0], dict):
            return {name: join([value[name] for value in values]) for name in values[0]}
        return np.concatenate(values)

    return TokenRows(**{name: join([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def pad_rows(rows: Sequence[Sequence[int] | Ids], width: int | None = None) -> Ids:
    """Lists of token ids as one array ``[N, width]``, right-padded with PAD.

    Args:
        rows: N lists of token ids.
        width: tokens; None: the longest row's length.

    Raises:
        ValueError: a row is longer than `width`.
    """
    longest = max((len(row) for row in rows), default=0)
    if width is None:
        width = longest
    if longest > width:
        raise ValueError(f"expected rows of at most {width} tokens, received one of {longest}")
    padded = np.full((len(rows), width), PAD, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def concatenate(prompts: Ids, completions: Ids) -> Ids:
    """Joint rows ``[N, P + T]`` of ``[N, P]`` and ``[N, T]``, padded on any side: all padding moved to the right."""
    joint = np.concatenate([prompts, completions], axis=1)
    order = np.argsort(joint == PAD, axis=1, kind="stable")
    return np.take_along_axis(joint, order, axis=1)


def split(tokens: Ids, prompt_lengths: Ids, lengths: Ids, prompt_width: int, completion_width: int) -> tuple[Ids, Ids]:
    """The inverse of `concatenate`: prompts ``[N, prompt_width]`` and completions ``[N, completion_width]``.

    Args:
        tokens: ``[N, L]`` right-padded joint rows.
        prompt_lengths: ``[N]`` tokens of each prompt.
        lengths: ``[N]`` tokens of each joint row.
        prompt_width: columns of the prompts, at least the longest one's length.
        completion_width: columns of the completions, at least the longest one's length.
    """
    places = np.arange(prompt_width)[None, :]
    prompts = np.where(places < prompt_lengths[:, None], tokens[:, :prompt_width], PAD)
    places = prompt_lengths[:, None] + np.arange(completion_width)[None, :]
    inside = places < lengths[:, None]
    gathered = np.take_along_axis(tokens, np.minimum(places, tokens.shape[1] - 1), axis=1)
    return prompts, np.where(inside, gathered, PAD)


def last_action_index(mask: Mask) -> Ids:
    """Column ``[N]`` of the last True of each row of ``mask [N, T]``: the action that ended the episode.

    Raises:
        ValueError: a row of the mask is all False.
    """
    if not mask.any(axis=1).all():
        raise ValueError(
            f"mask: expected a True in each row, received none in rows {np.flatnonzero(~mask.any(axis=1)).tolist()}"
        )
    columns: Ids = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    return columns
