"""Ready rewards for verifiable answers: functions that make scorers of text, and their names for the shell.

    scorer=[rewards.number(), rewards.length()], weights=[1.0, -0.001]          --reward number --reward length
    scorer=rewards.regex(r"<answer>(.*?)</answer>", column="answer")            --reward "regex('...', column='answer')"

A scorer here is 1.0 for right and 0.0 for wrong unless it says otherwise, and None where the row has no such column. A
row whose answer is a list has several, each of them right.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

Scores: TypeAlias = "list[float | None]"
NUMBER = re.compile(
    r"(?<![A-Za-z0-9])(?<!\d\.)[+-]?[$€£¥]?"  # no part of a word or longer number; a sign is no operator after a term
    r"(?:(\d+) (?=\d+\s?/\s?\d))?"  # of a mixed number, which goes on with a fraction
    r"((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\.)\.\d+)"
    r"([eE][+-]?\d+)?(\s?/\s?\d+(?!\.?\d))?"
)
"""1,234.5 or -3 or .5 or 2e-3 or 3/4 or 1 3/4, with or without a sign of a currency."""
MOST_DIGITS = 300
"""Of whole numbers that are compared exactly; longer ones are floats."""
LATEX = (
    (re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"(\d)\s*\\frac\{(\d+)\}\{(\d+)\}"), r"\1 \2/\3"),
    # Only what means the same without braces: no sum above, no product below, no factor before.
    (re.compile(r"(?<![\w)}])(?<![\w)}]\s)\\frac\{(-?[\w.\\]+)\}\{([\d.]+|\\?[A-Za-z]|\\[A-Za-z]+)\}"), r"\1/\2"),
    (re.compile(r"\\left|\\right|\\[!,;: ]|\\\$|\$|\\%|%|(?<!\d)\s+|\s+(?!\s|\d+\s*/\s*\d)"), ""),
)


def exact(column: str = "answer", *, ignore_case: bool = False) -> Callable[..., Scores]:
    """The completion is the row's answer but for space around it."""
    return _by_column("exact", column, lambda text, answer: _plain(text, ignore_case) == _plain(answer, ignore_case))


def number(column: str = "answer", *, tolerance: float = 1e-6, relative: float = 0.0) -> Callable[..., Scores]:
    """The last number of the completion is the last number of the row's answer ("... #### 72" for instance).

    Args:
        column: of the answer, a number or a text with one.
        tolerance: largest difference, in the answer's unit.
        relative: or largest difference by the answer.

    Raises:
        ValueError: a tolerance below 0; later, an answer without a number.
    """
    for name, value in {"tolerance": tolerance, "relative": relative}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number of 0 or more, received {value!r}")

    def right(text: str, answer: Any) -> bool:
        wanted, found = last_number(str(answer)), last_number(text)
        if wanted is None or not math.isfinite(wanted):
            raise ValueError(f"{column}: expected a number, or a text with one, received {answer!r:.80}")
        whole = isinstance(wanted, int) and isinstance(found, int)
        most = max(tolerance, relative * abs(wanted)) + (0 if whole else 4 * math.ulp(wanted))  # 3.1 is within 0.1 of 3
        return found is not None and abs(found - wanted) <= most

    return _by_column("number", column, right)


def boxed(column: str = "answer") -> Callable[..., Scores]:
    r"""The content of the completion's last ``\boxed{...}`` is the row's answer, boxed or bare.

    Compared without space and LaTeX's layout, and as numbers where both are one (``\frac{1}{2}`` and 0.5). Not by
    algebra: pass a checker of expressions to `judge` for that.
    """

    def right(text: str, answer: Any) -> bool:
        found, wanted = last_boxed(text), last_boxed(str(answer))
        if found is None:
            return False
        one, other = _without_layout(found), _without_layout(str(answer) if wanted is None else wanted)
        whole = [NUMBER.fullmatch(each) and last_number(each) for each in (one, other)]
        return one == other or (None not in whole and whole[0] == whole[1])

    return _by_column("boxed", column, right)


