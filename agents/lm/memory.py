"""Memory of a text run: planned on torch's meta device before anything is allocated, and measured afterwards."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.lm.token_head import logits_at_once

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLOAT32 = 4
LOGITS_COPIES = 4
"""Arrays of the logits' size in the update: logits, log-softmax, probabilities, gradient."""
SAMPLING_COPIES = 5
"""The same in sampling: logits, log-softmax, probabilities, their cumulative sum, one temporary."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The shapes that memory depends on."""

    rollout_rows: int
    """Texts generated at a time."""
    update_rows: int
    """Texts in one backward pass."""
    prompt_tokens: int
    """Of the longest prompt."""
    new_tokens: int
    """Budget of a completion."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the models share weights; see ``agents.recipes.rlhf.config``."""

    memory: str
    """"full", "shared" or "adapters"."""
    critic: str
    """``CausalLMPolicy.critic``."""
    lora: LoraOptions = LoraOptions()  # noqa: RUF009 (frozen)
    """Of the adapters."""
    starts_from_adapter: bool = False
    """The reference is an adapter, too."""
    dtype: torch.dtype = torch.float32
    """Of matrix products, and of the trunk that adapters share."""
    recompute: bool = False
    """Layers are recomputed in the backward pass."""


def plan(model_config: PretrainedConfig, layout: Layout, workload: Workload, *, reward: int = 0) -> dict[str, int]:
    """Bytes of each role. Weights, gradients and Adam's states are exact; activations, cache and sampling estimated.

    Update, rollout and checkpoint (copied before it is written) take turns, so the total includes the largest of the
    three. Excluded: the program, its libraries, and fragmentation.

    Args:
        model_config: of a causal LM.
        layout: how the models share weights.
        workload: the run's shapes.
        reward: bytes of the reward models' weights.
    """
    policy = _on_meta(model_config, layout)
    critic = policy.critic_parameters()
    own = {id(parameter) for parameter in critic}
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    model = [*policy.model.parameters(), *policy.model.buffers()]
    actor = [tensor for tensor in model if id(tensor) not in own]
    critic_buffers = [] if policy.critic_trunk is None else list(policy.critic_trunk.buffers())
    adapter = num_bytes(policy.actor_parameters()) if layout.starts_from_adapter else 0
    adam = 2 * num_bytes(trained) + FLOAT32 * len(trained)
    roles = {
        "policy_weights": num_bytes(actor),
        "critic_weights": num_bytes([*critic, *critic_buffers]),
        "reference_weights": adapter if layout.memory == "adapters" else num_bytes(model),
        "reward_weights": reward,
        "gradients": num_bytes(trained),
        "adam_states": adam,
        "update_activations": activation_bytes(model_config, layout, workload),
        "rollout_cache": cache_bytes(model_config, layout.dtype, workload),
        "checkpoint_copy": num_bytes(policy.state_dict().values()) + adam,
        "rollout_sampling": SAMPLING_COPIES * FLOAT32 * workload.rollout_rows * policy.vocab_size,
    }
    rollout = roles["rollout_cache"] + roles["rollout_sampling"]
    turns = rollout, roles["update_activations"], roles["checkpoint_copy"]
    return roles | {"total": sum(roles.values()) - sum(turns) + max(turns)}


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct tensors; of sharded ones those of this process's part."""
    distinct = {id(tensor): tensor for tensor in tensors}.values()
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in distinct)


def activation_bytes(model_config: PretrainedConfig, layout: Layout, workload: Workload) -> int:
    """Estimate of the activations of ``update_rows`` texts at full length for one backward pass, and their logits.

    The trunk runs on the meta device, which shows the sizes of what autograd would save.
    """
    width = workload.prompt_tokens + workload.new_tokens - 1
    policy = _on_meta(model_config, layout, weights=layout.dtype)
    tokens = torch.zeros(workload.update_rows, width, dtype=torch.int64, device="meta")
    passes = 1 if policy.critic in ("shared", "none") else 2
    kept = passes * _saved_bytes(policy, tokens)
    if layout.recompute:
        layers = model_config.num_hidden_layers
        inputs = tokens.numel() * model_config.hidden_size * layout.dtype.itemsize
        kept = passes * layers * inputs + kept // (passes * layers)
    logits = min(workload.update_rows * workload.new_tokens * policy.vocab_size, logits_at_once(policy.vocab_size))
    return kept + LOGITS_COPIES * FLOAT32 * logits


def cache_bytes(model_config: PretrainedConfig, dtype: torch.dtype, workload: Workload) -> int:
    """Keys and values of ``rollout_rows`` texts at full length."""
    heads = model_config.num_attention_heads
    head_size = getattr(model_config, "head_dim", None) or model_config.hidden_size // heads
    kv_heads = getattr(model_config, "num_key_value_heads", None) or heads
    columns = workload.prompt_tokens + workload.new_tokens - 1
    a_row = 2 * model_config.num_hidden_layers * kv_heads * head_size * columns
    return int(a_row * workload.rollout_rows * dtype.itemsize)


def _on_meta(model_config: PretrainedConfig, layout: Layout, weights: torch.dtype | None = None) -> CausalLMPolicy:
    """The policy on the meta device; ``weights`` or the layout sets its dtype, by default float32."""
    weights = weights or (layout.dtype if layout.memory == "adapters" else torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, dtype=weights)
        trunk = None
        if layout.memory == "adapters":
            trunk = AdaptedTrunk(model, layout.lora, value=layout.critic == "adapter")
        return CausalLMPolicy(model, eos_token_id=None, critic=layout.critic, adapters=trunk)


def _saved_bytes(policy: CausalLMPolicy, tokens: Tensor) -> int:
    weights = {parameter.untyped_storage()._cdata for parameter in policy.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # transformers reads the values of token ids and 2-D masks, which do not exist on the meta device.
        embedded = policy.model.get_input_embeddings()(tokens)
        mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
        hidden = policy.trunk(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
    total = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)
    return total + hidden.nbytes


class PeakMemory:
    """Peak memory of this process since construction.

    On a GPU, of torch's allocations; otherwise of resident memory beyond the start. Where the kernel does not let the
    peak be reset, it is 0 if an earlier peak was not exceeded.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        _reset_peak()
        self.start = resident_bytes()
        self._before = peak_resident_bytes()

    def bytes(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = peak_resident_bytes()
        # The kernel counts the two separately; the peak may lag by a few pages.
        return max(peak - self.start, 0) if peak > self._before else 0


def peak_resident_bytes() -> int:
    """The process's peak resident memory."""
    # getrusage's peak also covers the process that started this one, so it comes second.
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """The process's current resident memory; the peak on systems without ``/proc``."""
    return _status("VmRSS") or peak_resident_bytes()


def _status(key: str) -> int:
    """Bytes that Linux states for this process, or 0."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _reset_peak() -> None:
    # "5" resets the peak of resident memory: man 5 proc_pid_clear_refs.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def held_bytes(policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Actual bytes of a policy and its optimizer: weights, gradients, Adam's states."""
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return {
        "weights": num_bytes([*policy.parameters(), *policy.buffers()]),
        "gradients": num_bytes(p.grad for p in policy.parameters() if p.grad is not None),
        "adam_states": num_bytes(states),
    }
