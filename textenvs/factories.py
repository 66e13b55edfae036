"""Factories of the registered ids: the token environment in the preference reward in the KL shaping."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from gymnasium.vector import AutoresetMode

from textenvs.envs.scalar import TokenEnv
from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.end_of_text import end_of_text
from textenvs.tokens.end_tokens import EndOfText
from textenvs.tokens.prompts import PromptSource
from textenvs.tokens.tokenizers import Tokenizer, load_tokenizer
from textenvs.wrappers.interfaces import Acting, ReferenceSource, Scorer
from textenvs.wrappers.kl_shaping import KLShaping, as_reference
from textenvs.wrappers.preference import PreferenceReward


def text_generation_vec(
    num_envs: int = 1,
    *,
    rows: PromptSource | None = None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    scorer: Scorer | Sequence[Scorer] | None = None,
    combine: str = "mean",
    weights: Sequence[float] | None = None,
    uncertainty_coef: float = 0.1,
    reference: ReferenceSource | None = None,
    beta: float = 0.15,
    acting: Acting | None = None,
    charge: bool = True,
    eos_token_id: EndOfText = None,
    max_new_tokens: int = 24,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    **options: Any,
) -> TokenVectorEnv | TokenVectorWrapper:
    """``gym.make_vec("textenvs/TextGeneration-v0", ...)``: text generation with the caller's own parts.

    Args:
        num_envs: sub-environments.
        rows: what is written after, with the columns that scorers and ``info`` get: a file or data set, a list of
            dicts or of prompts, a ``datasets.Dataset``; see `textenvs.tokens.prompts.load_prompts`.
        tokenizer: a tokenizer, its directory or name. None: the reference's, if it has one; else bare token ids.
        scorer, combine, weights, uncertainty_coef: see `PreferenceReward`. Without a scorer there is no score.
        reference, acting, charge: see `KLShaping`. Without a reference there is no penalty.
        beta: KL coefficient, reward units per nat. Default: Ziegler et al. 2019 (arXiv:1909.08593).
        eos_token_id: the token that ends an episode, or several. None: those of the reference (see
            `textenvs.tokens.end_of_text`), or the tokenizer's if that is no causal LM.
        max_new_tokens: budget of an episode, tokens. Default: Ziegler et al. 2019.
        autoreset_mode: see `TokenVectorEnv`.
        **options: of `TokenVectorEnv`: vocab_size, max_prompt_tokens, shuffle, group_size, budget.

    Raises:
        ValueError: invalid or conflicting parts; see their classes.
    """
    check_options(options, text_generation_vec, TokenVectorEnv)
    if rows is None:
        raise ValueError("rows: expected a list of rows or of prompts, a data set or the path of a file, received none")
    if tokenizer is None:
        tokenizer = reference if isinstance(reference, str | os.PathLike) else getattr(reference, "tokenizer", None)
    reader = load_tokenizer(tokenizer) if isinstance(tokenizer, str | os.PathLike) else tokenizer
    if reference is not None:
        reference = as_reference(reference)
    eos = eos_token_id
    if eos is None:
        model = getattr(reference, "model", None)
        eos = getattr(reader, "eos_token_id", None) if model is None else end_of_text(model, reader)
    options |= {"max_new_tokens": max_new_tokens, "autoreset_mode": autoreset_mode}
    envs: TokenVectorEnv | TokenVectorWrapper
    envs = TokenVectorEnv(num_envs, prompts=rows, tokenizer=reader, eos_token_id=eos, **options)
    if scorer is not None:
        envs = PreferenceReward(envs, scorer, combine=combine, weights=weights, uncertainty_coef=uncertainty_coef)
    if reference is not None:
        envs = KLShaping(envs, reference, beta, acting=acting, charge=charge)
    return envs


def check_options(options: dict[str, Any], *takers: Callable[..., Any]) -> None:
    """Raise ValueError for a name that is a parameter of none of ``takers``; the nearest is in the message."""
    known = [name for taker in takers for name in inspect.signature(taker).parameters if name != "prompts"]
    for name in options:
        if name not in known:
            near = ["rows"] if name == "prompts" else get_close_matches(name, known, n=1)
            raise ValueError(
                f"{name!r} is no option of this environment{f'; did you mean {near[0]!r}?' if near else ''}"
            )


def text_generation(**options: Any) -> TokenEnv:
    """``gym.make("textenvs/TextGeneration-v0", ...)``: `text_generation_vec` as one scalar environment."""
    return scalar(text_generation_vec, **options)


def scalar(build: Callable[..., TokenVectorEnv | TokenVectorWrapper], **options: Any) -> TokenEnv:
    """Build one sub-environment with ``build`` and view it as a scalar environment."""
    return TokenEnv(build(1, autoreset_mode=AutoresetMode.DISABLED, **options))
