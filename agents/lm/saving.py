"""Saves a tuned language model for transformers, and its adapter for peft, atomically."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agents.lm.causal_lm import CausalLMPolicy
from agents.runs.run_dir import write_folder_aside

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(policy: CausalLMPolicy, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write model and tokenizer to ``path`` for ``AutoModelForCausalLM.from_pretrained``; adapters are merged."""
    save_pretrained(policy.model if policy.adapters is None else policy.adapters.merged(), tokenizer, path)


def save_pretrained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a transformers model and its tokenizer to ``path``, whole or not at all."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_folder_aside(path, write)


def save_adapter(policy: CausalLMPolicy, path: Path) -> None:
    """Write the policy's adapter, if it has one, to ``path`` for ``PeftModel.from_pretrained``."""
    if policy.adapters is not None:
        write_folder_aside(path, policy.adapters.save)
