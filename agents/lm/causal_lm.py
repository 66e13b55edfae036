"""A causal language model of transformers as a policy: one forward pass evaluates all tokens of a row.

State: prompt and completion so far. Action: the next token id. The value head reads the policy's own trunk
(``critic="shared"``), a copy of it ("separate"), or the same trunk with a second adapter ("adapter", see
``agents.lm.lora``); "none": there is no value head. Generation with a cache is in ``agents.lm.generation``.
Prompt and completion follow each other. Padding is on the right, where no token attends to it: no mask is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from agents.interfaces import Evaluation
from agents.lm.decision_states import Decisions, spread, states_at_ends
from agents.lm.lora import POLICY, VALUE, AdaptedTrunk
from agents.lm.model_checks import check_model
from agents.lm.sampling import TokenSampling, sample_tokens, uniform
from agents.lm.token_head import LogitTransform, TokenHead
from textenvs.lm.fast_paths import accelerate
from textenvs.lm.kv_cache import check_has_cache
from textenvs.lm.linear_kernels import autocast_off
from textenvs.lm.loading import load_causal_lm
from textenvs.lm.packed_forward import compile_trunk, hidden_states, recompute_layers, trunk_of
from textenvs.tokens.end_of_text import end_of_text
from textenvs.tokens.end_tokens import EndOfText, as_eos_token_id
from textenvs.tokens.rows import PAD

if TYPE_CHECKING:
    from torch.nn.modules.module import _IncompatibleKeys
    from transformers import PreTrainedModel


class CausalLMPolicy(nn.Module):
    """A causal LM with a scalar value head; always in evaluation mode, without dropout.

    Args:
        model: a ``transformers`` causal LM of attention layers with a key-value cache, whose logits are its output
            embedding of its trunk's last hidden state, maybe scaled or with a soft cap.
        eos_token_id: the token that ends a completion, or several; "model": all of the model's; None: only the budget
            ends one.
        critic: "shared", "separate", "adapter" or "none"; see the module.
        sampling: how logits become the policy's distribution.
        adapters: around ``model``, whose weights they freeze. None: all weights are trained.
        role: the adapter of this policy; None: the trunk without adapters.
        autocast: dtype of matrix products, e.g. bfloat16; log-softmax and values stay float32. None: the weights'.
        recompute: activation checkpointing: keep each layer's input only and recompute the rest in the backward pass.
        compile: torch.compile the passes over whole rows (update, reference, values; not cached decoding).

    Raises:
        ValueError: for an unknown ``critic`` or one without its adapter; a model without end-of-text token or that
            `check_model` refuses; tokens outside its vocabulary.
    """

    keeps_rows = True

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_id: EndOfText | str = "model",
        critic: str = "shared",
        sampling: TokenSampling | None = None,
        adapters: AdaptedTrunk | None = None,
        role: str | None = POLICY,
        autocast: torch.dtype | None = None,
        recompute: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if critic not in ("shared", "separate", "adapter", "none"):
            raise ValueError(f'critic: expected "shared", "separate", "adapter" or "none", received {critic!r}')
        if critic == "adapter" and (adapters is None or VALUE not in adapters.trained):
            raise ValueError('critic "adapter": expected adapters with one for the value, AdaptedTrunk(model)')
        check_has_cache(model)
        self.model = model
        self.adapters, self.role, self.autocast = adapters, role, autocast
        self.critic, self.has_critic = critic, critic != "none"
        self.sampling = TokenSampling() if sampling is None else sampling
        self.vocab_size, hidden_size = self.output_layer.weight.shape
        ends = end_of_text(model) if isinstance(eos_token_id, str) else eos_token_id
        self.eos_token_id = as_eos_token_id(ends, self.vocab_size)
        self.sampling.check_vocabulary(self.vocab_size)
        accelerate(model)
        if recompute:
            recompute_layers(self.trunk, nullcontext if adapters is None else adapters.current)
        if compile:
            compile_trunk(self.trunk)
        self.critic_trunk = copy.deepcopy(self.trunk) if critic == "separate" else None
        if self.has_critic:
            # Without a draw from torch's global generator.
            self.value_head = nn.utils.skip_init(nn.Linear, hidden_size, 1, device=self.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.eval()
        self.transform = LogitTransform()
        check_model(self)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> CausalLMPolicy:
        """A policy of the model at ``path`` (directory or name); ``options`` as in the constructor."""
        return cls(load_causal_lm(path), **options)

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Always evaluation mode: with dropout the trained policy would differ from the one that acted."""
        return super().train(False)

    @property
    def max_positions(self) -> int | None:
        """The model's number of positions, tokens; None if its configuration has none."""
        return getattr(self.trunk.config, "max_position_embeddings", None)

    @property
    def trunk(self) -> Any:
        """The model without its output layer, from tokens to hidden states."""
        return trunk_of(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the passes."""
        weight: Any = self.output_layer.weight
        return torch.device(weight.device_mesh.device_type) if hasattr(weight, "device_mesh") else weight.device

    @property
    def output_layer(self) -> nn.Linear:
        """The layer from hidden states to logits."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    def evaluate(
        self,
        observations: Tensor,
        actions: Tensor,
        mask: Tensor | None = None,
        reference: CausalLMPolicy | None = None,
        branches: Tensor | None = None,
    ) -> Evaluation:
        """Log-probabilities, entropies and values of all tokens of a row in one forward pass, with gradient.

        Args:
            observations: ``[B, P]`` prompts, right-padded with PAD.
            actions: ``[B, T]`` completions, right-padded with PAD.
            mask: ``[B, T]`` True on tokens to evaluate; all others that are not PAD are context. None: all but PAD.
            reference: also return the exact KL to this policy in every state.
            branches: ``[B, T, K]`` other tokens in every state, whose log-probabilities to return, too.

        Returns:
            ``[B, T]`` each, 0 where ``mask`` is False; values are 0 without a critic.
        """
        mask = actions != PAD if mask is None else mask
        decisions = Decisions.find(observations, actions, mask)
        with self.forward_context():
            hidden = critic_hidden = decisions.states(self.trunk)
            head, taken = self.token_head, decisions.tokens[:, None]
            each = taken if branches is None else torch.cat([taken, branches[mask]], dim=1)
            each, entropy = head.logprobs_and_entropy(hidden, each, decisions.steps)
            if self.critic in ("separate", "adapter"):
                with self.critic_context() as trunk:
                    critic_hidden = decisions.states(trunk)
            values = self.value_of(critic_hidden) if self.has_critic else torch.zeros_like(entropy)
            kl = None
            if reference is not None:
                with torch.no_grad(), reference.forward_context():
                    ref_hidden = decisions.states(reference.trunk)
                kl = head.exact_kl(hidden, decisions.tokens, decisions.steps, reference.token_head, ref_hidden)
        parts = each[:, 0], entropy, values, kl, None if branches is None else each[:, 1:]
        return Evaluation(*(None if part is None else spread(part, mask) for part in parts))  # type: ignore[arg-type]

    def row_logprobs(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities ``[N]``, nats, of the tokens of ``rows [B, W]`` that ``mask [B, W]`` selects, in row order,
        each given all before it; with gradient. Rows are right-padded with PAD, and the mask is False on their first
        token."""
        row, column = mask.nonzero(as_tuple=True)
        if bool((column == 0).any()):
            raise ValueError("mask: expected False on the first token of a row, which has no prefix, received True")
        with self.forward_context():
            hidden = hidden_states(self.trunk, rows[:, :-1], (rows != PAD).sum(1) - 1, row, column - 1)
            logprobs, _ = self.token_head.logprobs_and_entropy(hidden, rows[row, column], column)
        return logprobs

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One token for each state ``[B, L]``, right-padded with PAD, and its log-probability; ``deterministic``: the
        likeliest.

        The ``generator`` gives one uniform number a row. ValueError if the policy has ``min_new_tokens``, which a state
        does not tell: use ``agents.lm.generation``.
        """
        if self.sampling.min_new_tokens > 0:
            raise ValueError("min_new_tokens depends on the completion's length: use agents.lm.generation.generate")
        with self.forward_context():
            hidden = states_at_ends(self.trunk, observations)
            logits = self.sampling.shape(self.head_logits(hidden), 0, self.eos_token_id)
        noise = None if deterministic else uniform(observations.shape[0], generator, logits.device)
        return sample_tokens(logits, noise)

    @torch.no_grad()
    def completion_values(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
        """V of the state before each token that ``mask`` selects (None: all but PAD): ``[B, T]`` reward units, 0
        elsewhere; runs the critic only. Prompts and completions are as in ``evaluate``."""
        mask = actions != PAD if mask is None else mask
        decisions = Decisions.find(observations, actions, mask)
        with self.forward_context(), self.critic_context() as trunk:
            return spread(self.value_of(decisions.states(trunk)), mask)

    @torch.no_grad()
    def completion_logprobs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log-probability of each token: ``[B, T]`` nats, 0 on PAD; arguments as in ``completion_values``."""
        mask = actions != PAD
        decisions = Decisions.find(observations, actions, mask)
        with self.forward_context():
            hidden = decisions.states(self.trunk)
            return spread(self.token_head.logprobs_and_entropy(hidden, decisions.tokens, decisions.steps)[0], mask)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """V of each state: ``[B, L]`` right-padded with PAD to ``[B]``, reward units."""
        with self.forward_context(), self.critic_context() as trunk:
            return self.value_of(states_at_ends(trunk, observations))

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Enable the policy's adapter and autocast; every forward pass runs inside this."""
        with ExitStack() as on:
            if self.adapters is not None:
                on.enter_context(self.adapters.role(self.role))
            if self.autocast is not None:
                on.enter_context(torch.autocast(self.device.type, dtype=self.autocast))
            yield

    @contextmanager
    def critic_context(self) -> Iterator[nn.Module]:
        """The trunk that the value head reads, with the value's adapter enabled if there is one."""
        value = self.adapters.role(VALUE) if self.adapters is not None and self.critic == "adapter" else nullcontext()
        with value:
            yield self.trunk if self.critic_trunk is None else self.critic_trunk

    def value_of(self, hidden: Tensor) -> Tensor:
        """The value head on ``[N, D]`` hidden states of the critic's trunk: ``[N]``."""
        with autocast_off(hidden.device):
            return self.value_head(hidden.to(self.value_head.weight.dtype))[:, 0].float()

    @property
    def token_head(self) -> TokenHead:
        """The distribution over tokens of a hidden state."""
        return TokenHead(self.output_layer, self.sampling, self.eos_token_id, self.transform)

    def head_logits(self, hidden: Tensor) -> Tensor:
        """The model's next-token logits of ``[N, D]`` hidden states: ``[N, V]``, before ``sampling``."""
        return self.transform(self.output_layer(hidden))

    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters of the value only: its head, and the critic's own trunk or adapter if there is one."""
        if not self.has_critic:
            return []
        if self.adapters is not None and self.critic == "adapter":
            return [*self.adapters.parameters(VALUE), *self.value_head.parameters()]
        trunk = [] if self.critic_trunk is None else list(self.critic_trunk.parameters())
        return [*trunk, *self.value_head.parameters()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the distribution over tokens: the model, or the policy's adapter."""
        return list(self.model.parameters()) if self.adapters is None else self.adapters.parameters(POLICY)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As in ``nn.Module``; with adapters only what is trained: adapters and value head."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if (adapters := self.adapters) is None:
            return state
        return {k: v for k, v in state.items() if k.startswith("value_head.") or adapters.is_trained(k)}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As in ``nn.Module``; a frozen trunk is left unchanged."""
        wrong = sorted(set(state_dict) ^ set(self.state_dict())) if self.adapters is not None and strict else []
        if wrong:
            raise RuntimeError(
                f"expected the keys of adapters and head, received others, too: {', '.join(wrong[:4])} ..."
            )
        whole = strict and self.adapters is None
        return cast("_IncompatibleKeys", super().load_state_dict(state_dict, strict=whole, assign=assign))
