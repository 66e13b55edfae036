"""Memory of a text run: planned on torch's meta device before anything is allocated, and measured afterwards."""

from __future__ import annotations

import contextlib
import copy
import resource
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.fused_logprobs import rows_at_once
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.lm.sharding import gathered_bytes, part_bytes
from textenvs.lm.packed_attention import OURS
from textenvs.lm.packed_forward import recompute_layers, trunk_forward
from textenvs.lm.sizes import sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLOAT32 = 4
SAMPLING_COPIES = 5
"""Arrays of the logits' size in sampling: logits, log-softmax, probabilities, their cumulative sum, one temporary."""


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

    @property
    def width(self) -> int:
        """Tokens of a text at full length that a pass reads."""
        return self.prompt_tokens + self.new_tokens - 1


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
    processes: int = 1
    """That share each weight (``agents.lm.sharding``)."""
    gathers: bool = False
    """The policy's weights are whole while texts are written."""


def plan(model_config: PretrainedConfig, layout: Layout, workload: Workload, *, reward: int = 0) -> dict[str, int]:
    """Bytes of each role. Weights, gradients and Adam's states are exact; activations, cache and sampling estimated.

    Update, rollout and checkpoint (copied before it is written) take turns, so the total includes the largest of the
    three. Excluded: the program, its libraries, and fragmentation. Of several processes it is the first one's part,
    which is the largest, and what is gathered at a time. The workload is of one process; ``reward`` are bytes of the
    reward models' weights.
    """
    policy = _on_meta(model_config, layout)
    critic = policy.critic_parameters()
    own = {id(parameter) for parameter in critic}
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    model = [*policy.model.parameters(), *policy.model.buffers()]
    actor = [tensor for tensor in model if id(tensor) not in own]
    critic_buffers = [] if policy.critic_trunk is None else list(policy.critic_trunk.buffers())
    size = partial(part_bytes, processes=layout.processes)
    adapter = size(policy.actor_parameters()) if layout.starts_from_adapter else 0
    adam = 2 * size(trained) + FLOAT32 * len(trained)
    roles = {
        "policy_weights": size(actor),
        "critic_weights": size([*critic, *critic_buffers]),
        "reference_weights": adapter if layout.memory == "adapters" else size(model),
        "reward_weights": reward,
        "gradients": size(trained),
        "adam_states": adam,
        **({} if layout.processes == 1 else {"gathered": gathered_bytes(policy, layout.dtype)}),
        "update_activations": activation_bytes(model_config, layout, workload),
        "rollout_cache": cache_bytes(model_config, layout.dtype, workload),
        "checkpoint_copy": size(policy.state_dict(keep_vars=layout.processes > 1).values()) + adam,
        "rollout_sampling": SAMPLING_COPIES * FLOAT32 * workload.rollout_rows * policy.vocab_size,
        "rollout_passes": pass_bytes(model_config, layout, workload),
    }
    if layout.gathers:
        roles["rollout_weights"] = num_bytes([*model, *critic])
    rollout = sum(size for name, size in roles.items() if name.startswith("rollout_"))
    turns = rollout, roles["update_activations"], roles["checkpoint_copy"]
    return roles | {"total": sum(roles.values()) - sum(turns) + max(turns)}


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct tensors; of sharded ones those of this process's part."""
    distinct = {id(tensor): tensor for tensor in tensors}.values()
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in distinct)


