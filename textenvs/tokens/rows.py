"""Rows of tokens: layout, padding, joining, splitting, and checks of what comes from agents, references and scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textenvs.tokens.end_tokens import EndOfText, is_end

if TYPE_CHECKING:
    from torch import Tensor

Ids: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float32]
Numbers: TypeAlias = "ArrayLike | Tensor"
"""What a user's own callables may return."""
Columns: TypeAlias = "Sequence[Mapping[str, Any]]"
"""What the rows of N prompts have beside the prompt, by name: an answer, for instance."""

PAD = -1
"""Marks a position without a token. Never a vocabulary id, even where the padding token equals the end-of-text token;
for models it is a zero in the attention mask."""

EOS = "eos"
"""Stop reason: the end-of-text token was produced."""

LENGTH = "length"
"""Stop reason: the budget of new tokens was used up."""

TERMINATED, TRUNCATED, TURNS = "terminated", "truncated", "turns"
"""Stop reasons of a dialogue beside LENGTH: its environment's own two, and the limit of the agent's turns."""

NO_TURN = -1
"""Number of the turn of a token that the agent did not sample."""


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """N finished episodes, one a row. T is the width of the completions, P that of the prompts.

    Per-token arrays are 0 where `mask` is False.
    """

    prompts: Ids
    """``[N, P]`` token ids, right-padded with PAD."""
    completions: Ids
    """``[N, T]`` sampled token ids (an end-of-text token included), and in dialogues what the environment wrote between
    them; right-padded with PAD."""
    rewards: Floats
    """``[N, T]`` reward units, scores and penalties included."""
    terminated: Mask
    """``[N]`` the episode ended by the task's rules: no bootstrap."""
    truncated: Mask
    """``[N]`` a time limit cut the episode: bootstrap from the final state's value."""
    stop_reason: NDArray[np.str_]
    """``[N]`` "eos" or "length"; of a dialogue "terminated", "truncated", "turns" or "length"."""
    turns: Ids | None = None
    """``[N, T]`` of a dialogue: the agent's turn, from 0 on, in which it sampled the token; NO_TURN elsewhere."""
    states: Ids | None = None
    """``[N, T]`` of a dialogue: a number that names the state in which the token's turn began; equal ones are equal."""
    scores: Floats | None = None
    """``[N]`` reward units, added by `PreferenceReward` at the last action."""
    score_std: Floats | None = None
    """``[N]`` reward units, standard deviation over the scorers' members; 0 for one."""
    member_scores: dict[str, Floats] | None = None
    """``[N]`` reward units by member name, before they are combined; NaN where a member does not apply."""
    logprobs: Floats | None = None
    """``[N, T]`` nats, of the acting agent."""
    ref_logprobs: Floats | None = None
    """``[N, T]`` nats, of the reference."""
    kl: Floats | None = None
    """``[N, T]`` nats: the log-ratio logprobs - ref_logprobs of `KLShaping`, before beta."""

    @property
    def mask(self) -> Mask:
        """``[N, T]`` True on the tokens that the agent sampled."""
        mask: Mask = self.completions != PAD if self.turns is None else self.turns != NO_TURN
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


def pad_rows(rows: Sequence[Sequence[int] | NDArray[np.integer[Any]]], width: int | None = None) -> Ids:
    """N lists of token ids as one array ``[N, width]``, right-padded with PAD; None: as wide as the longest row.

    Raises:
        ValueError: a row is longer than `width`.
    """
    longest = max(map(len, rows), default=0)
    width = longest if width is None else width
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

    ``tokens [N, L]`` are right-padded; ``prompt_lengths [N]`` and ``lengths [N]`` are tokens of each prompt and joint
    row. The widths are at least the longest one's length.
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
    return mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)


