"""A reward model's backbone as a LoRA adapter over a language model that it shares with others (Hu et al. 2021).

Only the adapter is trained and kept; the language model is found again by its directory or name. peft is imported when
it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

ADAPTER = "adapter"
"""Folder of the adapter inside a reward model's folder, as peft writes it."""


class AdapterBackbone(nn.Module):
    """The trunk of a causal LM under a LoRA adapter; everything else of it is frozen.

    Args:
        peft_model: peft's model around a causal LM. (Around the whole, not its trunk alone: so the adapter also fits
            the model that a policy's adapters live in.)
    """

    def __init__(self, peft_model: Any) -> None:
        super().__init__()
        self.peft_model = peft_model
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

    @property
    def base_name(self) -> str:
        """Directory or name of the model below the adapter; a directory as an absolute path."""
        name = str(self.peft_model.get_base_model().name_or_path)
        return str(Path(name).resolve()) if Path(name).is_dir() else name

    def save(self, folder: Path) -> None:
        """Write the adapter for ``PeftModel.from_pretrained``."""
        self.peft_model.save_pretrained(str(folder))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        """As the trunk's own: an output with ``last_hidden_state [N, T, D]``."""
        return self.peft_model.get_base_model().base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )
