"""One frozen trunk that plays several models: a LoRA adapter for each role, and the trunk itself with adapters off.

The adapters are peft's (see ``textenvs.lm.lora``). Here is which role is on when; what is done with the hidden states
is in ``agents.lm.causal_lm``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from textenvs.lm.linear_kernels import speed_up
from textenvs.lm.lora import ADAPTER_WEIGHTS, adapted_layers, belongs, check_shape, new_config, switch_on, write_adapter

POLICY, VALUE, REFERENCE, REWARD = "policy", "value", "reference", "reward"


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The shape of new adapters: ``W x + (alpha / rank) B A x``, ``A [rank, in]`` random and ``B [out, rank]`` zero."""

    rank: int = 16
    """Rank of the change; >= 1."""
    alpha: float = 32.0
    """The change is scaled by alpha / rank; > 0."""
    seed: int = 0
    """Of ``A``."""

    def __post_init__(self) -> None:
        check_shape(self.rank, self.alpha)


class AdaptedTrunk:
    """A causal LM whose own weights are frozen, with a trained adapter for the policy and maybe one for the value.

    The policy's adapter is on unless a ``role`` says otherwise. The model stays the transformers model that it was: its
    layers hold the adapters, so whatever runs it (cached decoding, say) runs the role that is on.

    Args:
        model: a transformers causal LM; its layers are changed in place.
        options: of new adapters.
        value: whether the value has an adapter of its own.
        start: folder of a LoRA adapter that policy and value start from; frozen, it is also the reference. None: they
            start as the model, which is the reference.

    Raises:
        ValueError: if ``start`` holds no LoRA adapter, or one that does not fit the model.
    """

    def __init__(
        self, model: Any, options: LoraOptions | None = None, *, value: bool = True, start: str | Path | None = None
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
        self._settle()

    def _new(self, options: LoraOptions) -> Any:
        config = new_config(self.model, rank=options.rank, alpha=options.alpha)
        peft = get_peft_model(self.model, config, adapter_name=POLICY)
        for role in self.trained[1:]:
            peft.add_adapter(role, copy.deepcopy(config))
        return peft

    def _loaded(self, start: str | Path) -> Any:
        _check_adapter(start)
        try:
            peft = PeftModel.from_pretrained(self.model, str(start), adapter_name=POLICY, is_trainable=True)
        except (RuntimeError, ValueError) as fault:  # a page of sizes that mismatch, or of layers that are not there
            base = PeftConfig.from_pretrained(str(start)).base_model_name_or_path
            raise ValueError(
                f"the adapter in {start} is of another model, {base}, and does not fit {self.model.name_or_path}"
            ) from fault
        for role in (*self.trained[1:], REFERENCE):
            peft.load_adapter(str(start), adapter_name=role)
        return peft

    def load(self, folder: str | Path, role: str) -> None:
        """Give a frozen role the adapter in ``folder``, as peft or ``save`` wrote it.

        Raises:
            ValueError: if there is no LoRA adapter, or ``role`` is one that is trained.
        """
        if role in self.trained:
            raise ValueError(f"the adapter of {role!r} is trained here; only a frozen role can be loaded")
        _check_adapter(folder)
        self.peft.load_adapter(str(folder), adapter_name=role)
        self._settle()

    @torch.no_grad()
    def copy_adapter(self, source: str, target: str) -> None:
        """Let ``target``'s adapter begin as ``source``'s: the same change to the trunk, whatever the two alphas are.

        Raises:
            ValueError: if the adapters differ in rank or in the layers that they change.
        """
        theirs = {_without(name, source): at for name, at in self.model.named_parameters() if belongs(name, source)}
        ours = {_without(name, target): at for name, at in self.model.named_parameters() if belongs(name, target)}
        if {name: at.shape for name, at in theirs.items()} != {name: at.shape for name, at in ours.items()}:
            ranks = {role: self.peft.peft_config[role].r for role in (source, target)}
            raise ValueError(f"the adapters of {source!r} and {target!r} are not of one shape; their ranks are {ranks}")
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])
        for layer in self._layers:
            of: Any = layer
            if target in of.lora_B:
                of.lora_B[target].weight.mul_(of.scaling[source] / of.scaling[target])

    def _settle(self) -> None:
        """Only what is trained has gradients; the role that was on is on. (peft's own switches change both at once.)"""
        # An adapter that was just loaded may have one where no other has.
        self._layers = adapted_layers(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(belongs(name, role) for role in self.trained))
        self._switch(self._active)
        self.model.eval()
        speed_up(self.model)  # here, too, since every adapter brings layers of its own

    @property
    def active(self) -> str | None:
        """The role whose adapter is on; None: all are off."""
        return self._active

    @contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """Only the adapter of ``name`` is on inside (None: none is); afterwards what was on before, whatever happened.

        Raises:
            ValueError: if no adapter plays that role.
        """
        if name is not None and name not in self.peft.peft_config:
            raise ValueError(f"no adapter plays {name!r}; there are {sorted(self.peft.peft_config)}")
        before = self._active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def current(self) -> AbstractContextManager[None]:
        """The role that is on now, to be entered later: for layers that are computed again in the backward pass."""
        return self.role(self._active)

    def _switch(self, name: str | None) -> None:
        switch_on(self._layers, name)
        self._active = name

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The weights of one role's adapter."""
        return [parameter for name, parameter in self.model.named_parameters() if belongs(name, role)]

    def learns(self, name: str) -> bool:
        """Whether a parameter of that name (in the model, or in a module that holds the model) is trained."""
        return any(belongs(name, role) for role in self.trained)

    def merged(self) -> Any:
        """A plain transformers model in float32, the policy's adapter added to its weights; takes a trunk's memory."""
        with self.role(POLICY):
            whole = copy.deepcopy(self.peft).float()
        return whole.merge_and_unload(adapter_names=[POLICY])

    def save(self, folder: str | Path, role: str = POLICY) -> None:
        """Write one role's adapter for ``PeftModel.from_pretrained``."""
        write_adapter(self.peft, role, Path(folder))


