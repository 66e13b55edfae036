"""The policy of a text agent, from what a user hands over."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, Union

import torch
from torch import nn

from agents.algorithms.options import TextOptions
from agents.algorithms.token_environments import TokenVectorLike
from agents.interfaces import check_memoryless
from agents.lm.branches import reads_branches
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.critic import start_critic_as_reward
from agents.lm.loading import autocast_of
from agents.lm.lora import AdaptedTrunk
from agents.lm.sampling import TokenSampling
from agents.text.collector import kl_shaping_of
from agents.text.config import Paper, TextAgentConfig
from agents.text.presets import REWARD_CRITIC, critic_starts_as_reward, described
from reward_models.model import RewardModel
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import found_in
from textenvs.lm.loading import load_causal_lm
from textenvs.lm.packed_forward import trunk_of
from textenvs.tokens.rows import PAD
from textenvs.tokens.tokenizers import load_tokenizer, same_tokenizer
from textenvs.wrappers.interfaces import Scorer
from textenvs.wrappers.preference import PreferenceReward

PolicyLike = Union[str, "os.PathLike[str]", nn.Module]
"""A directory or name, or a module: a transformers model, a ``CausalLMPolicy`` or one that implements the protocol."""

PROTOCOL = ("act", "evaluate")


def language_model(envs: TokenVectorLike, policy: PolicyLike | None) -> Any:
    """What ``policy`` is: a policy, which has the methods of ``PROTOCOL``, or a causal LM of transformers.

    Args:
        envs: says vocabulary, end of text, and (for ``policy`` None) the language model.
        policy: see ``agents.algorithms.text.TextAlgorithm``.

    Raises:
        ValueError: if no policy can be known.
    """
    return policy if _is_policy(policy) else _causal_lm(envs, _base(envs), policy)


def build_policy(
    envs: TokenVectorLike, model: Any, config: TextAgentConfig, options: TextOptions
) -> Any:  # a module with the members of `agents.text.stepwise.TextPolicy`
    """A module that acts in ``envs`` and has a critic if the algorithm uses one.

    Args:
        envs: says vocabulary and end of text, and has the reward model that a critic may start as.
        model: what ``language_model`` found.
        config: of the algorithm.
        options: critic, sampling, adapters and number type of a policy that is built here.

    Raises:
        ValueError: if it cannot act in ``envs``, or the critic cannot start as asked.
    """
    base, as_reward = _base(envs), options.critic_start == "reward-model"
    if _is_policy(model):
        if not isinstance(model, CausalLMPolicy):
            rows = torch.full((2, *(envs.single_observation_space.shape or ())), PAD)
            rows[:, 0] = 0
            check_memoryless(model, rows)
        return model
    model = model.to(config.device).float()
    if not any(parameter.requires_grad for parameter in model.parameters()):  # a part may be frozen on purpose
        model.requires_grad_(True)
    critic = options.critic or ("separate" if as_reward else "shared" if config.uses_critic else "none")
    adapters = None if options.lora is None else AdaptedTrunk(model, options.lora, value=critic == "adapter")
    policy = CausalLMPolicy(
        model, eos_token_id=base.eos_token_id, critic=critic, sampling=options.sampling, adapters=adapters,
        autocast=autocast_of(options.dtype, config.device), recompute=options.gradient_checkpointing,
    )  # fmt: skip
    if as_reward:
        scorers = scorers_of(envs)
        if not scorers or not isinstance(base, TokenVectorEnv):
            raise ValueError("critic_start reward-model: expected prompts with a reward model, received none")
        start_critic_as_reward(policy, base.tokenizer, scorers[0], base.prompts.row(0).tolist())
    return policy


def reward_critic(algorithm: Paper, envs: TokenVectorLike, model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """``REWARD_CRITIC`` where it is the preset in ``envs`` (see ``critic_starts_as_reward``), or else nothing.

    It is not where there are several scorers or a weight, a policy that was handed over whole, no causal LM as the
    reference, or a sampling that leaves tokens out.

    Args:
        algorithm: or variant.
        envs: with the scorer and the reference.
        model: what ``language_model`` found.
        given: settings by name.
    """
    base, reward, sampling = _base(envs), found_in(envs, PreferenceReward), given.get("sampling") or TokenSampling()
    if reward is None or len(reward.scorers) != 1 or reward.weights is not None or sampling.filters:
        return {}
    if not isinstance(base, TokenVectorEnv) or _reference_model(envs) is None:
        return {}
    scorer: Any = reward.scorers[0]
    if _is_policy(model) or not isinstance(scorer, RewardModel) or not same_tokenizer(scorer.tokenizer, base.tokenizer):
        return {}
    trunk = trunk_of(model)
    models = (
        described(each.config.to_dict(), {name: part.shape for name, part in each.state_dict().items()})
        for each in (trunk, scorer.backbone)
    )
    chosen = critic_starts_as_reward(algorithm, given, *models) and reads_branches(trunk)
    return dict(REWARD_CRITIC) if chosen else {}


def scorers_of(envs: TokenVectorLike) -> tuple[Scorer, ...]:
    """Those that pay in ``envs``; none without a `PreferenceReward`."""
    reward = found_in(envs, PreferenceReward)
    return () if reward is None else reward.scorers


def starting_policy(envs: TokenVectorLike, config: TextAgentConfig, options: TextOptions) -> CausalLMPolicy:
    """The environment's reference as a policy on the device and with the number type of the one that is trained.

    Raises:
        ValueError: if the environment's reference is no causal LM of transformers.
    """
    model = _reference_model(envs)
    if model is None:
        raise ValueError(
            'kl_estimator "full" and branches need an environment whose KLShaping has a causal LM as its reference'
        )
    return CausalLMPolicy(
        model.to(config.device), eos_token_id=_base(envs).eos_token_id, critic="none",
        autocast=autocast_of(options.dtype, config.device),
    )  # fmt: skip


def _is_policy(policy: object) -> bool:
    return isinstance(policy, nn.Module) and all(hasattr(policy, name) for name in PROTOCOL)


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
