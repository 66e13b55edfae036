"""The parts of a fine-tuning run, made from its configuration: tokenizer, model, rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.loading import DTYPES, autocast_of, resolved
from agents.lm.lora import POLICY, AdaptedTrunk, LoraOptions
from agents.lm.sharding import mesh_of, shard
from agents.recipes.sft.config import TrainLanguageModelConfig
from agents.recipes.sft.data import Examples, read_examples
from agents.recipes.sft.from_scratch import new_model, train_tokenizer
from agents.recipes.sft.rows import RowEncoder, TokenRow, check_vocabulary, limit_rows, split_rows
from agents.runs.distributed import ALONE, Processes
from agents.runs.flags import json_object
from textenvs.lm.loading import load_causal_lm
from textenvs.tokens.end_of_text import find_end_tokens
from textenvs.tokens.end_tokens import end_tokens
from textenvs.tokens.row_files import left_over
from textenvs.tokens.tokenizers import load_tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What a run learns from and is judged by, and what became of rows that needed a decision."""

    train: list[TokenRow]
    heldout: list[TokenRow]
    counts: dict[str, int]
    """For the summary."""


def build_policy(
    config: TrainLanguageModelConfig, examples: Examples, began: str | None = None, processes: Processes = ALONE
) -> tuple[Any, CausalLMPolicy]:
    """Tokenizer and model: those that ``config`` names, or new ones as large as it says, sharded if it says so.

    ``began`` is the time that chat templates read, ISO; None: the present.

    Raises:
        ValueError: if they cannot be loaded, or name no token, or not the same one, as the end of a text.
    """
    if config.shard == "none":
        return _whole_policy(config, examples, began, config.device)
    mesh = mesh_of(processes, config.device)
    with processes.in_turn():  # of whole models on the CPU only the parts go to the device
        tokenizer, policy = _whole_policy(config, examples, began, "cpu")
        shard([policy], processes, mesh)
    return tokenizer, policy


def _whole_policy(
    config: TrainLanguageModelConfig, examples: Examples, began: str | None, device: str
) -> tuple[Any, CausalLMPolicy]:
    """As ``build_policy``, on ``device``."""
    if config.model is None:
        if examples.kind == "chats":
            raise ValueError("rows with messages need --model: a new model's tokenizer has no chat template")
        texts = ["".join(row.columns.values()) for row in examples.rows]
        assert config.max_length is not None
        tokenizer: Any = train_tokenizer(texts, config.vocab_size, config.max_length)
        torch.manual_seed(config.seed)
        model: Any = new_model(config, tokenizer).eval()
    else:
        tokenizer = load_tokenizer(config.model, json_object(config.template_kwargs), began)
        # A frozen weight is only ever read, and autocast would round it at each reading.
        dtype = torch.float32 if config.lora_rank is None else DTYPES[resolved(config.dtype, config.device)]
        model = load_causal_lm(config.model, dtype=dtype)
    eos_token_id = agree_on_end_of_text(model, tokenizer, frozen=config.lora_rank is not None)
    model.to(device)
    trunk = None
    if config.lora_rank is not None:
        options = LoraOptions(rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
        trunk = AdaptedTrunk(model, options, value=False)
    policy = CausalLMPolicy(
        model,
        eos_token_id=eos_token_id,
        critic="none",
        adapters=trunk,
        role=POLICY,
        autocast=autocast_of(config.dtype, config.device),
        recompute=config.gradient_checkpointing,
    )
    return tokenizer, policy


def agree_on_end_of_text(model: Any, tokenizer: Any, *, frozen: bool) -> tuple[int, ...]:
    """The tokens that end a text, the tokenizer's among them, which the model's configuration names from now on.

    Raises:
        ValueError: if the tokenizer has none, or a ``frozen`` model, whose configuration stays, ends its texts with
            another one.
    """
    token = tokenizer.eos_token_id
    if token is None:
        raise ValueError(
            "the tokenizer has no end-of-text token (eos_token), so the model could not learn to stop: set one in "
            "tokenizer_config.json"
        )
    found = find_end_tokens(model, tokenizer)
    ends = end_tokens([token for ids in found.values() for token in ids])
    if token in ends:
        return ends
    if frozen:
        raise ValueError(
            f"the model ends texts with token {model.config.eos_token_id}, its tokenizer with {token}; an adapter "
            f"cannot carry that: set eos_token_id to {token} in the model's config.json"
        )
    ends = end_tokens([token, *found.get("chat template", ())])
    for place in filter(None, (model.config, model.generation_config)):
        place.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    return ends


def build_rows(config: TrainLanguageModelConfig, examples: Examples, tokenizer: Any, policy: CausalLMPolicy) -> Rows:
    """Rows to learn and rows to evaluate on; ValueError names the file and line of what cannot be used."""
    assert policy.eos_token_id is not None
    encode = RowEncoder(tokenizer, eos_token_id=policy.eos_token_id, wrap=config.chat_template)
    positions = policy.max_positions
    longest = positions if config.max_length is None else config.max_length
    if positions is not None and longest is not None and longest > positions:
        raise ValueError(f"max_length {longest} is more than the model's {positions} positions")
    num_long = 0

    def ready(examples: Examples) -> list[TokenRow]:
        nonlocal num_long
        rows, longer = limit_rows(encode(examples), longest, config.too_long)
        check_vocabulary(rows, policy.vocab_size)
        num_long += longer
        return rows

    train, heldout = ready(examples), []
    if config.heldout_data is not None:
        heldout = ready(read_examples(config.heldout_data, examples.kind))[: config.heldout_rows]
        taken = {row.prompt_key for row in heldout}
        train = [train[i] for i in left_over([{row.prompt_key} for row in train], taken, config.heldout_data)]
    elif config.heldout_share > 0:
        train, heldout = split_rows(train, share=config.heldout_share, most=config.heldout_rows, seed=config.seed)
    counts = {
        "rows": len(train),
        "heldout_rows": len(heldout),
        "rows_cut": num_long if config.too_long == "cut" else 0,
        "rows_skipped": num_long if config.too_long == "skip" else 0,
        "rows_tokenized_apart": encode.num_apart,
    }
    return Rows(train=train, heldout=heldout, counts=counts)