class RoleTrunk(nn.Module):
    """The trunk in one role, as a module without parameters of its own: the backbone of a reward model, for instance.

    Args:
        trunk: where the role's adapter lives.
        role: who plays.
    """

    def __init__(self, trunk: AdaptedTrunk, role: str | None) -> None:
        super().__init__()
        self._trunk, self.role = trunk, role
        self.config = trunk.model.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        """As the trunk's own: an output with ``last_hidden_state [N, T, D]``."""
        with self._trunk.role(self.role):
            return self._trunk.model.base_model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
            )

    @property
    def base_name(self) -> str:
        """Directory or name that the trunk's model was loaded from."""
        return str(self._trunk.model.name_or_path)

    def save(self, folder: str | Path) -> None:
        """Write the role's adapter for ``PeftModel.from_pretrained``.

        Raises:
            ValueError: if the role is the trunk alone.
        """
        if self.role is None:
            raise ValueError("the trunk without an adapter has nothing of its own to save: save its model instead")
        self._trunk.save(folder, self.role)


def _without(name: str, role: str) -> str:
    """A parameter's name without its role: what it is of, and where."""
    head, _, tail = name.rpartition(".lora_")
    return ".".join([head, *(part for part in tail.split(".") if part != role)])


def _check_adapter(folder: str | Path) -> None:
    if not (Path(folder) / ADAPTER_WEIGHTS).exists():
        raise ValueError(f"{folder} holds no adapter: {ADAPTER_WEIGHTS} is missing")
    kind = PeftConfig.from_pretrained(str(folder)).peft_type
    if kind != "LORA":
        raise ValueError(f"{folder} holds an adapter of kind {kind}; only LoRA adapters are used here")
