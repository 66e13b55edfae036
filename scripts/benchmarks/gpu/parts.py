"""The parts of `scripts.gpu_check`: each measures on one device and returns its figures.

The large model has Qwen2.5-0.5B's shape and random weights.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decoder import Generation
from agents.lm.generation import generate
from agents.lm.loading import autocast_of
from agents.lm.memory import Layout, PeakMemory, Workload, plan
from agents.verification.checks import Check, at_least, at_most, flat_grad, number, relative_error
from scripts.benchmarks.text.memory import write_random_model
from scripts.benchmarks.text.models import BenchSizes, write_models
from scripts.benchmarks.text.peer_environments import PEER_SCRIPT, on_demand, peer_job
from scripts.benchmarks.text.speed import OF_AN_UPDATE, our_command
from textenvs.lm import sizes, varlen

Part = Literal["equality", "decoding", "bfloat16", "generate", "update", "fsdp", "trl", "vllm"]


@dataclass(frozen=True, kw_only=True)
class GpuCheckConfig:
    """Check a GPU."""

    run_dir: str = "runs/gpu_check"
    """Folder of the parts' results, table.md and summary.json."""
    device: str = "cuda"
    """Device to check."""
    tiny: bool = False
    """Small shapes, to try the script itself on a CPU."""
    part: Part | None = None
    """Run only this part, in this process. None: all that are not there."""
    part_s: float = 120.0
    """Seconds after which a part is given up."""
    total_s: float = 480.0
    """Seconds after which no part begins."""


def build(config: GpuCheckConfig, dtype: str = "auto", *, tiny: bool = False, **options: Any) -> CausalLMPolicy:
    """A random policy on the device, whose texts end by the budget only."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(_model_config(config, tiny))
    model.to(config.device)
    return CausalLMPolicy(model, eos_token_id=None, autocast=autocast_of(dtype, config.device), **options)


def _model_config(config: GpuCheckConfig, tiny: bool = False) -> Any:
    from transformers import LlamaConfig

    shape: dict[str, Any] = dict(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14
    )
    if tiny or config.tiny:
        shape = dict(vocab_size=211, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ends: dict[str, Any] = dict(
        bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=True, max_position_embeddings=4096
    )
    return LlamaConfig(**shape, **ends, num_key_value_heads=2, initializer_range=0.05)


def _workload(config: GpuCheckConfig) -> Workload:
    rows, prompt, new = (4, 5, 6) if config.tiny else (64, 128, 256)
    return Workload(rollout_rows=rows, update_rows=max(2, rows // 8), prompt_tokens=prompt, new_tokens=new)


def _texts(config: GpuCheckConfig, policy: CausalLMPolicy, work: Workload) -> tuple[Tensor, Generation, float]:
    """Prompts, what the policy writes after them, and the seconds that it takes the second time."""
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, policy.vocab_size, (work.rollout_rows, work.prompt_tokens), generator=draw)
    prompts = prompts.to(policy.device)
    for _ in range(2):
        began, generator = _now(config), torch.Generator().manual_seed(1)
        found = generate(policy, prompts, max_new_tokens=work.new_tokens, generator=generator)
        seconds = _now(config) - began
    return prompts, found, seconds


def _figure(what: str, value: float, unit: str) -> Check:
    """A measurement without a bound."""
    return Check(what, "", f"{number(value)} {unit}", None)


def _now(config: GpuCheckConfig) -> float:
    if torch.device(config.device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def equality(config: GpuCheckConfig) -> list[Check]:
    """A small float32 model on the device beside the CPU."""
    torch.set_float32_matmul_precision("highest")
    found: list[list[Tensor]] = []
    for device in ("cpu", config.device):
        policy = build(dataclasses.replace(config, device=device), "float32", tiny=True)
        work = Workload(rollout_rows=16, update_rows=16, prompt_tokens=5, new_tokens=40)
        prompts, written, _ = _texts(config, policy, work)
        tokens = found[0][0].to(device) if found else written.completions
        judged = policy.evaluate(prompts, tokens)
        (judged.logprobs.sum() + judged.entropy.sum()).backward()
        found.append([each.detach().cpu() for each in (written.completions, judged.logprobs, flat_grad(policy.model))])
    (tokens, logprobs, gradient), (theirs, other, others) = found
    return [
        at_least("tokens written as on the CPU", float((tokens == theirs).float().mean()), 0.98),
        at_most("log-probs beside the CPU's", float((logprobs - other).abs().max()), 1e-4, " nats"),
        at_most("gradient beside the CPU's", relative_error(others, gradient), 1e-4),
    ]


def decoding(config: GpuCheckConfig) -> list[Check]:
    """Cached decoding, with shapes that stay and with growing ones, beside a full forward pass; float32."""
    torch.set_float32_matmul_precision("highest")
    policy = build(config, "float32")
    prompts, written, _ = _texts(config, policy, _workload(config))
    full = policy.completion_logprobs(prompts, written.completions)
    sizes.GPU = sizes.GPU._replace(static_cache=False, tokens_between_reads=1)
    _, growing, _ = _texts(config, policy, _workload(config))
    same = float((growing.completions == written.completions).float().mean())
    return [
        at_most("decoding beside full passes", float((written.logprobs - full).abs().max()), 2e-3, " nats"),
        at_least("tokens by graph as by a growing cache", same, 0.95),
    ]


def bfloat16(config: GpuCheckConfig) -> list[Check]:
    """What bfloat16 costs: the sampler's log-probs beside the trainer's, and the trainer's beside float32's."""
    policy = build(config, "bfloat16")
    prompts, written, _ = _texts(config, policy, _workload(config))
    trained = policy.completion_logprobs(prompts, written.completions)
    with patch.object(varlen, "runs_on", return_value=False):
        unpacked = policy.completion_logprobs(prompts, written.completions)
    policy.autocast = None
    exact = policy.completion_logprobs(prompts, written.completions)
    drift, between = (written.logprobs - trained).abs(), float((trained - unpacked).abs().mean())
    return [
        at_most("bfloat16: sampler beside trainer, mean", float(drift.mean()), 0.05, " nats"),
        _figure("bfloat16: sampler beside trainer, largest", float(drift.max()), "nats"),
        at_most("bfloat16: torch's varlen kernel beside rows apart, mean", between, 0.02, " nats"),
        at_most("bfloat16 beside float32, mean", float((trained - exact).abs().mean()), 0.05, " nats"),
    ]


def generating(config: GpuCheckConfig) -> list[Check]:
    """Tokens a second of our decoder and of transformers' ``generate`` with the same weights."""
    work, policy = _workload(config), build(config)
    prompts, _, seconds = _texts(config, policy, work)
    model: Any = policy.model
    model.to(policy.autocast or torch.float32)
    options = dict(do_sample=True, top_k=0, min_new_tokens=work.new_tokens, max_new_tokens=work.new_tokens)
    for _ in range(2):
        began = _now(config)
        model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)
        theirs = _now(config) - began
    tokens = work.rollout_rows * work.new_tokens
    return [
        _figure("written by ours", tokens / seconds, "tokens/s"),
        _figure("written by transformers", tokens / theirs, "tokens/s"),
        at_least("ours beside transformers", theirs / seconds, 0.0 if config.tiny else 1.0),
    ]


