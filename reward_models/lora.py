"""A reward model's backbone as a LoRA adapter (Hu et al. 2021) over a language model, which several may share.

Only the adapter is trained and saved; the language model is loaded again by its directory or name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from textenvs.lm.loading import load_adapter, load_causal_lm, load_peft
from textenvs.lm.lora import adapted_layers, belongs, new_config, switch_on, write_adapter
from textenvs.lm.packed_forward import trunk_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers.utils.generic import ModelOutput

ADAPTER = "adapter"
"""Folder of the adapter inside a reward model's folder, as peft writes it."""


@runtime_checkable
class Adapter(Protocol):
    """A backbone of which only the adapter is saved: `AdapterBackbone`, or a trunk that a policy shares."""

    @property
    def base_name(self) -> str:
        """Directory or name of the model below the adapter; empty if it has none."""

    def save(self, folder: Path, whole: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter for ``PeftModel.from_pretrained``; ``whole``: weights of the reward model above."""


class AdapterBackbone(nn.Module):
    """The frozen trunk of a causal LM under the LoRA adapter ``name``; others belong to other backbones.

    ``peft_model`` is around a whole causal LM, so that the adapter also fits a policy's model.
    """

    def __init__(self, peft_model: PeftModel, name: str = "default") -> None:
        super().__init__()
        self.peft_model, self.name = peft_model, name
        self.config = trunk_of(peft_model.get_base_model()).config

    @classmethod
    def new(cls, name: str | Path, *, rank: int, alpha: float) -> AdapterBackbone:
        """A new adapter of rank ``rank`` >= 1, scaled by ``alpha / rank``, over the model of a directory or name."""
        from peft import get_peft_model

        model = load_causal_lm(name)
        return cls(get_peft_model(model, new_config(model, rank=rank, alpha=alpha)))

    @classmethod
    def load(cls, name: str, folder: Path) -> AdapterBackbone:
        """The adapter in ``folder`` over the model called ``name``; ValueError if that model cannot be loaded."""
        try:
            model = load_causal_lm(name)
        except ValueError as error:
            raise ValueError(f"{folder}: expected a loadable model {name} below the adapter: {error}") from error
        return cls(load_peft(model, folder, "default"))

    def beside(self) -> AdapterBackbone:
        """A new adapter of the same shape on the same model, drawn from torch's global generator."""
        name = f"member_{len(self.peft_model.peft_config)}"
        self.peft_model.add_adapter(name, copy.deepcopy(self.peft_model.peft_config[self.name]))
        return AdapterBackbone(self.peft_model, name)

    def load_beside(self, folder: Path) -> AdapterBackbone:
        """The adapter in ``folder`` on the same model."""
        name = f"member_{len(self.peft_model.peft_config)}"
        load_adapter(self.peft_model, folder, name)
        return AdapterBackbone(self.peft_model, name)

    def learn_alone(self) -> None:
        """Require gradients for this adapter alone, and drop all other gradients."""
        for name, parameter in self.peft_model.named_parameters():
            own = belongs(name, self.name)
            parameter.requires_grad_(own)
            parameter.grad = parameter.grad if own else None

    @property
    def base_name(self) -> str:
        """Directory or name of the model below the adapter."""
        return str(self.peft_model.get_base_model().name_or_path)

    def save(self, folder: Path, whole: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter for ``PeftModel.from_pretrained``; ``whole``: weights of the reward model above."""
        inside = "backbone.peft_model.base_model.model."
        own = None if whole is None else {name.removeprefix(inside): part for name, part in whole.items()}
        write_adapter(self.peft_model, self.name, folder, own)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> ModelOutput:
        """The trunk's output under this adapter, with ``last_hidden_state [N, T, D]``."""
        switch_on(adapted_layers(self.peft_model), self.name)
        trunk: Any = trunk_of(self.peft_model.get_base_model())
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return trunk(**inputs, use_cache=use_cache)


def lasting_name(name: str) -> str:
    """A directory's absolute path, valid in any working directory, or else the name; ValueError if ``name`` is
    empty."""
    if not name:
        raise ValueError("expected a model with a name below the adapter, received none: save and load it first")
    return str(Path(name).resolve()) if Path(name).is_dir() else name
