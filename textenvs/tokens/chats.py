"""Chats, lists of turns with a role and content: validation, the template's text and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from textenvs.tokens.tokenizers import Tokenizer

Turn: TypeAlias = "dict[str, str]"


def is_chat(value: object) -> bool:
    """Whether `value` is meant as a chat: a list that begins with an object."""
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def as_turns(value: object, name: str) -> list[Turn]:
    """The turns in `value`, reduced to role and content.

    Raises:
        ValueError: not a list of turns, an empty list, an empty turn of the assistant, or calls outside of the content.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected a list of turns, received {value!r}")
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError(f"turn {number}: expected an object with the strings role and content, received {turn!r}")
        if turn["role"] == "assistant" and not turn["content"].strip():
            raise ValueError(f"turn {number}: expected text of the assistant, received {turn['content']!r}")
        if turn.get("tool_calls"):
            raise ValueError(f"turn {number}: expected calls of tools as text in content, received tool_calls")
        turns.append({"role": turn["role"], "content": turn["content"]})
    return turns


def check_turns(value: object, name: str = "'messages'") -> list[Turn]:
    """The turns of a chat that does not begin with the assistant.

    Raises:
        ValueError: as `as_turns`, or the first turn is the assistant's.
    """
    turns = as_turns(value, name)
    if turns[0]["role"] == "assistant":
        raise ValueError(f"{name}: expected another role than assistant in the first turn, received 'assistant'")
    return turns


def question_of(turns: Sequence[Turn]) -> list[Turn]:
    """A chat without the assistant's last answer, if it ends with one."""
    return list(turns[:-1] if turns[-1]["role"] == "assistant" else turns)


def plain_text(turns: Sequence[Turn]) -> str:
    """The contents, a line a turn, without a template: what people read."""
    return "\n".join(turn["content"] for turn in turns)


def plain_prompt(turns: Sequence[Turn]) -> str:
    """`plain_text` and a line break before the answer: what scorers and reward models read."""
    return plain_text(turns) + "\n"


def chat_text(tokenizer: Tokenizer, turns: Sequence[Turn], *, answering: bool, tools: Sequence[Any] = ()) -> str:
    """A chat in the tokenizer's template; with `answering` it ends where the assistant's answer begins.

    ``tools`` are JSON schemas of functions, which many templates take.

    Raises:
        ValueError: the tokenizer has no template, or the template rejects these turns.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "expected a tokenizer with a chat template for a chat, received one without: take a model that was trained "
            "on chats (an instruct model), or write prompts as plain text"
        )
    try:
        write = cast(Any, tokenizer).apply_chat_template
        given = {"tools": list(tools)} if tools else {}
        return str(write(list(turns), tokenize=False, add_generation_prompt=answering, **given))
    except TemplateError as fault:
        raise ValueError(f"the chat template rejects these turns: {fault}") from fault


def chat_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a chat's text, without special tokens beside the template's."""
    return [int(token) for token in cast(Any, tokenizer)(text, add_special_tokens=False)["input_ids"]]
