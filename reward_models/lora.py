"""A reward model's backbone as a LoRA adapter over a language model that it shares with others (Hu et al. 2021).

Only the adapter is trained and kept; the language model is found again by its directory or name. Several backbones may
stand on one language model, each with an adapter of its own. peft is imported when it is needed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

ADAPTER = "adapter"
"""Folder of the adapter inside a reward model's folder, as peft writes it."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""What peft calls the file in it."""


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

    def __init__(self, peft_model: Any, name: str = "default") -> None:
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
        from peft import LoraConfig, get_peft_model
        from transformers.pytorch_utils import Conv1D

        if rank < 1:
            raise ValueError(f"the adapter's rank must be at least 1, got {rank}")
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=transposed,
        )
        return cls(get_peft_model(model, config))

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
        """Let this adapter have gradients, and nothing else of the model: no other adapter, and no old gradient."""
        for name, parameter in self.peft_model.named_parameters():
            own = ".lora_" in name and self.name in name.rpartition(".lora_")[2].split(".")
            parameter.requires_grad_(own)
            parameter.grad = parameter.grad if own else None

    @property
    def base_name(self) -> str:
        """Directory or name of the model below the adapter."""
        return str(self.peft_model.get_base_model().name_or_path)

    def save(self, folder: Path) -> None:
        """Write the adapter for ``PeftModel.from_pretrained``."""
        from peft import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.peft_model.peft_config[self.name])
        config.inference_mode = True
        config.save_pretrained(str(folder))
        state = get_peft_model_state_dict(self.peft_model, adapter_name=self.name)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        """As the trunk's own, under this adapter: an output with ``last_hidden_state [N, T, D]``."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in self.peft_model.modules():
            if isinstance(layer, BaseTunerLayer):
                # Not peft's set_adapter: it also sets requires_grad, of which training has its own idea.
                layer._active_adapter, layer._disable_adapters = [self.name], False
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