def updating(config: GpuCheckConfig) -> list[Check]:
    """An update's products beside the card's, and its memory beside the plan."""
    work, peak = _workload(config), PeakMemory(config.device)
    policy = build(config)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    prompts, written, _ = _texts(config, policy, work)
    for _ in range(2):
        began = _now(config)
        optimizer.zero_grad()
        for begin in range(0, work.rollout_rows, work.update_rows):
            rows = slice(begin, begin + work.update_rows)
            judged = policy.evaluate(prompts[rows], written.completions[rows])
            (judged.logprobs.mean() + judged.values.mean()).backward()
        optimizer.step()
        seconds = _now(config) - began
    measured, hidden = peak.bytes(), _model_config(config).hidden_size
    layout = Layout(memory="shared", critic="shared", dtype=policy.autocast or torch.float32)
    planned = plan(_model_config(config), layout, work)
    expected = planned["total"] - planned["reference_weights"]
    head = policy.vocab_size * hidden
    trunk = sum(each.numel() for each in policy.model.parameters()) - head
    flops = 6 * work.rollout_rows * (work.width * trunk + work.new_tokens * head)
    size, dtype = (256 if config.tiny else 8192), policy.autocast or torch.float32
    one = torch.randn(size, size, device=config.device, dtype=dtype)
    for _ in range(4):
        began = _now(config)
        one @ one
        card = 2 * size**3 / (_now(config) - began)
    return [
        _figure("update", seconds, "s"),
        _figure("the card's product", card / 1e12, "TFLOP/s"),
        at_least("an update's products beside it", flops / seconds / card, 0.0 if config.tiny else 0.25),
        _figure("peak memory", measured / 2**20, "MiB"),
        at_most("peak memory beside the plan", measured / expected, math.inf if config.tiny else 1.1),
    ]


