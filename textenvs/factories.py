"""Factories of the registered ids: the token environment in the preference reward in the KL shaping."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from gymnasium.vector import AutoresetMode

from textenvs.dialogues.sub_environments import EnvSource
from textenvs.dialogues.tools import CheckedRows, ToolEnv
from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.scalar import TokenEnv
from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.end_of_text import end_of_text
from textenvs.tokens.end_tokens import EndOfText
from textenvs.tokens.prompts import PromptSource
from textenvs.tokens.tokenizers import Tokenizer, load_tokenizer
from textenvs.wrappers.interfaces import Acting, ReferenceSource, Scorer
from textenvs.wrappers.kl_shaping import KLShaping, as_reference
from textenvs.wrappers.preference import UNCERTAINTY_COEF, PreferenceReward


def text_generation_vec(
    num_envs: int = 1,
    *,
    rows: PromptSource | None = None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    reference: ReferenceSource | None = None,
    eos_token_id: EndOfText = None,
    max_new_tokens: int = 24,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/TextGeneration-v0", ...)``: text generation with the caller's own parts.

    Args:
        num_envs: sub-environments.
        rows: what is written after, with the columns that scorers and ``info`` get: a file or data set, a list of
            dicts or of prompts, a ``datasets.Dataset``; see `textenvs.tokens.prompts.load_prompts`.
        tokenizer: a tokenizer, its directory or name. None: the reference's, if it has one; else bare token ids.
        reference: see `KLShaping`. Without one there is no penalty.
        eos_token_id: the token that ends an episode, or several. None: those of the reference (see
            `textenvs.tokens.end_of_text`), or the tokenizer's if that is no causal LM.
        max_new_tokens: budget of an episode, tokens. Default: Ziegler et al. 2019.
        autoreset_mode: see `TokenVectorEnv`.
        **options: of `TokenVectorEnv` (vocab_size, max_prompt_tokens, shuffle, group_size, budget), of
            `PreferenceReward` (scorer, combine, weights, uncertainty_coef; without a scorer there is no score), and of
            `KLShaping` (beta, reward units per nat, 0.15 as in Ziegler et al. 2019, arXiv:1909.08593, unless the preset
            of an agent suggests another; acting; charge).

    Raises:
        ValueError: invalid or conflicting parts; see their classes.
    """
    check_options(options, text_generation_vec, wrapped, TokenVectorEnv)
    if rows is None:
        raise ValueError("rows: expected a list of rows or of prompts, a data set or the path of a file, received none")
    reader, reference, eos = tokens_of(tokenizer, reference, eos_token_id)
    shaping = taken(options, wrapped)
    options |= {"max_new_tokens": max_new_tokens, "autoreset_mode": autoreset_mode}
    envs = TokenVectorEnv(num_envs, prompts=rows, tokenizer=reader, eos_token_id=eos, **options)
    return wrapped(envs, reference=reference, **shaping)


def tokens_of(
    tokenizer: Tokenizer | str | os.PathLike[str] | None, reference: ReferenceSource | None, eos_token_id: EndOfText
) -> tuple[Tokenizer | None, Any, EndOfText]:
    """Tokenizer, reference and end tokens; what is None comes from the others, as in `text_generation_vec`."""
    if tokenizer is None:
        tokenizer = reference if isinstance(reference, str | os.PathLike) else getattr(reference, "tokenizer", None)
    reader = load_tokenizer(tokenizer) if isinstance(tokenizer, str | os.PathLike) else tokenizer
    if reference is not None:
        reference = as_reference(reference)
    if eos_token_id is None:
        model = getattr(reference, "model", None)
        eos_token_id = getattr(reader, "eos_token_id", None) if model is None else end_of_text(model, reader)
    return reader, reference, eos_token_id


