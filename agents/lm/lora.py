"""One frozen trunk shared by several models: a LoRA adapter per role, or the trunk without adapters.

The adapters are peft's (see ``textenvs.lm.lora``). This module switches roles; ``agents.lm.causal_lm`` uses them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from textenvs.lm.linear_kernels import speed_up
from textenvs.lm.loading import load_adapter, load_peft
from textenvs.lm.lora import ADAPTER_WEIGHTS, adapted_layers, belongs, check_shape, new_config, switch_on, write_adapter
from textenvs.lm.packed_forward import trunk_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPast

POLICY, VALUE, REFERENCE, REWARD = "policy", "value", "reference", "reward"


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The shape of new adapters: ``W x + (alpha / rank) B A x``, ``A [rank, in]`` random and ``B [out, rank]`` zero."""

    rank: int = 16
    """Rank of the update; >= 1."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; > 0."""
    seed: int = 0
    """Of ``A``."""

    def __post_init__(self) -> None:
        check_shape(self.rank, self.alpha)


class AdaptedTrunk:
    """A causal LM with frozen weights, a trained adapter for the policy and optionally one for the value.

    The policy's adapter is active unless ``role`` selects another. The adapters are in the layers of the transformers
    model, so whatever runs it (cached decoding, for instance) runs the active role.

    Args:
        model: a transformers causal LM; its layers are changed in place.
        options: of new adapters.
        value: True: the value has its own adapter.
        start: folder of a LoRA adapter that policy and value start from; a frozen copy is the reference. None: they
            start as the model, which is the reference.

    Raises:
        ValueError: if ``start`` holds no LoRA adapter, or one of another model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        options: LoraOptions | None = None,
        *,
        value: bool = True,
        start: str | Path | None = None,
    ) -> None:
        options = LoraOptions() if options is None else options
        self.model = model
        self.trained = (POLICY, VALUE) if value else (POLICY,)
        self.reference: str | None = None
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(options.seed)
            if start is None:
                self.peft = self._new(options)
            else:
                self.peft = self._loaded(start)
                self.reference = REFERENCE
        self._active: str | None = POLICY
        self._refresh()

    def _new(self, options: LoraOptions) -> PeftModel:
        config = new_config(self.model, rank=options.rank, alpha=options.alpha)
        peft = get_peft_model(self.model, config, adapter_name=POLICY)
        for role in self.trained[1:]:
            peft.add_adapter(role, copy.deepcopy(config))
        return peft

    def _loaded(self, start: str | Path) -> PeftModel:
        _check_adapter(start)
        try:
            peft = load_peft(self.model, start, POLICY, is_trainable=True)
        except ValueError as fault:  # mismatched sizes or missing layers
            base = PeftConfig.from_pretrained(str(start)).base_model_name_or_path
            raise ValueError(
                f"{start}: expected an adapter of {self.model.name_or_path}, received one of {base}: {fault}"
            ) from fault
        for role in (*self.trained[1:], REFERENCE):
            load_adapter(peft, start, role)
        return peft

    def load(self, folder: str | Path, role: str) -> None:
        """Load the adapter in ``folder``, written by peft or ``save``, for a frozen role; ValueError if there is no
        LoRA adapter, or ``role`` is trained."""
        if role in self.trained:
            raise ValueError(f"role: expected a frozen one, received {role!r}, which is trained")
        _check_adapter(folder)
        load_adapter(self.peft, folder, role)
        self._refresh()

    @torch.no_grad()
    def copy_adapter(self, source: str, target: str) -> None:
        """Copy ``source``'s adapter to ``target``, rescaled for its alpha so that the update is the same; ValueError if
        the adapters differ in rank or layers."""
        theirs = {_without(name, source): at for name, at in self.model.named_parameters() if belongs(name, source)}
        ours = {_without(name, target): at for name, at in self.model.named_parameters() if belongs(name, target)}
        if {name: at.shape for name, at in theirs.items()} != {name: at.shape for name, at in ours.items()}:
            configs: Any = self.peft.peft_config
            ranks = {role: configs[role].r for role in (source, target)}
            raise ValueError(f"expected adapters of one shape, received {source!r} and {target!r} of ranks {ranks}")
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])
        for layer in self._layers:
            of: Any = layer
            if target in of.lora_B:
                of.lora_B[target].weight.mul_(of.scaling[source] / of.scaling[target])

    def _refresh(self) -> None:
        """Restore ``requires_grad`` and the active role after peft changed them."""
        # A new adapter may be in layers without another one.
        self._layers = adapted_layers(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(belongs(name, role) for role in self.trained))
        self._switch(self._active)
        self.model.eval()
        speed_up(self.model)  # again, since every adapter adds layers

    @property
    def active(self) -> str | None:
        """The role whose adapter is active; None: no adapter."""
        return self._active

    @contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """Activate the adapter of ``name`` only (None: no adapter) inside the context; then restore the previous role;
        ValueError if there is no such adapter."""
        if name is not None and name not in self.peft.peft_config:
            raise ValueError(f"role: expected one of {sorted(self.peft.peft_config)}, received {name!r}")
        before = self._active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def current(self) -> AbstractContextManager[None]:
        """A context that activates the current role later, when layers are recomputed in the backward pass."""
        return self.role(self._active)

    def _switch(self, name: str | None) -> None:
        switch_on(self._layers, name)
        self._active = name

    def parameters(self, role: str) -> list[nn.Parameter]:
        """Parameters of one role's adapter."""
        return [parameter for name, parameter in self.model.named_parameters() if belongs(name, role)]

    def is_trained(self, name: str) -> bool:
        """True if a parameter of that name (in the model, or in a module around it) is trained."""
        return any(belongs(name, role) for role in self.trained)

    def merged(self, role: str | None = POLICY) -> PreTrainedModel:
        """A float32 copy of the transformers model with the adapter of ``role``, if any, merged into its weights."""
        names = [] if role is None else [role]
        # One layer at a time, so that at most one copy of the model is held; a deep copy takes what the memo has.
        merged: dict[int, Any] = {}
        layers: list[Any] = list(self._layers)
        inside = {part for layer in layers for part in layer.modules() if part is not layer}
        for layer in (each for each in layers if each not in inside):
            copied: Any = copy.deepcopy(layer).float()
            if hasattr(copied, "unload_and_optionally_merge_module"):  # experts, with an adapter around another one
                merged[id(layer)] = copied.unload_and_optionally_merge_module(bool(names), False, names)
            else:
                copied.merge(adapter_names=names)
                merged[id(layer)] = copied.get_base_layer()
        whole = copy.deepcopy(self.model, merged).float()
        vars(whole).pop("peft_config", None)
        return whole

    def named_tensors(self, role: str | None = POLICY) -> list[tuple[str, Tensor]]:
        """One role's adapter under the names in peft's files, with ``B`` scaled so that alpha equals the rank; without
        a role the policy's with ``B`` zero."""
        config: Any = self.peft.peft_config[role or POLICY]
        state = get_peft_model_state_dict(self.peft, adapter_name=role or POLICY)
        scale = 0.0 if role is None else config.lora_alpha / config.r
        return [(name, each.detach() * (scale if ".lora_B." in name else 1.0)) for name, each in state.items()]

    def save(self, folder: str | Path, role: str = POLICY, trained: dict[str, Tensor] | None = None) -> None:
        """Write one role's adapter for ``PeftModel.from_pretrained``; ``trained``: its weights in the model, whole."""
        write_adapter(self.peft, role, Path(folder), trained)


