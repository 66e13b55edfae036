"""The small random models that `scripts.benchmark_text` times both sides on: language model, reward model, prompts.

Everything is written to one folder in transformers' own formats, so that a peer in another environment reads the same
weights: ``lm/`` (GPT-2), ``reward_model/`` (as `RewardModel.save` leaves it), ``prompts.json`` (token ids).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.recipes.games.teaching import word_tokenizer
from reward_models.aside import write_aside

PAD_ID, EOS_ID = 0, 1
FIRST_WORD = 3
"""Ids below are special."""
LM, REWARD_MODEL, PROMPTS = "lm", "reward_model", "prompts.json"
NO_EOS_LOGIT = -40.0
"""Against which no uniform number of 24 bits ever draws the end-of-text token."""


@dataclass(frozen=True, kw_only=True)
class BenchSizes:
    """Shapes of the models and of an update; the defaults are the benchmark's."""

    layers: int = 4
    """Blocks of GPT-2."""
    width: int = 256
    """Hidden size."""
    heads: int = 4
    """Attention heads."""
    vocabulary: int = 4096
    """Token ids."""
    positions: int = 256
    """Longest row, tokens."""
    rows: int = 64
    """Texts an update."""
    prompt_tokens: int = 16
    """Tokens of every prompt."""
    new_tokens: int = 48
    """Budget of a completion, tokens."""
    epochs: int = 4
    """Passes over each batch."""
    minibatches: int = 4
    """Optimizer steps a pass."""
    group_size: int = 8
    """Texts of a prompt, for GRPO."""
    num_prompts: int = 1024
    """Prompts to draw from."""


def write_models(folder: Path, sizes: BenchSizes, *, mean_length: float | None) -> Path:
    """Write a random language model, reward model and prompts of seed 0 below ``folder``.

    ``mean_length`` is that of completions, tokens, cut at the budget, at the model's random start: the end-of-text
    token's logit is set accordingly. None: no text ends before its budget.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    from reward_models import RewardModel

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = word_tokenizer(numbered(list(special.values()), sizes.vocabulary), padding_side="left", **special)
    config = GPT2Config(
        vocab_size=sizes.vocabulary, n_positions=sizes.positions, n_embd=sizes.width, n_layer=sizes.layers,
        n_head=sizes.heads, pad_token_id=PAD_ID, eos_token_id=EOS_ID, bos_token_id=EOS_ID,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    set_eos_logit(model, NO_EOS_LOGIT)
    if mean_length is not None:
        share = math.log(eos_probability(mean_length, sizes.new_tokens))
        rest = math.log1p(-math.exp(share))
        set_eos_logit(model, share - rest + _typical_logsumexp(model))
    model.save_pretrained(folder / LM)
    tokenizer.save_pretrained(folder / LM)
    RewardModel(GPT2Model(config), tokenizer).save(folder / REWARD_MODEL)
    prompts = torch.randint(FIRST_WORD, sizes.vocabulary, (sizes.num_prompts, sizes.prompt_tokens))
    write_aside(folder / PROMPTS, json.dumps(prompts.tolist()))
    return folder


def numbered(words: list[str], count: int) -> list[str]:
    """``words``, and ``w3``, ``w4``, ... after them, ``count`` in all."""
    return [*words, *(f"w{i}" for i in range(len(words), count))]


@torch.no_grad()
def set_eos_logit(model: Any, logit: float) -> None:
    """Make the end-of-text logit of a GPT-2 ``logit`` in every state, and leave all others to the rest of the state.

    The last norm's first component becomes the constant 8, which only the end-of-text embedding reads.
    """
    norm, embedding = model.transformer.ln_f, model.get_output_embeddings().weight
    norm.weight[0], norm.bias[0] = 0.0, 8.0
    embedding[:, 0] = 0.0
    embedding[EOS_ID] = 0.0
    embedding[EOS_ID, 0] = logit / 8.0


def eos_probability(mean_length: float, budget: int) -> float:
    """The chance q a token with which texts of at most ``budget`` have ``mean_length``: (1 - (1-q)^budget) / q."""
    if not 1 <= mean_length < budget:
        raise ValueError(f"mean_length lies in [1, {budget}), received {mean_length}")
    low, high = 1e-9, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        longer = (1 - (1 - middle) ** budget) / middle > mean_length
        low, high = (middle, high) if longer else (low, middle)
    return low


@torch.no_grad()
def _typical_logsumexp(model: Any) -> float:
    tokens = torch.randint(FIRST_WORD, model.config.vocab_size, (8, 16), generator=torch.Generator().manual_seed(0))
    return float(model.eval()(input_ids=tokens).logits.logsumexp(-1).mean())
