"""Chats: lists of turns, each with a role and its content; as a template writes them, and as people read them.

Every fault of a chat is found here. Not here: files (see `prompts`) and what is learned from a chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Turn: TypeAlias = "dict[str, str]"


def is_chat(value: Any) -> bool:
    """Whether `value` means to be a chat: a list that begins with an object."""
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def as_turns(value: Any, name: str) -> list[Turn]:
    """The turns in `value`, their role and content alone.

    Raises:
        ValueError: it is not a list of turns, or holds none, or one in which the assistant says nothing.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of turns, received {value!r}")
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError(f"turn {number} must be an object with the strings role and content, received {turn!r}")
        if turn["role"] == "assistant" and not turn["content"].strip():
            raise ValueError(f"the assistant's turn {number} is empty: there is nothing to learn")
        turns.append({"role": turn["role"], "content": turn["content"]})
    return turns


def check_turns(value: Any, name: str = "'messages'") -> list[Turn]:
    """The turns of a chat that someone else than the assistant begins.

    Raises:
        ValueError: as `as_turns`, or the assistant speaks first.
    """
    turns = as_turns(value, name)
    if turns[0]["role"] == "assistant":
        raise ValueError("the assistant speaks first: there is nothing that it answers to")
    return turns


def question_of(turns: Sequence[Turn]) -> list[Turn]:
    """A chat up to where the assistant is about to speak: without its answer at the end, if there is one."""
    return list(turns[:-1] if turns[-1]["role"] == "assistant" else turns)


def question_and_answer(value: Any, name: str) -> tuple[list[Turn], str]:
    """A chat that the assistant ends, taken apart; of its answer alone, the question is empty.

    Raises:
        ValueError: as `as_turns`, or someone else has the last word.
    """
    turns = as_turns(value, name)
    if turns[-1]["role"] != "assistant":
        raise ValueError(f"{name} must end with the assistant's turn, received a turn of {turns[-1]['role']!r} there")
    return turns[:-1], turns[-1]["content"]


def plain_text(turns: Sequence[Turn]) -> str:
    """What is said, a line a turn, with no template around it: what people read."""
    return "\n".join(turn["content"] for turn in turns)


def plain_prompt(turns: Sequence[Turn]) -> str:
    """The same with a line's end before the answer: what scorers read, and reward models learn from."""
    return plain_text(turns) + "\n"


def chat_text(tokenizer: Any, turns: Sequence[Turn], *, answering: bool) -> str:
    """A chat as the tokenizer's template writes it, up to where the assistant's words begin if it is `answering`.

    Raises:
        ValueError: the tokenizer has no template, or it refuses these turns.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "a chat needs a tokenizer with a chat template, and this one has none: take a model that was trained on "
            "chats (an instruct model), or write prompts as plain text"
        )
    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=answering))
    except TemplateError as fault:
        raise ValueError(f"the chat template refuses these turns: {fault}") from fault


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a chat's text; its special tokens are the template's own, none are added."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