class RoleTrunk(nn.Module):
    """The trunk in one role (None: without an adapter) as a module without parameters, e.g. a reward model's
    backbone."""

    def __init__(self, trunk: AdaptedTrunk, role: str | None) -> None:
        super().__init__()
        self._trunk, self.role = trunk, role
        self.config = trunk_of(trunk.model).config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> BaseModelOutputWithPast:
        """As the trunk's: an output with ``last_hidden_state [N, T, D]``."""
        with self._trunk.role(self.role):
            output: BaseModelOutputWithPast = trunk_of(self._trunk.model)(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
            )
        return output

    @property
    def base_name(self) -> str:
        """Directory or name of the trunk's model."""
        return str(self._trunk.model.name_or_path)

    def save(self, folder: str | Path, whole: Mapping[str, Tensor] | None = None) -> None:
        """Write the role's adapter, with its own weights, for ``PeftModel.from_pretrained``; ValueError if the role is
        None."""
        if self.role is None:
            raise ValueError("role: expected one with an adapter to save, received None: save the model instead")
        self._trunk.save(folder, self.role)


def _without(name: str, role: str) -> str:
    """A parameter's name without its role."""
    head, _, tail = name.rpartition(".lora_")
    return ".".join([head, *(part for part in tail.split(".") if part != role)])


def _check_adapter(folder: str | Path) -> None:
    if not (Path(folder) / ADAPTER_WEIGHTS).exists():
        raise ValueError(f"{folder}: expected an adapter, {ADAPTER_WEIGHTS} is missing")
    peft_type = PeftConfig.from_pretrained(str(folder)).peft_type
    if peft_type != "LORA":
        raise ValueError(f"{folder}: expected a LoRA adapter, received {peft_type}")