def wrapped(
    envs: TokenVectorBase,
    *,
    scorer: Scorer | Sequence[Scorer] | None = None,
    reference: ReferenceSource | None = None,
    beta: float | None = None,
    acting: Acting | None = None,
    charge: bool = True,
    combine: str = "mean",
    weights: Sequence[float] | None = None,
    uncertainty_coef: float = UNCERTAINTY_COEF,
) -> TokenVectorBase | TokenVectorWrapper:
    """``envs`` in the wrappers that ``scorer`` and ``reference`` ask for; see their classes.

    Raises:
        ValueError: an option of one of them without it.
    """
    usual = {name: each.default for name, each in inspect.signature(wrapped).parameters.items()}
    scoring = {"combine": combine, "weights": weights, "uncertainty_coef": uncertainty_coef}
    shaping = {"beta": beta, "acting": acting, "charge": charge}
    for owner, part, given in (("scorer", scorer, scoring), ("reference", reference, shaping)):
        unread = [name for name, each in given.items() if type(each) is not type(usual[name]) or each != usual[name]]
        if part is None and unread:
            raise ValueError(f"{', '.join(unread)}: expected a {owner} beside it, received none")
    shaped: TokenVectorBase | TokenVectorWrapper = envs
    if scorer is not None:
        shaped = PreferenceReward(shaped, scorer, combine=combine, weights=weights, uncertainty_coef=uncertainty_coef)
    return shaped if reference is None else KLShaping(shaped, reference, beta, acting=acting, charge=charge)


def check_options(options: dict[str, Any], *takers: Callable[..., Any]) -> None:
    """Raise ValueError for a name that is a parameter of none of ``takers``; the nearest is in the message."""
    known = [name for taker in takers for name in inspect.signature(taker).parameters if name != "prompts"]
    for name in options:
        if name not in known:
            near = ["rows"] if name == "prompts" else get_close_matches(name, known, n=1)
            raise ValueError(
                f"{name!r} is no option of this environment{f'; did you mean {near[0]!r}?' if near else ''}"
            )


def taken(options: dict[str, Any], taker: Callable[..., Any]) -> dict[str, Any]:
    """Those of ``options`` that ``taker`` has a parameter for, removed from there."""
    return {name: options.pop(name) for name in list(options) if name in inspect.signature(taker).parameters}


def scalar(build: Callable[..., TokenVectorBase | TokenVectorWrapper], **options: Any) -> TokenEnv:
    """Build one sub-environment with ``build`` and view it as a scalar environment; ValueError for an option that only
    several have."""
    for name in options.keys() & {"num_envs", "autoreset_mode"}:
        raise ValueError(f"{name}: gym.make makes a single environment, which has none: call gym.make_vec")
    return TokenEnv(build(1, autoreset_mode=AutoresetMode.DISABLED, **options))


def dialogue_vec(
    num_envs: int = 1,
    *,
    env: EnvSource | None = None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    reference: ReferenceSource | None = None,
    eos_token_id: EndOfText = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/Dialogue-v0", env=..., ...)``: dialogues with an environment over strings.

    Args:
        num_envs: sub-environments.
        env: an id, or a class or function that makes the environment; see `DialogueVectorEnv`. With options of
            `ToolEnv` (tools, rows, reward, parse, error_reward, time_limit, system): none, or its ``task``.
        tokenizer, reference, eos_token_id, autoreset_mode: as in `text_generation_vec`.
        **options: of `DialogueVectorEnv` (max_turns, max_turn_tokens, max_tokens, chat, threads, processes, group_size,
            budget, vocab_size), and of `text_generation_vec`: scorer, combine, weights, uncertainty_coef, of whole
            dialogues, added to the environment's rewards; beta, acting, charge.

    Raises:
        ValueError: invalid or conflicting parts; see their classes.
    """
    check_options(options, DialogueVectorEnv, wrapped, ToolEnv)
    if of_tools := taken(options, ToolEnv):
        if isinstance(env, str) or hasattr(env, "step"):
            raise ValueError(
                f"{', '.join(of_tools)}: expected no env, or a class with reset and without step, received {env!r:.200}"
            )
        of_tools = {"task": env} | of_tools
        if of_tools.get("rows") is not None:  # read and checked once, not by each environment
            of_tools["rows"] = CheckedRows(of_tools["rows"], needs_prompt=of_tools["task"] is None)
        env = partial(ToolEnv, **of_tools)
    elif isinstance(env, type) and hasattr(env, "reset") and not hasattr(env, "step"):
        env = partial(ToolEnv, task=env)
    if env is None:
        raise ValueError("env: expected an environment's id, or a class or function that makes one, received none")
    reader, reference, eos = tokens_of(tokenizer, reference, eos_token_id)
    shaping = taken(options, wrapped)
    options |= {"autoreset_mode": autoreset_mode}
    envs = DialogueVectorEnv(num_envs, env=env, tokenizer=reader, eos_token_id=eos, **options)
    return wrapped(envs, reference=reference, **shaping)


text_generation, dialogue = partial(scalar, text_generation_vec), partial(scalar, dialogue_vec)
"""Entry points of ``gym.make``."""
