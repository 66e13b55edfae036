"""Tools in dialogues: typed Python functions, or an object's methods, that the agent calls before it answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from difflib import get_close_matches
from functools import partial
from math import isfinite
from numbers import Real
from threading import Thread
from typing import Any, get_args

import gymnasium as gym

from textenvs.dialogues.bridge import Observation
from textenvs.dialogues.tool_calls import Call, Format, parse_calls
from textenvs.tokens.chats import check_turns, is_chat, plain_text, question_of
from textenvs.tokens.prompts import RowSource, rows_of
from textenvs.tokens.row_files import Row, at, kind_of
from textenvs.tokens.rows import as_numbers
from textenvs.wrappers.scorers import arguments_of, event_loop

TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,), "number": (int, float), "string": (str,), "boolean": (bool,), "array": (list,), "object": (dict,)
}  # fmt: skip
HOW = {
    "plain": "To call one, write a line name(argument=value).",
    "json": 'To call one, answer with {"name": ..., "parameters": {...}} alone.',
    "hermes": 'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.',
}


class CheckedRows(list[Row]):
    """Rows that are fit for `ToolEnv`, and the names of their columns; environments side by side share them."""

    def __init__(self, rows: RowSource, *, needs_prompt: bool) -> None:
        super().__init__(rows_of(rows))
        if not self:
            raise ValueError("rows: expected at least one row, received none")
        for row in self if needs_prompt else ():
            with at(row.place):
                kind_of(row.columns, ("chats", "prompts"))
        self.columns = {name for row in self for name in row.columns}


class ToolEnv(gym.Env[Any, str]):
    """A question that the agent answers in the first turn without a call; until then its calls are run and answered.

    | Observation | the row's prompt, then a turn of role "tool" for each call: its result, or "error: ..."            |
    | Action      | Text: calls, or the answer                                                                      |
    | Reward      | of the answer ``reward``; of other turns ``error_reward`` if a call failed; the task's changes   |
    | Termination | a turn without a call                                                                           |
    | Truncation  | never                                                                                           |
    | Info        | calls and failed, their numbers; at reset row, its columns, with tools and system for the bridge |

    Args:
        tools: functions with type hints and a docstring that describes each argument (Google's style).
        rows: as in ``textenvs/TextGeneration-v0``; one is drawn for each episode, by its seed.
        reward: ``f(prompts, completions, **columns)``, lists of one entry, of the answer and the row's columns. None of
            its numbers is 0. It may be a coroutine function.
        task: makes an object in TRL's shape (its ``environment_factory``): ``reset(**row)`` may return text, which is
            put behind the prompt; public methods are tools; ``get_reward()``, if there is one, is asked after each
            turn, and the change is paid, so that an episode is paid its last value however it ends. Then rows need no
            prompt, and `reward` may ask for ``environments``.
        parse: format of calls; see `textenvs.dialogues.tool_calls.parse_calls`.
        error_reward: reward units, paid once in a turn with calls that are malformed, raise or hang.
        time_limit: of a call, seconds; its thread is left behind. None: no limit.
        system: text that tells of the tools; None: what the chat template writes of them, or else the schemas.

    Raises:
        ValueError: neither tools nor a task; a tool without type hints or docstring, or two of one name; rows without a
            prompt; a reward that asks for a column that no row has.
    """

    def __init__(
        self,
        tools: Sequence[Callable[..., Any]] = (),
        *,
        rows: RowSource | None = None,
        reward: Callable[..., Any] | None = None,
        task: Callable[[], Any] | None = None,
        parse: Format = "auto",
        error_reward: float = 0.0,
        time_limit: float | None = 10.0,
        system: str | None = None,
    ) -> None:
        if parse not in get_args(Format):
            raise ValueError(f"parse: expected one of {', '.join(get_args(Format))}, received {parse!r}")
        if time_limit is not None and not (_is_real(time_limit) and time_limit > 0):
            raise ValueError(f"time_limit: expected a number of seconds above 0, or None, received {time_limit!r}")
        if not (_is_real(error_reward) and isfinite(error_reward)):
            raise ValueError(f"error_reward: expected a finite number, received {error_reward!r}")
        for name, each in (("reward", reward), ("task", task)):
            if each is not None and not callable(each):
                raise ValueError(f"{name}: expected a function, received {each!r:.200}")
        if rows is None and task is None:
            raise ValueError("rows: expected rows with a prompt, or a task whose reset writes one, received none")
        self.task: Any = None if task is None else task()
        source: RowSource = [{}] if rows is None else rows
        self.rows = source if isinstance(source, CheckedRows) else CheckedRows(source, needs_prompt=task is None)
        self.reward, self.parse, self.error_reward, self.time_limit = reward, parse, error_reward, time_limit
        if callable(tools):
            raise ValueError(f"tools: expected a list of functions, received {tools!r:.200}")
        every = [*tools, *_methods(self.task)]
        schemas = [_schema(tool) for tool in every]
        self.tools = {schema["name"]: (tool, schema) for tool, schema in zip(every, schemas, strict=True)}
        if not self.tools or len(self.tools) < len(every):
            names = [schema["name"] for schema in schemas]
            raise ValueError(f"tools: expected one or more, of different names, received {names}")
        if reward is not None:
            known = ("prompts", "completions", "environments", *self.rows.columns)
            arguments_of(reward, {name: [] for name in known}, "reward")
        listed = "\n".join(json.dumps(schema) for schema in schemas)
        how = HOW.get(parse, HOW["hermes"])
        self._told: dict[str, Any] = {"system": system, "tools": []}
        if system is None:
            self._told["system"] = f"Tools, as JSON schemas:\n{listed}\n{how} Its result follows."
            self._told["tools"] = [{"type": "function", "function": schema} for schema in schemas]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw a row, and ask its prompt."""
        super().reset(seed=seed)
        self._row = row = self.rows[int(self.np_random.integers(len(self.rows)))]
        self._paid = 0.0
        name = next((each for each in ("messages", "prompt") if each in row.columns), "")
        prompt = row.columns.get(name, "")
        if is_chat(prompt):
            prompt = question_of(check_turns(list(prompt), name))
        told = None if self.task is None else self.task.reset(**row.columns)
        if told is not None and is_chat(prompt):
            prompt = [*prompt[:-1], prompt[-1] | {"content": f"{prompt[-1]['content']}\n{told}"}]
        elif told is not None:
            prompt = f"{prompt}\n{told}" if prompt else told
        self._prompt = plain_text(prompt) if is_chat(prompt) else prompt
        columns = {each: value for each, value in row.columns.items() if each != name}
        return prompt, {"row": columns, **self._told}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run the calls of a turn, or reward the answer."""
        calls = parse_calls(action, self.parse, self.tools)
        answers = [self._answer(call) for call in calls]
        failed = sum(wrong for _, wrong in answers)
        reward = self._change() + (self.error_reward if failed else 0.0) + (0.0 if calls else self._score(action))
        # Half of a surrogate pair, which a JSON escape can name, is no Unicode and would stop the tokenizer.
        turns = [{"role": "tool", "content": text.encode(errors="replace").decode()} for text, _ in answers]
        return turns, reward, not calls, False, {"calls": len(calls), "failed": failed}

    def close(self) -> None:
        """Close the task, if it can be closed."""
        getattr(self.task, "close", bool)()

    def _answer(self, call: Call | str) -> tuple[str, bool]:
        """Text for the agent, and whether it is of an error."""
        if isinstance(call, str):
            return f"error: {call}", True
        if call.name not in self.tools:
            near = get_close_matches(call.name, self.tools, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(self.tools)}"
            return f"error: no tool {call.name!r}; {hint}", True
        tool, schema = self.tools[call.name]
        try:
            bound = inspect.signature(tool).bind(*call.positional, **call.arguments)
        except TypeError as fault:
            return f"error: {call.name}: {fault}; expected {call.name}{inspect.signature(tool)}", True
        for name, value in bound.arguments.items():
            known = schema["parameters"]["properties"].get(name, {})
            wanted = known.get("type") if not (value is None and known.get("nullable")) else None
            kinds = TYPES.get(wanted, (object,)) if isinstance(wanted, str) else (object,)
            if not isinstance(value, kinds) or (isinstance(value, bool) and wanted in ("integer", "number")):
                return f"error: {call.name}: {name}: expected {wanted}, received {value!r:.80}", True
        done = _run(partial(tool, *bound.args, **bound.kwargs), self.time_limit)
        if done is None:
            return f"error: {call.name}: no result within {self.time_limit:g} seconds", True
        if (raised := done.exception()) is not None:
            return f"error: {call.name}: {type(raised).__name__}: {raised}", True
        return done.result(), False

    def _score(self, action: str) -> float:
        if self.reward is None:
            return 0.0
        given = {name: [value] for name, value in self._row.columns.items()}
        given |= {"prompts": [self._prompt], "completions": [action], "environments": [self.task]}
        arguments, named = arguments_of(self.reward, given, f"{self._row.place}: reward")
        values = self.reward(*arguments, **named)
        if inspect.iscoroutine(values):
            values = asyncio.run_coroutine_threadsafe(values, event_loop(os.getpid())).result()
        values = [0.0] if isinstance(values, list) and values == [None] else values
        return float(as_numbers(values, (1,), f"{self._row.place}: reward")[0])

    def _change(self) -> float:
        if not hasattr(self.task, "get_reward"):
            return 0.0
        before, self._paid = self._paid, float(self.task.get_reward() or 0.0)
        return self._paid - before


def _methods(task: Any) -> list[Callable[..., Any]]:
    found = [] if task is None else inspect.getmembers(task, inspect.ismethod)
    return [method for name, method in found if name[0] != "_" and name not in ("reset", "get_reward", "close")]


def _schema(tool: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        return dict(get_json_schema(tool)["function"])
    except Exception as fault:  # of several types, one a library's own
        raise ValueError(
            f"tool {getattr(tool, '__name__', tool)!r}: expected a function with type hints and a docstring that "
            f"describes each argument, received one of which {type(fault).__name__} says: {fault}"
        ) from fault


def _run(call: Callable[[], Any], seconds: float | None) -> Future[str] | None:
    """Text of what a call came to; None: nothing in time."""
    done: Future[str] = Future()

    def run() -> None:
        try:
            value = call()
            value = asyncio.run(value) if inspect.iscoroutine(value) else value
            done.set_result(value if isinstance(value, str) else json.dumps(value, default=str))
        except BaseException as fault:
            done.set_exception(fault)

    # Not a pool's thread: one that hangs would keep the program alive.
    Thread(target=run, name="tool", daemon=True).start()
    return done if wait([done], seconds).done else None


def _is_real(value: object) -> bool:
    return isinstance(value, Real)