def regex(pattern: str, *, column: str | None = None) -> Callable[..., Scores]:
    """The pattern occurs in the completion; with ``column``, its last match's first group (or all) is the answer.

    Raises:
        ValueError: not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except (re.error, TypeError) as fault:
        raise ValueError(f"pattern: expected a regular expression, received {pattern!r} ({fault})") from fault
    if column is None:
        return _named("regex", lambda completions: [float(bool(compiled.search(text))) for text in completions])

    def right(text: str, answer: Any) -> bool:
        matches = list(compiled.finditer(text))
        return bool(matches) and _plain(matches[-1][min(1, compiled.groups)]) == _plain(answer)

    return _by_column("regex", column, right)


def format(tags: Sequence[str] = ("think", "answer")) -> Callable[..., Scores]:
    """The completion is ``<think>...</think><answer>...</answer>``: each tag once, in order, nothing but space outside.

    A first tag that the prompt's end has opened counts.

    Raises:
        ValueError: no tag.
    """
    if not tags or isinstance(tags, str):
        raise ValueError(f"tags: expected a list of names, one at least, received {tags!r}")
    no_tag = rf"(?:(?!</?(?:{'|'.join(map(re.escape, tags))})>).)*"
    parts = [f"<{re.escape(tag)}>{no_tag}</{re.escape(tag)}>" for tag in tags]
    whole, opening = re.compile(r"\s*".join(["", *parts, ""]), re.DOTALL), f"<{tags[0]}>"

    def score(prompts: list[str], completions: list[str]) -> Scores:
        opened = (opening if prompt.rstrip().endswith(opening) else "" for prompt in prompts)
        return [float(bool(whole.fullmatch(a + text))) for a, text in zip(opened, completions, strict=True)]

    return _named("format", score)


def length(unit: Literal["tokens", "words", "characters"] = "tokens", *, beyond: int = 0) -> Callable[..., Scores]:
    """How many units of the completion are ``beyond`` so many: a price, with a negative weight.

    An end of text is a token.

    Raises:
        ValueError: another unit, or ``beyond`` below 0.
    """
    if unit not in ("tokens", "words", "characters") or beyond < 0:
        raise ValueError(f"expected unit tokens, words or characters and beyond >= 0, received {unit!r} and {beyond!r}")

    def score(completions: list[str], completion_ids: list[list[int]]) -> Scores:
        words = map(str.split, completions)
        each = {"tokens": completion_ids, "words": words, "characters": completions}[unit]
        return [float(max(0, len(parts) - beyond)) for parts in each]  # type: ignore[arg-type]

    return _named("length", score)


def judge(ask: Callable[..., Any], *, at_once: int = 16) -> Callable[..., Any]:
    """What ``ask(prompt, completion, **columns)`` returns for each text: a number, or None where it does not apply.

    Args:
        ask: plain (it runs in threads) or a coroutine function; its further parameters are named as columns are.
        at_once: texts in progress at a time.
    """

    async def score(prompts: list[str], completions: list[str], **columns: list[Any]) -> Scores:
        limit = asyncio.Semaphore(at_once)

        async def one(*row: Any) -> float | None:
            async with limit:
                answer = await asyncio.to_thread(ask, *row[:2], **dict(zip(columns, row[2:], strict=True)))
                return await answer if inspect.iscoroutine(answer) else answer

        return await asyncio.gather(*map(one, prompts, completions, *columns.values()))

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("prompts", "completions")]
    for each in list(inspect.signature(ask).parameters.values())[2:]:
        parameters.append(each if each.kind is each.VAR_KEYWORD else each.replace(kind=each.KEYWORD_ONLY))
    return _named(str(getattr(ask, "__name__", type(ask).__name__)), score, inspect.Signature(parameters))


def threaded(scorer: Any) -> Any:
    """Let a slow scorer that is no coroutine function run in a thread, beside the others. Returns it."""
    scorer.threaded = True
    return scorer


READY: dict[str, Callable[..., Callable[..., Scores]]] = {
    each.__name__: each for each in (exact, number, boxed, regex, format, length)
}
"""By the names that ``--reward`` takes."""


def is_ready(given: str) -> bool:
    """Whether a text begins with the name of a ready reward: "number", or "number(tolerance=0.01)"."""
    return given.partition("(")[0].strip() in READY


def by_name(given: str) -> Callable[..., Scores]:
    """The ready reward that a text names, with settings in brackets, as Python writes them.

    Raises:
        ValueError: none of that name, or settings that it does not take.
    """
    name, bracket, _ = given.partition("(")
    if name.strip() not in READY:
        near = get_close_matches(name, READY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(READY)}"
        raise ValueError(f"no ready reward is called {given!r}: {hint}")
    try:
        call: Any = ast.parse(given.strip() if bracket else f"{given}()", mode="eval").body
        named = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
        return READY[name.strip()](*map(ast.literal_eval, call.args), **named)
    except (SyntaxError, ValueError, TypeError, AttributeError) as fault:
        raise ValueError(f"{given}: expected settings of {name}{inspect.signature(READY[name])} ({fault})") from fault


def last_number(text: str) -> float | None:
    """The last number in a text, an int if it is written as one; None if it has none."""
    found: float | None = None
    for match in NUMBER.finditer(_as_typed(text)):
        digits, exponent, divisor = match[2].replace(",", ""), match[3] or "", match[4]
        below = float(divisor.strip(" /")) if divisor else 1.0
        if below:
            value = float(match[1] or 0) + float(digits + exponent) / below
            if not divisor and digits.isdigit() and not exponent and len(digits) <= MOST_DIGITS:
                value = int(digits)
            found = -value if match[0].startswith("-") else value
    return found


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, in which braces may be nested; None without a whole one."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            escaped = end > start and text[end - 1] == "\\"
            depth += 0 if escaped else {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end]
    return None


def _as_typed(text: str) -> str:
    """With the keyboard's minus, and without LaTeX's space around the comma of thousands."""
    return text.replace("−", "-").replace("{,}", ",").replace(",\\!", ",")


def _without_layout(text: str) -> str:
    text = _as_typed(text)
    for pattern, replacement in LATEX:
        text = pattern.sub(replacement, text)
    return text.rstrip(".")


def _plain(value: Any, ignore_case: bool = False) -> str:
    text = str(value).strip()
    return text.casefold() if ignore_case else text


def _by_column(name: str, column: str, right: Callable[[str, Any], bool]) -> Callable[..., Scores]:
    """A scorer that asks for completions and a column, and skips rows without it."""

    def score(completions: list[str], **columns: list[Any]) -> Scores:
        scores: Scores = []
        for text, answer in zip(completions, columns[column], strict=True):
            answers = answer if isinstance(answer, list | tuple) else [answer]
            for each in [] if answer is None else answers:
                if isinstance(each, bool | Mapping | list | tuple) or each is None:  # as text: True, {'a': 1}
                    raise ValueError(f"{column}: expected text or a number, or a list of them, received {each!r:.80}")
            scores.append(None if answer is None else float(any(right(text, each) for each in answers)))
        return scores

    kind = inspect.Parameter.KEYWORD_ONLY
    return _named(name, score, inspect.Signature([inspect.Parameter(each, kind) for each in ("completions", column)]))


def _named(name: str, score: Callable[..., Any], signature: inspect.Signature | None = None) -> Callable[..., Any]:
    """``score`` under a name for metrics, and with what it asks for."""
    score.__name__ = name
    if signature is not None:
        vars(score)["__signature__"] = signature
    return score
