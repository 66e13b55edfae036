"""A reward model's backbone as a LoRA adapter over a language model that it shares with others (Hu et al. 2021).

Only the adapter is trained and kept; the language model is found again by its directory or name. Several backbones may
stand on one language model, each with an adapter of its own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from textenvs.lm.lora import adapted_layers, belongs, new_config, switch_on, write_adapter

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "adapter"
"""Folder of the adapter inside a reward model's folder, as peft writes it."""


@runtime_checkable
class Adapter(Protocol):
    """A backbone of which only the adapter is kept: `AdapterBackbone`, or a trunk that a policy shares, in a role."""

    @property
    def base_name(self) -> str:
        """Directory or name of the model below the adapter; empty if it came from nowhere."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter for ``PeftModel.from_pretrained``."""
        ...


class AdapterBackbone(nn.Module):
    """The trunk of a causal LM under a LoRA adapter; everything else of it is frozen.

    Args:
        peft_model: peft's model around a causal LM. (Around the whole, not its trunk alone: so the adapter also fits
            the model that a policy's adapters live in.)
        name: of this backbone's adapter in there; the others in there belong to other backbones.
    """

    def __init__(self, peft_model: PeftModel, name: str = "default") -> None:
        super().__init__()
        self.peft_model = peft_model
        self.name = name
        self.config = peft_model.get_base_model().config

    @classmethod
    def new(cls, name: str | Path, *, rank: int, alpha: float) -> AdapterBackbone:
        """A new adapter of rank ``rank``, scaled by ``alpha / rank``, over the model in a directory, or of a name.

        Raises:
            ValueError: if ``rank`` is below 1.
        """
        from peft import get_peft_model

        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        return cls(get_peft_model(model, new_config(model, rank=rank, alpha=alpha)))

    @classmethod
    def load(cls, name: str, folder: Path) -> AdapterBackbone:
        """The adapter in ``folder`` over the model called ``name``.

        Raises:
            ValueError: if that model is not there any more.
        """
        from peft import PeftModel

        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is an adapter over {name}, and no model can be loaded from there") from error
        return cls(PeftModel.from_pretrained(model, str(folder)))

    def beside(self) -> AdapterBackbone:
        """A new backbone on the same model: an adapter of the same shape, drawn from torch's global generator."""
        name = self._free_name()
        self.peft_model.add_adapter(name, copy.deepcopy(self.peft_model.peft_config[self.name]))
        return AdapterBackbone(self.peft_model, name)

    def load_beside(self, folder: Path) -> AdapterBackbone:
        """A backbone on the same model with the adapter in ``folder``."""
        name = self._free_name()
        self.peft_model.load_adapter(str(folder), adapter_name=name)
        return AdapterBackbone(self.peft_model, name)

    def _free_name(self) -> str:
        return f"member_{len(self.peft_model.peft_config)}"

    def learn_alone(self) -> None:
        """Require gradients for this adapter alone, and drop all old gradients but its own."""
        for name, parameter in self.peft_model.named_parameters():
            own = belongs(name, self.name)
            parameter.requires_grad_(own)
            parameter.grad = parameter.grad if own else None

    @property
    def base_name(self) -> str:
        """Directory or name of the model below the adapter."""
        return str(self.peft_model.get_base_model().name_or_path)

    def save(self, folder: Path) -> None:
        """Write the adapter for ``PeftModel.from_pretrained``."""
        write_adapter(self.peft_model, self.name, folder)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        """As the trunk's own, under this adapter: an output with ``last_hidden_state [N, T, D]``."""
        switch_on(adapted_layers(self.peft_model), self.name)
        return self.peft_model.get_base_model().base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )


def lasting_name(name: str) -> str:
    """By what a model is found again from anywhere: of a directory its absolute path, else its name.

    Raises:
        ValueError: if ``name`` is empty.
    """
    if not name:
        raise ValueError("the model below the adapter was not loaded by a name: save it, and load it from there")
    return str(Path(name).resolve()) if Path(name).is_dir() else name
