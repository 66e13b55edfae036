"""What the registered ids build: the token environment, the preference reward around it, the KL shaping around that."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from gymnasium.vector import AutoresetMode

from textenvs.envs.scalar import TokenEnv
from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.prompts import PromptSource
from textenvs.tokens.tokenizers import load_tokenizer
from textenvs.wrappers.interfaces import Acting
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward


def text_generation_vec(
    num_envs: int = 1,
    *,
    prompts: PromptSource,
    tokenizer: Any = None,
    scorer: Any = None,
    combine: str = "mean",
    weights: Sequence[float] | None = None,
    uncertainty_coef: float = 0.1,
    reference: Any = None,
    beta: float = 0.15,
    acting: Acting | None = None,
    charge: bool = True,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
    max_new_tokens: int = 24,
    max_prompt_tokens: int | None = None,
    shuffle: bool = True,
    group_size: int = 1,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    budget: str = "terminate",
) -> TokenVectorEnv | TokenVectorWrapper:
    """``gym.make_vec("textenvs/TextGeneration-v0", ...)``: text generation with parts of the caller's own.

    Args:
        num_envs: sub-environments.
        prompts: list of strings or of token ids, path of a text or JSONL file; see
        `textenvs.tokens.prompts.load_prompts`.
        tokenizer: a `transformers` tokenizer, or its directory or name. None: the reference's, if that is a directory
            or name; else bare token ids.
        scorer: one or a list, see `PreferenceReward`; None pays nothing.
        combine: how several scorers become one, "mean", "worst" or "uncertainty"; see `PreferenceReward`.
        weights: of the scorers listed, in a mixture; see `PreferenceReward`.
        uncertainty_coef: see `PreferenceReward`.
        reference: see `KLShaping`; None shapes nothing.
        beta: price of the KL, reward units per nat. Default: Ziegler et al. 2019 (arXiv:1909.08593).
        acting: see `KLShaping`.
        charge: whether rewards pay the KL's price; see `KLShaping`.
        eos_token_id: the token that ends an episode. None: the tokenizer's, if there is one.
        vocab_size: number of token ids; the tokenizer's length when None.
        max_new_tokens: budget of an episode, tokens. Default: Ziegler et al. 2019.
        max_prompt_tokens: longest prompt allowed, tokens; any when None.
        shuffle: whether the prompts' order is shuffled each epoch.
        group_size: sub-environments in a row that share a prompt; see `TokenVectorEnv`.
        autoreset_mode: see `TokenVectorEnv`.
        budget: "terminate" or "truncate"; see `TokenVectorEnv`.

    Raises:
        ValueError: parts that are wrong or do not belong together; see there.
    """
    if tokenizer is None and isinstance(reference, str | os.PathLike):
        tokenizer = load_tokenizer(reference)
    elif tokenizer is None:
        tokenizer = getattr(reference, "tokenizer", None)
    elif isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer)
    if eos_token_id is None:
        eos_token_id = getattr(tokenizer, "eos_token_id", None)
    envs: TokenVectorEnv | TokenVectorWrapper = TokenVectorEnv(
        num_envs,
        prompts=prompts,
        tokenizer=tokenizer,
        eos_token_id=eos_token_id,
        vocab_size=vocab_size,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        shuffle=shuffle,
        group_size=group_size,
        autoreset_mode=autoreset_mode,
        budget=budget,
    )
    if scorer is not None:
        envs = PreferenceReward(envs, scorer, combine=combine, weights=weights, uncertainty_coef=uncertainty_coef)
    if reference is not None:
        envs = KLShaping(envs, reference, beta, acting=acting, charge=charge)
    return envs


def text_generation(**options: Any) -> TokenEnv:
    """``gym.make("textenvs/TextGeneration-v0", ...)``: `text_generation_vec` as one scalar environment."""
    return scalar(text_generation_vec, **options)


def scalar(build: Callable[..., TokenVectorEnv | TokenVectorWrapper], **options: Any) -> TokenEnv:
    """Build one sub-environment with ``build`` and view it as a scalar environment."""
    return TokenEnv(build(1, autoreset_mode=AutoresetMode.DISABLED, **options))
