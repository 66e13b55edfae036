"""LoRA adapters in a frozen causal LM, through peft (imported on use): configuration, switching and saving.

Source: Hu et al. 2021 (arXiv:2106.09685); in every linear layer but the output head (Dettmers et al. 2023,
arXiv:2305.14314, section 4). Their roles are in ``agents.lm.lora`` and ``reward_models.lora``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from textenvs.lm.packed_forward import trunk_of, without_dropout

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""peft's name of the weights in an adapter's folder."""


def new_config(model: nn.Module, *, rank: int, alpha: float) -> LoraConfig:
    """Options of a new adapter: ``W x + (alpha / rank) B A x``, ``A [rank, in]`` random and ``B [out, rank]`` zero.

    Raises what `check_shape` raises.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    check_shape(rank, alpha)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        exclude_modules=_without_adapter(model, (nn.Linear, Conv1D)) or None,
    )


@torch.no_grad()
def _without_adapter(model: Any, linear: tuple[type[nn.Module], ...]) -> list[str]:
    """Linear layers in which an adapter would be wrong, found by a forward pass of one token: those outside of the
    text's trunk, those that return more than a tensor (a router), and those whose weight is used without a call."""
    trunk, head = trunk_of(model), model.get_output_embeddings()
    inside = set(trunk.modules())
    outputs: dict[nn.Module, Any] = {}
    hooks = [m.register_forward_hook(lambda m, _, out: outputs.__setitem__(m, out)) for m in inside]
    if model.device.type != "meta":
        with without_dropout(trunk):
            trunk(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    wrong = []
    for name, layer in model.named_modules():
        if isinstance(layer, linear) and layer is not head:
            unused = model.get_submodule(name.rpartition(".")[0]) in outputs and layer not in outputs
            wrong += [name] * (layer not in inside or unused or not isinstance(outputs.get(layer, head.weight), Tensor))
    return wrong


def check_shape(rank: int, alpha: float) -> None:
    """Raise ValueError unless ``rank >= 1`` and ``alpha > 0``."""
    if rank < 1:
        raise ValueError(f"rank: expected 1 or more, received {rank}")
    if not alpha > 0:
        raise ValueError(f"alpha: expected a number > 0, received {alpha}")


def adapted_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """The layers of ``model`` with adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def switch_on(layers: Iterable[BaseTunerLayer], adapter: str | None) -> None:
    """Activate ``adapter`` in ``layers`` and no other one; None: no adapter.

    peft's set_adapter and disable_adapter also change requires_grad, and a parameter that does not require a gradient
    during the backward pass silently gets none.
    """
    for layer in layers:
        layer._disable_adapters = adapter is None
        if adapter is not None:
            layer._active_adapter = [adapter]


def belongs(parameter: str, adapter: str) -> bool:
    """True if a parameter of that name is a weight of ``adapter``."""
    return ".lora_" in parameter and adapter in parameter.rpartition(".lora_")[2].split(".")


def write_adapter(peft: PeftModel, adapter: str, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write one adapter for ``PeftModel.from_pretrained``, with the model's ``weights`` in place of its own."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(peft.peft_config[adapter])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    own = None if weights is None else {f"base_model.model.{name}": value for name, value in weights.items()}
    state = get_peft_model_state_dict(peft, state_dict=own, adapter_name=adapter)
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(found, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
