"""Saves a tuned language model for transformers, and its adapter for peft, atomically."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import AdaptedTrunk
from agents.runs.run_dir import write_folder_aside
from reward_models.gradients import whole
from textenvs.lm.loading import load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    policy: CausalLMPolicy,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    trained: dict[str, Tensor] | None = None,
) -> None:
    """Write model and tokenizer to ``path`` for ``AutoModelForCausalLM.from_pretrained``; adapters are merged.

    ``trained`` are the whole weights of a sharded policy (``agents.lm.sharding.Shards``).
    """
    model = policy.model
    if policy.adapters is not None and trained is None:
        model = policy.adapters.merged()
    elif policy.adapters is not None:  # over the model that they stand on, from its own files
        with TemporaryDirectory() as folder:
            policy.adapters.save(folder, trained=trained)
            model = AdaptedTrunk(load_causal_lm(str(model.name_or_path)), value=False, start=folder).merged()
        trained = None
    save_pretrained(model, tokenizer, path, trained)


def save_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a transformers model, with ``weights`` in place of its own, and its tokenizer to ``path``, whole or not at
    all."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)

    write_folder_aside(path, write)


def named_weights(policy: CausalLMPolicy, *, adapter_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights by their names in the transformers model; a shared weight once, adapters merged.

    A weight that is sharded over processes is gathered when its turn comes, so all of them must go through all.

    With ``adapter_only`` those of the adapter, under the names that peft gives them in a file, and so scaled that its
    alpha equals its rank.

    Raises:
        ValueError: for ``adapter_only`` of a policy that has none.
    """
    if adapter_only:
        if policy.adapters is None:
            raise ValueError('engine_weights "adapter": expected a policy with adapters, received one without')
        named: Iterable[tuple[str, Tensor]] = policy.adapters.named_tensors(policy.role)
    else:
        named = (policy.model if policy.adapters is None else policy.adapters.merged(policy.role)).named_parameters()
    for name, weight in named:
        yield name, whole(weight).detach()


def save_adapter(policy: CausalLMPolicy, path: Path, trained: dict[str, Tensor] | None = None) -> None:
    """Write the policy's adapter, if it has one, to ``path`` for ``PeftModel.from_pretrained``; see ``save_model``."""
    if policy.adapters is not None:
        write_folder_aside(path, partial(policy.adapters.save, trained=trained))