def fsdp(config: GpuCheckConfig) -> list[Check]:
    """FSDP2 with one rank beside no FSDP: loss of a pass and norm of its gradient."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    backend = "nccl" if torch.device(config.device).type == "cuda" else "gloo"
    store = Path(config.run_dir).resolve() / "fsdp_store"
    store.unlink(missing_ok=True)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    norms = []
    for sharded in (False, True):
        model: Any = build(config, "float32", tiny=True).model
        tokens = torch.arange(40, device=model.device).view(2, 20)
        if sharded:
            for each in (*model.model.layers, model):
                fully_shard(each)
        model(input_ids=tokens, labels=tokens).loss.backward()
        grads = [getattr(each.grad, "_local_tensor", each.grad) for each in model.parameters()]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
    dist.destroy_process_group()
    return [at_most("FSDP2, one rank: norm of the gradient", abs(norms[1] / norms[0] - 1), 1e-4)]


def trl(config: GpuCheckConfig) -> list[Check]:
    """GRPO of ours and of TRL, if it is installed: response tokens a second of whole updates."""
    tiny = dict(layers=1, width=32, vocabulary=99, rows=8, new_tokens=8, minibatches=2, epochs=1, group_size=4)
    large = dict(layers=24, width=1280, heads=20, vocabulary=50257, positions=512, prompt_tokens=128, new_tokens=256)
    shape = BenchSizes(**(tiny if config.tiny else large | {"epochs": 1}))
    folder = Path(config.run_dir) / "trl"
    models = write_models(folder / "models", shape, mean_length=None)
    ours = [*our_command(models, shape, threads=4), "--algorithm", "grpo", "--device", config.device, "--dtype", "auto"]
    commands = {"ours": ours}
    if find_spec("trl"):
        of_update = {name: getattr(shape, name) for name in OF_AN_UPDATE}
        job = peer_job(folder, "grpo", models=models, on_demand=True, device=config.device, **of_update)
        commands["TRL"] = [sys.executable, "-I", str(PEER_SCRIPT), str(job)]
    rates = {}
    for side, command in commands.items():
        with on_demand(command, folder / f"{side}.log", threads=4) as update:
            update()
            figures = update()
        rates[side] = figures["response_tokens"] / figures["seconds"]
    found = [_figure(f"GRPO by {side}", rate, "response tokens/s") for side, rate in rates.items()]
    if "TRL" in rates:
        found.append(at_least("GRPO: ours beside TRL's", rates["ours"] / rates["TRL"], 2.0))
    return found


def vllm(config: GpuCheckConfig) -> list[Check]:
    """vLLM's log-probs of what it samples beside ours, if it is installed; no figure if not."""
    if not find_spec("vllm"):
        return []
    from vllm import LLM, SamplingParams

    folder = write_random_model(Path(config.run_dir) / "vllm_model")
    engine = LLM(model=str(folder), dtype="float32", enforce_eager=True, gpu_memory_utilization=0.3, max_model_len=512)
    prompts = torch.arange(1, 8 * 16 + 1).view(8, 16)
    asked = SamplingParams(temperature=1.0, max_tokens=64, ignore_eos=True, logprobs=0, seed=0)
    rows = [{"prompt_token_ids": row} for row in prompts.tolist()]
    written = [each.outputs[0] for each in engine.generate(rows, asked)]
    tokens = torch.tensor([list(each.token_ids) for each in written])
    steps = [zip(each.logprobs, each.token_ids, strict=True) for each in written]
    theirs = torch.tensor([[step[token].logprob for step, token in row] for row in steps])
    policy = CausalLMPolicy.from_pretrained(folder, critic="none").to(config.device)
    ours = policy.completion_logprobs(prompts.to(config.device), tokens.to(config.device)).cpu()
    difference = float((ours - theirs).abs().mean())
    return [at_most("vLLM's log-probs beside ours, float32, mean", difference, 1e-3, " nats")]


PARTS: dict[Part, Callable[[GpuCheckConfig], list[Check]]] = {
    "equality": equality, "decoding": decoding, "bfloat16": bfloat16, "generate": generating, "update": updating,
    "fsdp": fsdp, "trl": trl, "vllm": vllm,
}  # fmt: skip
