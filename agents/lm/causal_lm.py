"""A causal language model of transformers as a policy: one forward pass evaluates all tokens of a row.

State: prompt and completion so far. Action: the next token id. The value head reads the policy's own trunk
(``critic="shared"``), a copy of it (``critic="separate"``), the same trunk under an adapter of the value's own
(``critic="adapter"``, see ``agents.lm.lora``), or does not exist (``"none"``). Generation with a cache is in
``agents.lm.generation``.

Rows are packed before they meet the model: prompt and completion without a hole between them, padding to the right. In
a causal model nothing real sees what is to its right, so padding needs no attention mask and cannot matter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.interfaces import Evaluation
from agents.lm.decision_states import Decisions, spread, states_at_ends
from agents.lm.lora import POLICY, VALUE, AdaptedTrunk
from agents.lm.model_checks import check_head, end_of_text
from agents.lm.sampling import TokenSampling, sample_tokens, uniform
from agents.lm.token_head import TokenHead
from textenvs.lm.fast_paths import accelerate
from textenvs.lm.kv_cache import check_has_cache
from textenvs.lm.packed_forward import compile_trunk, hidden_states, recompute_layers
from textenvs.tokens.rows import PAD


class CausalLMPolicy(nn.Module):
    """A causal LM with a scalar value head; every model inside stays in evaluation mode, so dropout is off.

    Args:
        model: a ``transformers`` causal LM of attention layers with a key-value cache, whose logits are its output
            embedding of its trunk's last hidden state.
        eos_token_id: the token that ends a completion; "model" takes the model's own, None: only the budget ends one.
        critic: "shared", the value head reads the policy's trunk; "separate", it reads a copy that is trained apart;
            "adapter", it reads the same trunk with the value's adapter on; "none", there is no value head, for
            algorithms that do without.
        sampling: how logits become the distribution that acts.
        adapters: around ``model``; its own weights are then frozen. None: there are none, and all weights are trained.
        role: whose adapter is on while this policy acts; None: the trunk alone.
        autocast: the matrix products' type, bfloat16 for instance; log-softmax and values stay in float32. None: the
            weights' own.
        recompute: keep each layer's input only and compute the rest again in the backward pass.
        compile: run the passes over whole rows (update, reference, values; not cached decoding) through torch.compile.

    Raises:
        ValueError: for an unknown ``critic``, one that has no adapter, a model without end-of-text token or key-value
            cache, tokens beyond its vocabulary, or one that treats its logits further (soft caps, scaling), which would
            go unseen here.
    """

    keeps_rows = True

    def __init__(
        self,
        model: Any,
        *,
        eos_token_id: int | str | None = "model",
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
            raise ValueError(f'critic must be "shared", "separate", "adapter" or "none", got {critic!r}')
        if critic == "adapter" and (adapters is None or VALUE not in adapters.trained):
            raise ValueError('critic "adapter" needs adapters with one for the value: AdaptedTrunk(model)')
        check_has_cache(model)
        self.model = model
        self.adapters, self.role, self.autocast = adapters, role, autocast
        self.critic = critic
        self.sampling = TokenSampling() if sampling is None else sampling
        self.eos_token_id: int | None = end_of_text(model) if isinstance(eos_token_id, str) else eos_token_id
        head = model.get_output_embeddings()
        self.vocab_size = int(head.weight.shape[0])
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is not in the vocabulary [0, {self.vocab_size})")
        self.sampling.check_vocabulary(self.vocab_size)
        accelerate(model)
        if recompute:
            recompute_layers(model.base_model, nullcontext if adapters is None else adapters.current)
        if compile:
            compile_trunk(model.base_model)
        self.critic_trunk = copy.deepcopy(model.base_model) if critic == "separate" else None
        self.has_critic = critic != "none"
        if self.has_critic:
            self.value_head = nn.Linear(int(head.weight.shape[1]), 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(device=head.weight.device)
        self.eval()
        if self.device.type != "meta":
            check_head(self)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> CausalLMPolicy:
        """The policy that starts as the model at ``path`` (directory or name); ``options`` as in the constructor."""
        from transformers import AutoModelForCausalLM

        return cls(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), **options)

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Always evaluation mode: dropout would make the policy that is trained another one than the one that acted."""
        return super().train(False)

    @property
    def max_positions(self) -> int | None:
        """Longest row in tokens that the model has positions for; None if it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_output_embeddings().weight.device

    def evaluate(
        self, observations: Tensor, actions: Tensor, mask: Tensor | None = None, reference: Any = None
    ) -> Evaluation:
        """Log-probabilities, entropies and values of all tokens of a row in one forward pass, with gradient.

        Args:
            observations: ``[B, P]`` prompts, right-padded with PAD.
            actions: ``[B, T]`` completions, right-padded with PAD.
            mask: ``[B, T]`` True on tokens to learn from; the others are context where they are not PAD. None: all that
                is not PAD.
            reference: another such policy, to have the exact KL to its distribution in every state, too.

        Returns:
            ``[B, T]`` each, 0 where ``mask`` is False; values are 0 without a critic.
        """
        mask = actions != PAD if mask is None else mask
        decisions = Decisions.find(observations, actions, mask)
        ref_hidden = None
        if reference is not None:
            with torch.no_grad(), reference.acting():
                ref_hidden = decisions.states(reference.model.base_model)
        with self.acting():
            hidden = critic_hidden = decisions.states(self.model.base_model)
            logprobs, entropy = self.token_head.logprobs_and_entropy(hidden, decisions.tokens, decisions.steps)
            if self.critic in ("separate", "adapter"):
                with self._critic_trunk_on() as trunk:
                    critic_hidden = decisions.states(trunk)
            values = self.value_of(critic_hidden) if self.has_critic else torch.zeros_like(logprobs)
            kl = None
            if ref_hidden is not None:
                head = reference.token_head
                kl = self.token_head.exact_kl(hidden, decisions.tokens, decisions.steps, head, ref_hidden)
        columns = [None if flat is None else spread(flat, mask) for flat in (logprobs, entropy, values, kl)]
        return Evaluation(*columns)  # type: ignore[arg-type]

    def row_logprobs(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities of tokens anywhere in whole rows, each given what is before it, in one pass with gradient.

        Args:
            rows: ``[B, W]`` token ids, right-padded with PAD.
            mask: ``[B, W]`` True on the tokens to judge; never on a row's first one, which nothing precedes.

        Returns:
            ``[N]`` nats, of the tokens that ``mask`` selects, row after row.
        """
        row, column = mask.nonzero(as_tuple=True)
        if bool((column == 0).any()):
            raise ValueError("the first token of a row cannot be judged: there is no state before it")
        with self.acting():
            hidden = hidden_states(self.model.base_model, rows[:, :-1], (rows != PAD).sum(1) - 1, row, column - 1)
            logprobs, _ = self.token_head.logprobs_and_entropy(hidden, rows[row, column], column)
        return logprobs

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One token for each state, and its log-probability.

        Args:
            observations: ``[B, L]`` prompt and tokens so far, right-padded with PAD.
            deterministic: take the likeliest token.
            generator: of the draws; one uniform number a row.

        Raises:
            ValueError: if the policy has ``min_new_tokens``: the state does not tell prompt from completion, so the
                distribution is not known here. Use ``agents.lm.generation.generate``.
        """
        if self.sampling.min_new_tokens > 0:
            raise ValueError("min_new_tokens needs to know where the completion began: generate whole rows instead")
        with self.acting():
            hidden = states_at_ends(self.model.base_model, observations)
            logits = self.sampling.shape(self.head_logits(hidden), 0, self.eos_token_id)
        noise = None if deterministic else uniform(observations.shape[0], generator, logits.device)
        return sample_tokens(logits, noise)

    @torch.no_grad()
    def values_along(self, observations: Tensor, actions: Tensor) -> Tensor:
        """V of the state before each token of whole rows; the critic alone runs.

        Args:
            observations: ``[B, P]`` prompts, right-padded with PAD.
            actions: ``[B, T]`` completions, right-padded with PAD.

        Returns:
            ``[B, T]`` reward units, 0 on PAD.
        """
        mask = actions != PAD
        decisions = Decisions.find(observations, actions, mask)
        with self.acting(), self._critic_trunk_on() as trunk:
            return spread(self.value_of(decisions.states(trunk)), mask)

    @torch.no_grad()
    def logprobs_along(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log-probability of each token of whole rows: ``[B, T]`` nats, 0 on PAD; arguments as in ``values_along``.

        Without gradient, entropies and values: what a reference is asked for.
        """
        mask = actions != PAD
        decisions = Decisions.find(observations, actions, mask)
        with self.acting():
            hidden = decisions.states(self.model.base_model)
            return spread(self.token_head.logprobs_and_entropy(hidden, decisions.tokens, decisions.steps)[0], mask)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """V of each state: ``[B, L]`` right-padded with PAD to ``[B]``, reward units."""
        with self.acting(), self._critic_trunk_on() as trunk:
            return self.value_of(states_at_ends(trunk, observations))

    @contextmanager
    def acting(self) -> Iterator[None]:
        """The policy's adapter and number type are on inside; everything that runs the model does it in here."""
        with ExitStack() as on:
            if self.adapters is not None:
                on.enter_context(self.adapters.role(self.role))
            if self.autocast is not None:
                on.enter_context(torch.autocast(self.device.type, dtype=self.autocast))
            yield

    @contextmanager
    def _critic_trunk_on(self) -> Iterator[Any]:
        """The trunk that the value head reads, with the value's adapter on inside if it has one."""
        value = self.adapters.role(VALUE) if self.adapters is not None and self.critic == "adapter" else nullcontext()
        with value:
            yield self.model.base_model if self.critic_trunk is None else self.critic_trunk

    def value_of(self, hidden: Tensor) -> Tensor:
        """The value head on ``[N, D]`` hidden states of the critic's trunk: ``[N]``."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.to(self.value_head.weight.dtype))[:, 0].float()

    @property
    def token_head(self) -> TokenHead:
        """What makes a distribution over tokens of a hidden state."""
        return TokenHead(self.model.get_output_embeddings(), self.sampling, self.eos_token_id)

    def head_logits(self, hidden: Tensor) -> Tensor:
        """The model's next-token logits of ``[N, D]`` hidden states: ``[N, V]``, unshaped."""
        return self.model.get_output_embeddings()(hidden)

    def critic_parameters(self) -> list[nn.Parameter]:
        """What only the value depends on: the head, and the critic's own trunk or adapter if it has one."""
        if not self.has_critic:
            return []
        if self.adapters is not None and self.critic == "adapter":
            return [*self.adapters.parameters(VALUE), *self.value_head.parameters()]
        trunk = [] if self.critic_trunk is None else list(self.critic_trunk.parameters())
        return [*trunk, *self.value_head.parameters()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """What the distribution over tokens depends on and training may change: the model, or the policy's adapter."""
        return list(self.model.parameters()) if self.adapters is None else self.adapters.parameters(POLICY)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As in ``nn.Module``; over a frozen trunk only what is trained: adapters and head."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if self.adapters is None:
            return state
        return {name: value for name, value in state.items() if self._learns(name)}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in ``nn.Module``; a frozen trunk stays as it is."""
        if self.adapters is not None and strict:
            wrong = sorted(set(state_dict) ^ set(self.state_dict()))
            if wrong:
                raise RuntimeError(f"the state's adapters and head are not this policy's: {', '.join(wrong[:4])} ...")
        return super().load_state_dict(state_dict, strict=strict and self.adapters is None, assign=assign)

    def _learns(self, name: str) -> bool:
        return name.startswith("value_head.") or self.adapters is None or self.adapters.learns(name)
