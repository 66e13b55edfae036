"""Bytes that were planned on the meta device are the bytes that real tensors take."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, LlamaConfig

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.lm.memory import (
    Layout,
    Workload,
    activation_bytes,
    cache_bytes,
    held_bytes,
    num_bytes,
    plan,
)
from textenvs.lm.kv_cache import new_cache
from textenvs.lm.linear_kernels import cache_keyword

V = 37
IDS = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0, vocab_size=V)
CONFIGS = {
    "gpt2": GPT2Config(n_positions=40, n_embd=24, n_layer=2, n_head=4, **IDS),
    "llama": LlamaConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=40, **IDS,
    ),
}  # fmt: skip
WORK = Workload(rollout_rows=6, update_rows=3, prompt_tokens=5, new_tokens=7)
LORA = LoraOptions(rank=3)
LAYOUTS = {
    "full": Layout(memory="full", critic="separate"),
    "shared": Layout(memory="shared", critic="shared"),
    "adapters": Layout(memory="adapters", critic="adapter", lora=LORA),
    "adapters, shared critic": Layout(memory="adapters", critic="shared", lora=LORA),
    "adapters, bfloat16": Layout(memory="adapters", critic="adapter", lora=LORA, dtype=torch.bfloat16),
}


@pytest.fixture(params=list(CONFIGS))
def config(request):
    return CONFIGS[request.param]


def real(config, layout):
    """Policy and optimizer after one step; the reference's weights."""
    from transformers import AutoModelForCausalLM

    build = lambda: AutoModelForCausalLM.from_config(config, dtype=layout.dtype)  # noqa: E731
    model = build()
    trunk = None
    if layout.memory == "adapters":
        trunk = AdaptedTrunk(model, layout.lora, value=layout.critic == "adapter")
    policy = CausalLMPolicy(model, critic=layout.critic, adapters=trunk)
    torch.nn.init.normal_(policy.value_head.weight)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], fused=True)
    judged = policy.evaluate(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.long))
    (judged.logprobs.sum() + judged.values.sum()).backward()
    optimizer.step()
    other = [] if trunk is not None else build()
    reference = 0 if trunk is not None else num_bytes([*other.parameters(), *other.buffers()])
    return policy, optimizer, reference


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_planned_weights_gradients_and_adam_states_are_what_real_tensors_take(config, name):
    planned = plan(config, LAYOUTS[name], WORK, reward=11)
    policy, optimizer, reference = real(config, LAYOUTS[name])
    held = held_bytes(policy, optimizer)
    assert planned["policy_weights"] + planned["critic_weights"] == held["weights"]
    assert planned["gradients"] == held["gradients"]
    assert planned["adam_states"] == held["adam_states"]
    assert planned["reference_weights"] == reference
    assert planned["reward_weights"] == 11


@pytest.mark.parametrize("layout", [LAYOUTS["shared"], LAYOUTS["adapters"]], ids=["shared", "adapters"])
def test_planned_activations_are_near_what_autograd_keeps(config, layout):
    policy, _, _ = real(config, layout)
    weights = {p.untyped_storage()._cdata for p in policy.parameters()}
    kept = {}

    def keep(tensor):
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ones = lambda width: torch.ones(3, width, dtype=torch.long)  # noqa: E731
        held = policy.evaluate(ones(5), ones(7))
    assert held.logprobs.requires_grad
    found = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)
    planned = activation_bytes(config, layout, WORK)
    assert 0.7 * found < planned < 1.5 * found


def test_recomputation_keeps_less(config):
    config = copy.deepcopy(config)
    config.num_hidden_layers = 8
    whole = activation_bytes(config, LAYOUTS["shared"], WORK)
    assert activation_bytes(config, Layout(memory="shared", critic="shared", recompute=True), WORK) < whole


def test_planned_cache_is_the_cache_that_decoding_allocates(config):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config).eval()
    cache = new_cache(
        model.base_model, max_concurrent_rows=WORK.rollout_rows, capacity=WORK.prompt_tokens + WORK.new_tokens - 1
    )
    cache.expect(torch.arange(WORK.rollout_rows), 5)
    tokens = torch.ones(WORK.rollout_rows, 5, dtype=torch.long)
    model(input_ids=tokens, use_cache=True, **{cache_keyword(model): cache})
    assert cache_bytes(config, torch.float32, WORK) == sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)


@pytest.mark.parametrize("name", ["full", "adapters"])
def test_the_total_holds_the_largest_of_update_rollout_and_checkpoint(config, name):
    planned = plan(config, LAYOUTS[name], WORK)
    rollout = planned["rollout_cache"] + planned["rollout_sampling"] + planned["rollout_passes"]
    steady = sum(planned[name] for name in planned if name.endswith("weights"))
    steady += planned["gradients"] + planned["adam_states"]
    assert planned["total"] == steady + max(rollout, planned["update_activations"], planned["checkpoint_copy"])


@pytest.mark.parametrize("name", ["shared", "adapters"])
def test_planned_checkpoint_is_what_is_written_to_disk(config, name, tmp_path):
    from agents.runs import checkpoint

    policy, optimizer, _ = real(config, LAYOUTS[name])
    path = checkpoint.save(tmp_path / "c", {"p": dict(policy.state_dict()), "o": optimizer.state_dict()})
    planned = plan(config, LAYOUTS[name], WORK)["checkpoint_copy"]
    assert planned == sum(tensor.nbytes for tensor in load_file(path).values())


HELD = """
from pathlib import Path

import torch
from agents.lm.memory import PeakMemory, resident_bytes

try:
    Path("/proc/self/clear_refs").write_text("5")
except OSError:
    pass  # this kernel keeps an earlier peak
else:
    larger = torch.ones(60 * 2**20)
    del larger
peak, size = PeakMemory(), 120 * 2**20
block = torch.ones(size // 4)
assert resident_bytes() > peak.start + 0.9 * size
del block
assert 0.9 * size < peak.bytes() < 1.2 * size, peak.bytes()
"""


def test_peak_memory_sees_what_was_held_and_given_back():
    """Neither an earlier, higher peak of the process nor one of the process that started it counts."""
    held = torch.ones(60 * 2**20)
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=False)
    assert len(held)
    assert done.returncode == 0, done.stderr


def test_several_processes_hold_a_part_each_and_gather_a_layer_at_a_time():
    """By hand: a Llama of 2 layers of 24 x 24 x 2 + 24 x 12 x 2 + 3 x 24 x 32 + 2 x 24 weights."""
    layout = Layout(memory="shared", critic="shared", dtype=torch.bfloat16)
    alone, parts = (plan(CONFIGS["llama"], replace(layout, processes=n), WORK) for n in (1, 4))
    layer = 2 * 24 * 24 + 2 * 24 * 12 + 3 * 24 * 32 + 2 * 24
    rest = 2 * V * 24 + 24 + 24 + 1  # embeddings, output, last norm, value head and its bias
    rows_up = 2 * (10 * 24) + 6 + 24 + 1  # 37 rows in parts of 10; the value head has one row
    buffers = alone["policy_weights"] + alone["critic_weights"] - 4 * (2 * layer + rest)
    assert parts["policy_weights"] + parts["critic_weights"] == 4 * (2 * layer / 4 + rows_up) + buffers
    assert parts["gathered"] == 2 * 4 * rest + (2 * 2 + 4) * layer
    assert parts["gradients"] == 4 * (2 * layer / 4 + rows_up)
    assert "gathered" not in alone
    whole = plan(CONFIGS["llama"], replace(layout, processes=4, gathers=True), WORK)
    assert whole["rollout_weights"] == alone["policy_weights"] + alone["critic_weights"]
