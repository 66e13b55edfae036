"""The tokens that end a model's texts, found where it names them; chat models mostly have several."""

from __future__ import annotations

from typing import Any

from textenvs.tokens.chats import chat_text
from textenvs.tokens.end_tokens import end_tokens


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
    """All tokens that end the model's texts, sorted, as `find_end_tokens` finds them; ValueError if there is none."""
    found = find_end_tokens(model, tokenizer)
    if not found:
        raise ValueError(
            f"{getattr(model, 'name_or_path', '') or type(model).__name__} has no end-of-text token in its "
            "configuration, chat template or tokenizer: pass eos_token_id (None: there is none)"
        )
    return end_tokens([token for ids in found.values() for token in ids])
