"""What agents, scorers and references hand in is checked here, with messages that name what was received."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenvs.tokens.rows import PAD


def check_completions(
    completions: NDArray[np.int64], eos_token_id: int | None, vocab_size: int, max_new_tokens: int
) -> NDArray[np.bool_]:
    """``[N]`` True where a row of ``completions [N, T]`` ended by `eos_token_id`, False where by the budget.

    Raises:
        ValueError: a row is none that stepping could have produced: empty, not right-padded with PAD, a token outside
            ``[0, vocab_size)``, a token after `eos_token_id`, or an end before both it and `max_new_tokens`.
    """
    if completions.shape[1] > max_new_tokens:
        raise ValueError(f"completions: {completions.shape[1]} columns, the budget is {max_new_tokens} tokens")
    mask = completions != PAD
    lengths = mask.sum(axis=1)
    eos = completions == eos_token_id if eos_token_id is not None else np.zeros_like(mask)
    last = mask & (np.cumsum(mask, axis=1) == lengths[:, None])
    at_eos: NDArray[np.bool_] = (eos & last).any(axis=1)
    faults = {
        "is empty": lengths == 0,
        "has padding before a token; completions are right-padded": (mask[:, 1:] & ~mask[:, :-1]).any(axis=1),
        f"has a token id outside the vocabulary [0, {vocab_size})": (
            mask & ((completions < 0) | (completions >= vocab_size))
        ).any(axis=1),
        f"goes on after its end-of-text token {eos_token_id}": (eos & ~last).any(axis=1),
        f"stops before its end-of-text token and before its budget of {max_new_tokens} tokens": (
            ~at_eos & (lengths < max_new_tokens)
        ),
    }
    for fault, rows in faults.items():
        if rows.any():
            row = int(np.argmax(rows))
            raise ValueError(f"completions: row {row} {fault}: {completions[row].tolist()}")
    return at_eos


def check_logprobs(logprobs: NDArray[np.float32], name: str) -> None:
    """Finite log-probabilities of tokens that were chosen: anything else makes the KL price NaN or infinite.

    Raises:
        ValueError: NaN, infinite, or above 0 by more than rounding; the message starts with `name`.
    """
    wrong = ~np.isfinite(logprobs) | (logprobs > 1e-3)
    if wrong.any():
        raise ValueError(f"{name}: expected finite log-probabilities in nats, at most 0; received {logprobs[wrong][0]}")


def as_numbers(values: Any, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """Numbers of a scorer or reference (torch tensor, array or list) as a float32 array.

    Raises:
        ValueError: another shape, or NaN or infinite; the message starts with `name` and has what was received.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as fault:
        raise ValueError(f"{name}: expected numbers of shape {shape}, received {values!r}") from fault
    if array.shape != shape:
        raise ValueError(f"{name}: expected numbers of shape {shape}, received shape {array.shape}")
    if not np.isfinite(array).all():
        place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: expected finite numbers, received {array[place]} at row {place[0]}")
    return array
