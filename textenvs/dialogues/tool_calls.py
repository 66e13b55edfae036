"""Calls of tools in a model's turn, in the formats that chat templates teach."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

Format = Literal["auto", "hermes", "json", "plain"]
TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
LINE = re.compile(r"\s*\[?(\w+)\(.*\)\]?\s*")
EXPECTED = 'expected {"name": ..., "arguments": {...}}'


class Call(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]
    """By name."""
    positional: tuple[Any, ...] = ()


def parse_calls(text: str, form: Format, names: Collection[str]) -> list[Call | str]:
    """The calls in a turn, in their order; a text says what is wrong with one that is malformed. None: an answer.

    Args:
        text: the agent's turn.
        form: "hermes": JSON in ``<tool_call>`` tags (Hermes, Qwen). "json": a turn that is a JSON object, several, or a
            list (Llama, Mistral). "plain": lines ``name(argument=value)``, or a list of such, with Python's literals.
            "auto": the first of these that the turn has; plain ones are then of known ``names`` only, and a JSON
            object has a name and arguments.
        names: of the tools.
    """
    if form == "hermes" or (form == "auto" and "<tool_call>" in text):
        return [call for part in TAGGED.findall(text) for call in _json_calls(part.strip())]
    whole = text.strip().removeprefix("<|python_tag|>").strip()
    if form != "plain" and whole.startswith(("{", "[")):
        meant = '"name"' in whole and ('"arguments"' in whole or '"parameters"' in whole)
        if form == "json" or meant:
            return _json_calls(whole)
    if form == "json":
        return []
    lines = [(line, LINE.fullmatch(line)) for line in text.splitlines()]
    wanted = [line.strip() for line, found in lines if found and (form == "plain" or found[1] in names)]
    return [call for line in wanted for call in _plain_calls(line)]


def _json_calls(text: str) -> list[Call | str]:
    calls: list[Call | str] = []
    decoder, place = json.JSONDecoder(), 0
    while place < len(text) or not calls:
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as fault:
            return [*calls, f"malformed JSON: {fault}; {EXPECTED}, received {text[place:]!r:.80}"]
        calls += [_json_call(each) for each in (value if isinstance(value, list) and value else [value])]
        place = len(text) - len(text[place:].lstrip(" \r\n\t;,"))
    return calls


def _json_call(value: Any) -> Call | str:
    call = value.get("function", value) if isinstance(value, dict) else value
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, dict):
            return Call(call["name"], arguments)
    return f"{EXPECTED}, received {value!r:.80}"


def _plain_calls(line: str) -> list[Call | str]:
    try:
        body = ast.parse(line, mode="eval").body
        nodes: list[Any] = [*body.elts] if isinstance(body, ast.List) else [body]
        return [
            Call(
                node.func.id,
                {each.arg: ast.literal_eval(each.value) for each in node.keywords},
                tuple(ast.literal_eval(each) for each in node.args),
            )
            for node in nodes
        ]
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        return [f"malformed call: expected name(argument=value) with literal values, received {line!r:.80}"]
