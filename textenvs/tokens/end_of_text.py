"""The tokens that end a text: a model may have several, chat models mostly do.

Written as transformers writes them: ``eos_token_id`` is one id, several, or None (nothing but the budget ends a text).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from textenvs.tokens.chats import chat_text
from textenvs.tokens.rows import Ids, Mask

if TYPE_CHECKING:
    from torch import Tensor

EndOfText: TypeAlias = "int | Sequence[int] | None"
"""One token id, several, or None."""


def end_tokens(eos_token_id: EndOfText) -> tuple[int, ...]:
    """The ids in ``eos_token_id``, sorted, each once."""
    if eos_token_id is None:
        return ()
    return tuple(sorted({int(token) for token in np.atleast_1d(np.asarray(eos_token_id))}))


def as_eos_token_id(tokens: EndOfText, vocab_size: int | None = None) -> int | tuple[int, ...] | None:
    """``tokens`` in their shortest form: None, one id, or a sorted tuple.

    Raises:
        ValueError: one is outside ``[0, vocab_size)``.
    """
    ids = end_tokens(tokens)
    if vocab_size is not None and not all(0 <= token < vocab_size for token in ids):
        raise ValueError(f"eos_token_id: expected ids in [0, {vocab_size}), received {tokens!r}")
    return None if not ids else ids[0] if len(ids) == 1 else ids


def is_end(tokens: Ids, eos_token_id: EndOfText) -> Mask:
    """True where ``tokens``, of any shape, is one that ends a text."""
    return np.isin(tokens, end_tokens(eos_token_id))


def ends_text(tokens: Tensor, eos_token_id: EndOfText) -> Tensor:
    """`is_end` of a torch tensor, on its device."""
    import torch

    return torch.isin(tokens, torch.tensor(end_tokens(eos_token_id), dtype=tokens.dtype, device=tokens.device))


def find_end_tokens(model: Any, tokenizer: Any = None) -> dict[str, tuple[int, ...]]:
    """Where a model of transformers names tokens that end its texts, and which; places that name none are left out.

    All of them together are the set: ``generate`` of transformers, too, stops at any of ``generation_config``'s.

    Args:
        model: its ``config`` and ``generation_config`` are read.
        tokenizer: its chat template is read, if there is one; without any other place its own end-of-text token, too.
    """
    vocab_size = model.get_input_embeddings().weight.shape[0]
    generation = getattr(model, "generation_config", None)
    found = {
        "config.json": end_tokens(getattr(model.config, "eos_token_id", None)),
        "generation_config.json": end_tokens(getattr(generation, "eos_token_id", None)),
        "chat template": template_end(tokenizer),
    }
    if not any(found.values()):
        found["tokenizer"] = end_tokens(getattr(tokenizer, "eos_token_id", None))
    inside = {place: tuple(token for token in ids if token < vocab_size) for place, ids in found.items()}
    return {place: ids for place, ids in inside.items() if ids}


def template_end(tokenizer: Any) -> tuple[int, ...]:
    """The special token that the chat template writes behind an assistant's turn, found by rendering one; or none."""
    if not getattr(tokenizer, "chat_template", None):
        return ()
    answer = "An answer."
    turns = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": answer}]
    try:
        _, found, rest = chat_text(tokenizer, turns, answering=False).rpartition(answer)
    except ValueError:  # a template for other turns than these
        return ()
    special = set(getattr(tokenizer, "all_special_ids", ())) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []
    return next(((int(token),) for token in ids if token in special), ())


def end_of_text(model: Any, tokenizer: Any = None) -> tuple[int, ...]:
    """All tokens that end the model's texts, sorted; see `find_end_tokens`.

    Raises:
        ValueError: there is none.
    """
    found = find_end_tokens(model, tokenizer)
    if not found:
        raise ValueError(
            f"{getattr(model, 'name_or_path', '') or type(model).__name__} has no end-of-text token in its "
            "configuration, chat template or tokenizer: pass eos_token_id (None: there is none)"
        )
    return end_tokens([token for ids in found.values() for token in ids])