def activation_bytes(model_config: PretrainedConfig, layout: Layout, workload: Workload) -> int:
    """Most bytes beside weights and gradients in the backward pass of ``update_rows`` texts at full length.

    A pass with its gradients runs on the meta device, where the tensors that live at a time are counted; attention is
    counted as a kernel that keeps no scores, the output layer in a GPU's pieces.
    """
    policy = _planned(model_config, layout)
    if layout.recompute:
        recompute_layers(policy.trunk)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    at_once = rows_at_once(policy.vocab_size, torch.device("meta"))  # the third piece takes what the second took
    with LiveBytes() as live:
        passes = 1 if policy.critic in ("shared", "none") else 2
        states = [_states(policy, workload.update_rows, workload.width) for _ in range(passes)]
        chosen = [each[:, -workload.new_tokens :].flatten(0, 1)[: 2 * at_once] for each in states]
        steps = torch.zeros(len(chosen[0]), dtype=torch.int64, device="meta")
        loss = policy.token_head.logprobs_and_entropy(chosen[0], steps, steps)[0].sum()
        if policy.has_critic:
            loss = loss + policy.value_of(chosen[-1]).sum()
        loss.backward()
    return live.peak


@torch.no_grad()
def pass_bytes(model_config: PretrainedConfig, layout: Layout, workload: Workload) -> int:
    """Most bytes beside weights and cache in a pass without gradients, of as many texts as a GPU takes at once."""
    policy, rows = _planned(model_config, layout), max(1, sizes(torch.device("meta")).pass_tokens // workload.width)
    with LiveBytes() as live:
        _states(policy, min(rows, workload.rollout_rows), workload.width)
    return live.peak


def _states(policy: CausalLMPolicy, rows: int, width: int) -> Tensor:
    """Hidden states ``[rows, width, D]`` on the meta device."""
    # transformers reads the values of token ids and 2-D masks, which do not exist there.
    tokens = torch.zeros(rows, width, dtype=torch.int64, device="meta")
    mask = torch.ones(1, 1, width, width, dtype=torch.bool, device="meta")
    return trunk_forward(policy.trunk, inputs_embeds=policy.model.get_input_embeddings()(tokens), attention_mask=mask)


def cache_bytes(model_config: PretrainedConfig, dtype: torch.dtype, workload: Workload) -> int:
    """Keys and values of ``rollout_rows`` texts at full length."""
    a_row = 2 * model_config.num_hidden_layers * kv_width(model_config) * workload.width
    return int(a_row * workload.rollout_rows * dtype.itemsize)


def kv_width(model_config: PretrainedConfig) -> int:
    """Numbers of a token's key in a layer: heads times their size."""
    heads = model_config.num_attention_heads
    head_size = getattr(model_config, "head_dim", None) or model_config.hidden_size // heads
    return int((getattr(model_config, "num_key_value_heads", None) or heads) * head_size)


def _on_meta(model_config: PretrainedConfig, layout: Layout, weights: torch.dtype | None = None) -> CausalLMPolicy:
    """The policy on the meta device; ``weights`` or the layout sets its dtype, by default float32."""
    weights = weights or (layout.dtype if layout.memory == "adapters" else torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, dtype=weights)
        trunk = None
        if layout.memory == "adapters":
            trunk = AdaptedTrunk(model, layout.lora, value=layout.critic == "adapter")
        return CausalLMPolicy(model, eos_token_id=None, critic=layout.critic, adapters=trunk)


def _planned(model_config: PretrainedConfig, layout: Layout) -> CausalLMPolicy:
    """The policy on the meta device as its passes compute: in the layout's dtype, with a fused kernel's attention."""
    policy = _on_meta(copy.deepcopy(model_config), layout, weights=layout.dtype)
    if policy.model.config._attn_implementation == OURS:
        AttentionInterface.register("planned", _flash_attention)
        policy.model.set_attn_implementation("planned")
    return policy


def _flash_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    """Causal attention that saves its output and a number per query, as fused kernels do."""
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]
    return out.transpose(1, 2), None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations inside make, and that live at a time; on any device, meta too."""

    def __init__(self, counts: Callable[[Tensor], bool] = lambda tensor: True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts, self.live, self.peak = counts, 0, 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and count the storages of its results that are not those of its arguments."""
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given and self.counts(leaf):
                self._hold(leaf.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held[key] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._held.pop(key, 0)


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
