"""The prompts of a text run, for training and held out, and what encodes them: a tokenizer or its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from agents.recipes.rlhf.task import TextTask
from reward_models.data.movie_reviews import movie_review_splits, openings
from textenvs.tokens.prompts import Prompts, load_prompts
from textenvs.tokens.row_files import hold_out, left_over
from textenvs.wrappers.chat_prompts import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENING_WORDS = (2, 6)
NUM_OPENINGS = 4000

PromptReader: TypeAlias = "PreTrainedTokenizerBase | ChatTemplate"
PromptSet: TypeAlias = Sequence[str] | Sequence[list[int]] | Prompts


def prompt_reader(task: TextTask, tokenizer: PreTrainedTokenizerBase) -> PromptReader:
    """What turns prompts into token ids: the tokenizer, or its chat template around it; ValueError if a chat template
    is asked for and there is none."""
    if task.chat_template or getattr(tokenizer, "chat_template", None):
        return ChatTemplate(tokenizer, wrap=task.chat_template)
    return tokenizer


def prompt_sets(task: TextTask, reader: PromptReader) -> tuple[PromptSet, PromptSet]:
    """Training prompts and evaluation prompts, as ``reader`` of `prompt_reader` reads them: of the task's files, or
    openings of movie reviews; ValueError if a file holds too few."""
    if task.rows is None:
        splits = movie_review_splits()
        counts = ((splits.prompt_train, NUM_OPENINGS), (splits.prompt_test, task.num_eval_rows))
        train, held_out = (openings(part, num_words=OPENING_WORDS, count=count, seed=0) for part, count in counts)
        if task.chat_template:
            return tuple([reader(text)["input_ids"] for text in part] for part in (train, held_out))  # type: ignore[return-value]
        return train, held_out
    prompts = _read(task.rows, task, reader)
    if task.eval_rows is not None:
        judged = _read(task.eval_rows, task, reader)[: task.num_eval_rows]
        keys = [{key} for key in prompts.identities]
        return prompts[left_over(keys, set(judged.identities), task.eval_rows)], judged
    try:
        numbers, others = hold_out(prompts.identities, min(task.num_eval_rows, max(1, len(prompts) // 10)))
    except ValueError as fault:
        raise ValueError(f"{task.rows}: {fault}; or pass --eval-rows") from fault
    return prompts[numbers], prompts[others][: task.num_eval_rows]


def _read(source: str, task: TextTask, reader: PromptReader) -> Prompts:
    most = task.max_prompt_tokens
    limit = most if task.too_long == "refuse" else None
    prompts = load_prompts(source, reader, vocab_size=len(reader), max_tokens=limit)
    fitting = [number for number, length in enumerate(prompts.lengths) if most is None or length <= most]
    if most is None or len(fitting) == len(prompts):
        return prompts
    if not fitting and task.too_long == "skip":
        raise ValueError(f"{source}: every prompt is longer than max_prompt_tokens {most}: allow more")
    print(f"{source}: {len(prompts) - len(fitting)} prompts longer than {most} tokens: too_long {task.too_long}")
    return prompts[fitting] if task.too_long == "skip" else prompts.cut(most)
