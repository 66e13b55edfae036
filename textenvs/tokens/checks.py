"""Checks of completions, log-probs and scores that come from agents, references and scorers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textenvs.tokens.end_of_text import EndOfText, is_end
from textenvs.tokens.rows import PAD, Floats, Ids, Mask

if TYPE_CHECKING:
    from torch import Tensor

Numbers: TypeAlias = "ArrayLike | Tensor"
"""What a user's own callables may return."""


def check_completions(completions: Ids, eos_token_id: EndOfText, vocab_size: int, max_new_tokens: int) -> Mask:
    """``[N]`` True where a row of ``completions [N, T]`` ended with its end of text, False where with the budget.

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
    faults = {
        "is empty": lengths == 0,
        "has padding before a token; completions are right-padded": (mask[:, 1:] & ~mask[:, :-1]).any(axis=1),
        f"has a token id outside the vocabulary [0, {vocab_size})": (
            mask & ((completions < 0) | (completions >= vocab_size))
        ).any(axis=1),
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


def as_array(values: Numbers) -> NDArray[Any]:
    """A torch tensor (of any device and type), array or list as an array."""
    detached: Any = values.detach().cpu().float() if hasattr(values, "detach") else values
    return np.asarray(detached)


def as_numbers(values: Numbers, shape: tuple[int, ...], name: str) -> Floats:
    """Numbers of a scorer or reference (torch tensor, array or list) as a float32 array.

    Raises:
        ValueError: another shape, NaN or infinite; the message starts with `name` and has what was received.
    """
    try:
        array = np.asarray(as_array(values), dtype=np.float32)
    except (TypeError, ValueError) as fault:
        raise ValueError(f"{name}: expected numbers of shape {shape}, received {values!r}") from fault
    if array.shape != shape:
        raise ValueError(f"{name}: expected numbers of shape {shape}, received shape {array.shape}")
    if not np.isfinite(array).all():
        place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: expected finite numbers, received {array[place]} at row {place[0]}")
    return array
