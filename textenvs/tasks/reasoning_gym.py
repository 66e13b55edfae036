"""``textenvs/ReasoningGym-v0``: questions that reasoning-gym makes, and its own verdict on the answers."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from textenvs.envs.base import TokenVectorBase, check_whole
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.factories import scalar, text_generation_vec, tokens_of
from textenvs.tasks.extras import OwnRandomness, as_settings, check_name, load, refuse_own
from textenvs.tokens.end_tokens import EndOfText
from textenvs.tokens.row_files import at
from textenvs.tokens.tokenizers import Tokenizer
from textenvs.wrappers.interfaces import ReferenceSource

HELD_OUT = 2**30
"""Between the seeds of training and of held-out questions: question i has seed + i, so near seeds share questions."""
RUNS_ANSWERS = {
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24"),
    *("simple_integration", "spiral_matrix", "string_insertion"),
}
"""Tasks of reasoning-gym 0.1.25 whose verdict evaluates the answer as code: of Python, or through SymPy's parser."""
HASH_ORDERED = {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
"""Tasks of 0.1.25 whose questions also follow from the order of sets of strings, that is from ``PYTHONHASHSEED``."""
READERS: dict[str, Callable[[str], str | None]] = {
    "text": str.strip,
    "tags": lambda text: _last(r"(?s)<answer>((?:(?!<answer>).)*)</answer>", text),
    "line": lambda text: _last(r"(?i)\banswer\s*:(.*)", text),
}
"""Where an answer stands: the whole text; the last ``<answer>...</answer>``; the line behind the last "answer:"."""


def dataset(
    task: str, *, size: int = 1000, seed: int = 0, level: int | None = None, settings: Mapping[str, Any] | None = None
) -> Any:
    """A data set of reasoning-gym: ``len``, items by number, ``score_answer(answer, item)``.

    Args:
        task: its name there, "chain_sum" for instance.
        size: questions.
        seed: question i depends on seed + i.
        level: of the task's curriculum, from 0, the easiest; an attribute with fewer levels stays at its last.
        settings: of the task's own configuration, over those of the level.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: an unknown task or setting, with the nearest names; a value that the task refuses.
    """
    factory = load("reasoning_gym.factory", "reasoning-gym")
    check_name("task", task, factory.DATASETS)
    made, configuration = factory.DATASETS[task]
    own = as_settings("settings", settings)
    for name in own:
        check_name(f"settings of {task}", name, {each.name for each in fields(configuration)} - {"seed", "size"})
    check_whole(1, size=size)
    check_whole(0, seed=seed, level=0 if level is None else level)
    with at(f"task {task}"), OwnRandomness(seed).active():
        values: dict[str, Any] = {}
        if level is not None:
            if not factory.has_curriculum(task):
                raise ValueError(f"expected no level, since it has no curriculum, received {level!r}")
            curriculum = factory.create_curriculum(task)
            curriculum.set_global_level(level)
            values = vars(curriculum.generate_configuration())
        return made(configuration(**{**values, **own, "seed": seed, "size": size}))


def rows(
    task: str,
    *,
    size: int = 1000,
    seed: int = 0,
    held_out: int = 0,
    prompt: str = "{question}",
    chat: bool = False,
    **difficulty: Any,
) -> list[dict[str, Any]]:
    """Rows of a task: ``prompt`` (or ``messages``), ``answer`` (None where only a verdict exists) and ``_entry``.

    Args:
        task, size, seed: see `dataset`.
        held_out: 0 for the ``size`` questions to train on; else so many other ones, none of which is among those.
        prompt: with "{question}" in it.
        chat: write each as the user's turn of a chat.
        **difficulty: level and settings, of `dataset`.

    Raises:
        ImportError, ValueError: as `dataset`; a prompt without the question; a task with too few different questions.
    """
    if not isinstance(prompt, str) or "{question}" not in prompt:
        raise ValueError(f"prompt: expected a text with '{{question}}' in it, received {prompt!r}")
    check_whole(0, held_out=held_out, seed=seed)
    if seed >= HELD_OUT:
        raise ValueError(f"seed: expected a number below 2**30, received {seed!r}")
    if task in HASH_ORDERED and os.environ.get("PYTHONHASHSEED", "random") == "random":
        warnings.warn(f"{task}: other processes make other questions, unless all have one PYTHONHASHSEED", stacklevel=2)
    found = _questions(dataset(task, size=size, seed=seed, **difficulty), seed)
    if held_out:
        more = _questions(dataset(task, size=4 * held_out, seed=seed + HELD_OUT, **difficulty), seed + HELD_OUT)
        others = {entry["question"]: entry for entry in more}
        for entry in found:
            others.pop(entry["question"], None)
        found = list(others.values())[:held_out]
        if len(found) < held_out:
            raise ValueError(
                f"held_out: expected at least {held_out} of {len(more)} further questions of {task} to be new beside "
                f"{size} to train on, received {len(found)}: ask for fewer, or make the task harder"
            )
    texts = [prompt.replace("{question}", entry["question"]) for entry in found]
    written = [{"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text} for text in texts]
    return [text | {"answer": entry["answer"], "_entry": entry} for text, entry in zip(written, found, strict=True)]


def scorer(
    task: str, *, answer: str = "text", allow_eval: bool = False, partial_credit: bool = True, **difficulty: Any
) -> Callable[..., list[float]]:
    """A scorer by reasoning-gym's own ``score_answer``, in [0, 1], for rows with a column ``_entry``.

    A text on which that fails, or without an answer where it is looked for, is as good as none.

    Args:
        task: see `dataset`.
        answer: "text", "tags" or "line"; see `READERS`.
        allow_eval: take tasks of `RUNS_ANSWERS`: what a model writes there is run, and may take for ever.
        partial_credit: pay what the verdict gives for an answer that is nearly right, or has the right one in it, too;
            if False, everything below 1 is 0.
        **difficulty: level and settings, of `dataset`.

    Raises:
        ImportError, ValueError: as `dataset`; a task that runs answers, without ``allow_eval``.
    """
    check_name("answer", answer, READERS)
    for name, value in (("allow_eval", allow_eval), ("partial_credit", partial_credit)):
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected True or False, received {value!r}")
    judge = dataset(task, size=1, **difficulty)
    if task in RUNS_ANSWERS and not allow_eval:
        raise ValueError(
            f"task {task}: its verdict runs what the model wrote as code; expected allow_eval=True, received False"
        )
    read = READERS[answer]

    def score(completions: list[str], *, _entry: list[dict[str, Any]]) -> list[float]:
        with OwnRandomness(0).active():
            found = [_verdict(judge, read(text), each) for text, each in zip(completions, _entry, strict=True)]
        return found if partial_credit else [float(each == 1) for each in found]

    score.__name__ = task
    return score


def reasoning_gym_vec(
    num_envs: int = 1,
    *,
    task: str | None = None,
    size: int = 1000,
    seed: int = 0,
    held_out: int = 0,
    level: int | None = None,
    settings: Mapping[str, Any] | None = None,
    prompt: str = "{question}",
    answer: str = "text",
    allow_eval: bool = False,
    partial_credit: bool = True,
    chat: bool | None = None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    reference: ReferenceSource | None = None,
    eos_token_id: EndOfText = None,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/ReasoningGym-v0", task=..., ...)``: a task of reasoning-gym, paid by its own verdict.

    Arguments are those of `dataset`, `rows` and `scorer`, and, as ``options``, of `text_generation_vec`, whose
    ``scorer``, or several, is added behind the task's own; so are errors. ``chat`` writes questions in the tokenizer's
    chat template; None: if it has one.
    """
    if task is None:
        raise ValueError("task: expected the name of a data set of reasoning-gym, received none")
    refuse_own(options, "rows")
    difficulty = {"level": level, "settings": settings}
    verdict = scorer(task, answer=answer, allow_eval=allow_eval, partial_credit=partial_credit, **difficulty)
    reader, reference, eos = tokens_of(tokenizer, reference, eos_token_id)
    chat = bool(getattr(reader, "chat_template", None)) if chat is None else chat
    found = rows(task, size=size, seed=seed, held_out=held_out, prompt=prompt, chat=chat, **difficulty)
    more = options.pop("scorer", None) or ()
    scorers = [verdict, *(more if isinstance(more, list | tuple) else [more])]
    return text_generation_vec(
        num_envs, rows=found, tokenizer=reader, reference=reference, eos_token_id=eos, scorer=scorers, **options
    )


reasoning_gym = partial(scalar, reasoning_gym_vec)
"""``gym.make("textenvs/ReasoningGym-v0", ...)``."""


def _questions(source: Any, seed: int) -> list[dict[str, Any]]:
    with OwnRandomness(seed).active():
        return [source[number] for number in range(len(source))]


def _verdict(judge: Any, found: str | None, entry: dict[str, Any]) -> float:
    if not isinstance(entry, Mapping):
        raise ValueError(f"_entry: expected an item of the data set, as rows have it, received {entry!r:.80}")
    try:
        return float(judge.score_answer(found, entry))
    except Exception:  # of whatever kind: several data sets do not expect what models write
        return 0.0


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text)
    return found[-1].strip() if found else None
