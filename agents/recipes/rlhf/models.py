"""The models of a text run and how they live in memory: the policy, the one it started as, and what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import POLICY, AdaptedTrunk, LoraOptions
from agents.lm.sampling import TokenSampling
from agents.recipes.rlhf.config import LayoutSettings
from agents.recipes.rlhf.task import TextTask
from textenvs import assets
from textenvs.tokens.tokenizers import load_tokenizer
from textenvs.wrappers.reference import load_causal_lm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, eq=False)
class TextModels:
    """Who learns and who stays.

    Attributes:
        policy: what learns.
        start: what it started as, frozen, with the same sampling rules.
        plain: the same at temperature 1; the KL is measured against it.
        adapters: the trunk that all share, or None.
        tokenizer: theirs.
    """

    policy: CausalLMPolicy
    start: CausalLMPolicy
    plain: CausalLMPolicy
    adapters: AdaptedTrunk | None
    tokenizer: Any


def end_of_text(model: Any, tokenizer: Any) -> int:
    """The token that ends a text: of those that the model's configuration names, the tokenizer's, or else the first.

    Chat models name several, and their template ends a turn with the tokenizer's.

    Raises:
        ValueError: if the configuration names none.
    """
    named = model.config.eos_token_id
    if named is None or named == []:
        raise ValueError(f"{model.name_or_path}: config.json names no end-of-text token: set eos_token_id in it")
    ends = named if isinstance(named, list) else [named]
    return int(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0])


def check_model(path: str) -> None:
    """Refuse what holds no model with a tokenizer, without loading weights.

    Raises:
        ValueError: naming the path.
    """
    load_tokenizer(path)
    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no language model could be loaded from there: {error}") from error


def model_path(task: TextTask) -> str:
    """Where the language model is loaded from: the task's, or the shipped one."""
    return str(assets.language_model_dir()) if task.model is None else task.model


def build_models(config: TextTask, layout: LayoutSettings, *, critic: str, tokenizer: Any) -> TextModels:
    """The task's models, laid out as ``config.memory`` says, which end texts where ``tokenizer`` does.

    Args:
        config: model, memory, number type, temperature.
        layout: adapters, and what trades time for memory.
        critic: as `CausalLMPolicy` calls it.
        tokenizer: of the model.

    Raises:
        ValueError: if no model or adapter can be loaded.
    """
    path = model_path(config)
    sampling = TokenSampling(temperature=config.temperature)
    autocast = None if config.dtype == "float32" else DTYPES[config.dtype]
    trunk: AdaptedTrunk | None = None
    frozen: dict[str, Any] = {"autocast": autocast, "compile": layout.compile}
    if config.memory == "adapters":
        # A frozen weight is only ever read, and autocast would round it at each reading.
        model = load_causal_lm(path, dtype=DTYPES[config.dtype]).to(config.device)
        options = LoraOptions(rank=layout.lora_rank, alpha=layout.lora_alpha, seed=config.seed)
        trunk = AdaptedTrunk(model, options, value=critic == "adapter", start=config.adapter)
        start_model = model
        frozen |= {"adapters": trunk, "role": trunk.reference}
    else:
        model, start_model = (load_causal_lm(path).to(config.device) for _ in range(2))
        start_model.requires_grad_(False)
    eos_token_id = frozen["eos_token_id"] = end_of_text(model, tokenizer)
    policy = CausalLMPolicy(
        model,
        eos_token_id=eos_token_id,
        critic=critic,
        sampling=sampling,
        adapters=trunk,
        role=POLICY,
        autocast=autocast,
        recompute=layout.gradient_checkpointing,
        compile=layout.compile,
    )
    start = CausalLMPolicy(start_model, sampling=sampling, **frozen)
    plain = start if config.temperature == 1.0 else CausalLMPolicy(start_model, **frozen)
    return TextModels(policy=policy, start=start, plain=plain, adapters=trunk, tokenizer=tokenizer)