def check_completions(completions: Ids, eos_token_id: EndOfText, vocab_size: int, max_new_tokens: int) -> Mask:
    """``[N]`` True where a row of ``completions [N, T]`` ended with `eos_token_id`, False where with the budget.

    Raises:
        ValueError: no episode can produce a row: it is empty, not right-padded with PAD, has a token outside
            ``[0, vocab_size)`` or after `eos_token_id`, or ends before both it and `max_new_tokens`.
    """
    if completions.shape[1] > max_new_tokens:
        raise ValueError(f"completions: expected at most {max_new_tokens} columns, received {completions.shape[1]}")
    mask = completions != PAD
    lengths = mask.sum(axis=1)
    eos = is_end(completions, eos_token_id)
    last = mask & (np.cumsum(mask, axis=1) == lengths[:, None])
    at_eos: Mask = (eos & last).any(axis=1)
    outside = mask & ((completions < 0) | (completions >= vocab_size))
    faults = {
        "is empty": lengths == 0,
        "has padding before a token; completions are right-padded": (mask[:, 1:] & ~mask[:, :-1]).any(axis=1),
        f"has a token id outside the vocabulary [0, {vocab_size})": outside.any(axis=1),
        f"continues after its end-of-text token {eos_token_id}": (eos & ~last).any(axis=1),
        f"stops before its end-of-text token and before its budget of {max_new_tokens} tokens": (
            ~at_eos & (lengths < max_new_tokens)
        ),
    }
    for fault, rows in faults.items():
        if rows.any():
            row = int(np.argmax(rows))
            raise ValueError(f"completions: row {row} {fault}: {completions[row].tolist()}")
    return at_eos


def check_logprobs(logprobs: Floats, name: str) -> None:
    """Raise ValueError, beginning with `name`, unless log-probs are finite and at most 0 (up to rounding)."""
    wrong = ~np.isfinite(logprobs) | (logprobs > 1e-3)
    if wrong.any():
        raise ValueError(f"{name}: expected finite log-probabilities in nats, at most 0; received {logprobs[wrong][0]}")


def as_token_ids(observation: object, vocab_size: int) -> Ids:
    """``[L]`` or ``[B, L]``, int64; ValueError for what holds no ids of the vocabulary, or has another shape."""
    ids = np.asarray(observation)
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or not ids.size:
        raise ValueError(f"observation: expected token ids [L] or [B, L], received {observation!r:.200}")
    for wrong in ids[(ids < PAD) | (ids >= vocab_size)].flat:
        raise ValueError(f"observation: token id {wrong} is outside the vocabulary [0, {vocab_size})")
    return ids.astype(np.int64)


def as_array(values: Numbers) -> NDArray[Any]:
    """A torch tensor (of any device and type), array or list, maybe of tensors, as an array."""
    parts: Any = values
    if isinstance(parts, list | tuple):
        parts = [as_array(part) if hasattr(part, "detach") else part for part in parts]
    return np.asarray(parts.detach().cpu().float() if hasattr(parts, "detach") else parts)


def as_numbers(values: Numbers, shape: tuple[int, ...], name: str, rows: Sequence[str] = ()) -> Floats:
    """Numbers of a scorer or reference (torch tensor, array or list) as float32; ``rows`` are their names in messages.

    Raises:
        ValueError: another shape, None, text, NaN or infinite; the message starts with `name` and has what was
            received.
    """
    try:
        plain = as_array(values)
        if plain.dtype == object and (plain == None).any():  # noqa: E711 - of each element
            raise TypeError("None is no number")
        if plain.dtype.kind in "US":
            raise TypeError("text is no number")
        array = np.asarray(plain, dtype=np.float32)
    except (TypeError, ValueError) as fault:
        raise ValueError(f"{name}: expected numbers of shape {shape}, received {values!r:.200}") from fault
    if array.shape != shape:
        raise ValueError(f"{name}: expected numbers of shape {shape}, received shape {array.shape}: {values!r:.200}")
    if not np.isfinite(array).all():
        place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
        row = rows[place[0]] if rows else f"row {place[0]}"
        raise ValueError(f"{name}: expected finite numbers, received {array[place]} at {row}")
    return array


def masked(values: Numbers, mask: Mask, name: str) -> Floats:
    """Log-probs as float32, 0 outside of `mask`, where they may be anything, even NaN; errors as `as_numbers`."""
    array = as_array(values)
    if array.shape != mask.shape:
        raise ValueError(f"{name}: expected log-probs of shape {mask.shape}, received shape {array.shape}")
    return as_numbers(np.where(mask, array, 0), mask.shape, name)
