"""The policy of a text agent, from what a user hands over."""

from __future__ import annotations

import copy
import os
from typing import Any, Union

import torch
from torch import nn

from agents.algorithms.options import TextOptions
from agents.algorithms.token_environments import TokenVectorLike
from agents.interfaces import check_memoryless
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.loading import autocast_of
from agents.lm.lora import AdaptedTrunk
from agents.text.collector import kl_shaping_of
from agents.text.config import TextAgentConfig
from textenvs.envs.base import TokenVectorBase
from textenvs.lm.loading import load_causal_lm
from textenvs.tokens.rows import PAD
from textenvs.tokens.tokenizers import load_tokenizer, same_tokenizer

PolicyLike = Union[str, "os.PathLike[str]", nn.Module]
"""A directory or name, or a module: a transformers model, a ``CausalLMPolicy`` or one that implements the protocol."""

PROTOCOL = ("act", "evaluate")


def build_policy(
    envs: TokenVectorLike, policy: PolicyLike | None, config: TextAgentConfig, options: TextOptions
) -> Any:  # a module with the members of `agents.text.stepwise.TextPolicy`
    """A module that acts in ``envs`` and has a critic if the algorithm uses one.

    Args:
        envs: says vocabulary, end of text, and (for ``policy`` None) the language model.
        policy: see ``agents.algorithms.text.TextAlgorithm``.
        config: of the algorithm.
        options: critic, sampling, adapters and number type of a policy that is built here.

    Raises:
        ValueError: if no policy can be known, or it cannot act in ``envs``.
    """
    base = _base(envs)
    if isinstance(policy, nn.Module) and all(hasattr(policy, name) for name in PROTOCOL):
        if not isinstance(policy, CausalLMPolicy):
            rows = torch.full((2, *(envs.single_observation_space.shape or ())), PAD)
            rows[:, 0] = 0
            check_memoryless(policy, rows)
        return policy
    model: Any = _causal_lm(envs, base, policy)
    model = model.to(config.device).float().requires_grad_(True)
    critic = options.critic or ("shared" if config.uses_critic else "none")
    adapters = None if options.lora is None else AdaptedTrunk(model, options.lora, value=critic == "adapter")
    return CausalLMPolicy(
        model, eos_token_id=base.eos_token_id, critic=critic, sampling=options.sampling, adapters=adapters,
        autocast=autocast_of(options.dtype, config.device), recompute=options.gradient_checkpointing,
    )  # fmt: skip


def starting_policy(envs: TokenVectorLike) -> CausalLMPolicy:
    """The environment's reference as a policy, for the exact KL to it; ValueError if the environment's reference is no
    causal LM of transformers."""
    model = _reference_model(envs)
    if model is None:
        raise ValueError('kl_estimator "full" needs an environment whose KLShaping has a causal LM as its reference')
    return CausalLMPolicy(model, eos_token_id=_base(envs).eos_token_id, critic="none")


def _base(envs: TokenVectorLike) -> TokenVectorBase:
    base = envs.unwrapped
    assert isinstance(base, TokenVectorBase)
    return base


def _reference_model(envs: TokenVectorLike) -> Any:
    shaping = kl_shaping_of(envs)
    reference = None if shaping is None else shaping.reference
    return getattr(reference, "model", None)


def _causal_lm(envs: TokenVectorLike, base: TokenVectorBase, policy: PolicyLike | None) -> Any:
    if policy is None:
        model = _reference_model(envs)
        if model is None:
            raise ValueError(
                "policy: this environment names no language model (it has no KLShaping with one): pass policy= a "
                'directory or name, a transformers model, a CausalLMPolicy or a module; "MlpPolicy" trains small '
                "networks on token ids"
            )
        return copy.deepcopy(model)
    if isinstance(policy, str | os.PathLike):
        tokenizer = load_tokenizer(policy)
        if base.tokenizer is not None and not same_tokenizer(tokenizer, base.tokenizer):
            raise ValueError(f"policy: the tokenizer beside {os.fspath(policy)} is not the environment's")
        return load_causal_lm(policy)
    if hasattr(policy, "get_output_embeddings"):
        return policy
    missing = [name for name in PROTOCOL if not hasattr(policy, name)]
    raise ValueError(
        f"policy: expected a directory or name, a transformers model, a CausalLMPolicy, or a module with "
        f"{' and '.join(PROTOCOL)}; received {type(policy).__name__}, which lacks {' and '.join(missing)}"
    )
