"""What was found in a language model, as lines of the proof: ends of text, template, logits, positions, packing."""

from __future__ import annotations

from functools import partial
from typing import Any

from agents.lm.causal_lm import CausalLMPolicy
from agents.verification.checks import Check, Checking, not_applicable
from textenvs.lm.fast_paths import accelerate
from textenvs.lm.packed_forward import can_pack, trunk_of
from textenvs.tokens.chats import chat_text
from textenvs.tokens.end_of_text import find_end_tokens

ENDS, TEMPLATE = "tokens that end a text, and where they are named", "the chat template only appends, turn by turn"
LOGITS, POSITIONS = "what the model does to its logits", "positions"
PACKING = "rows of different lengths run without padding"


def profile_checks(model: Any, tokenizer: Any | None) -> list[Checking]:
    """A line for each property of a transformers ``model`` with its ``tokenizer``, or None."""
    return [
        (ENDS, partial(_ends, model, tokenizer)),
        (TEMPLATE, partial(_template, tokenizer)),
        (LOGITS, partial(_logits, model)),
        (POSITIONS, partial(_positions, model)),
        (PACKING, partial(_packing, model)),
    ]


def _ends(model: Any, tokenizer: Any) -> Check:
    found = find_end_tokens(model, tokenizer)
    places: dict[int, list[str]] = {}
    for place, tokens in found.items():
        for token in tokens:
            places.setdefault(token, []).append(place)
    words = {token: "" if tokenizer is None else f" {tokenizer.convert_ids_to_tokens(token)}" for token in places}
    named = [f"{token}{words[token]} ({', '.join(where)})" for token, where in sorted(places.items())]
    return Check(ENDS, "one or more", "; ".join(named) or "none", bool(named))


def _template(tokenizer: Any) -> Check:
    if not getattr(tokenizer, "chat_template", None):
        return not_applicable(TEMPLATE, "there is no chat template")
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    text = ""
    for count in range(1, len(turns) + 1):
        answering = turns[count - 1]["role"] == "user"
        try:
            longer = chat_text(tokenizer, turns[:count], answering=answering)
        except ValueError as fault:
            return not_applicable(TEMPLATE, str(fault))
        if not longer.startswith(text):
            return not_applicable(TEMPLATE, f"turn {count} rewrites what was before: rows need one answer each")
        text = longer
    return Check(TEMPLATE, "each turn", "each turn", True)


def _logits(model: Any) -> Check:
    transform = CausalLMPolicy(model, eos_token_id=None, critic="none").transform
    cap = "no cap" if transform.cap is None else f"cap {transform.cap:g}"
    return Check(LOGITS, "a scale, a cap", f"scale {transform.scale:g}, {cap}", True)


def _positions(model: Any) -> Check:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Check(POSITIONS, "a number, or none", "no limit" if limit is None else f"{limit} tokens", True)


def _packing(model: Any) -> Check:
    trunk = trunk_of(model)
    accelerate(model)  # which tries the faster path, and falls back
    if can_pack(trunk):
        return Check(PACKING, "yes", "yes", True)
    kind = trunk.config._attn_implementation
    return not_applicable(PACKING, f"padding is used: attention {kind!r}, or layers that do not pass the rows' layout")
