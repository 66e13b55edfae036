"""What a GPU's sizes change, on the CPU: shapes that stay, steps repeated as a graph, few waits, logits in pieces (T2,
T8, T10)."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import agents.lm.decoder as decoder
from agents.lm.fused_logprobs import linear_token_logprobs
from agents.lm.loading import autocast_of, resolved
from agents.lm.memory import LiveBytes
from agents.lm.sampling import TokenSampling, sample_tokens
from agents.recipes.rlhf.rewards import build_scorers
from agents.recipes.rlhf.task import TextTask
from agents.runs.devices import prepare_device
from tests.agents.lm.test_continuous_batching import EVEN, GROUPS, RAGGED, assert_equal, build, write
from textenvs.lm import sizes
from textenvs.lm.linear_kernels import round_weights, speed_up

STATIC = dict(static_cache=True, tokens_between_reads=8, compact_at=0.5)


def as_on_a_gpu(monkeypatch, **changed):
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(**{**STATIC, **changed}))


class GraphOnCPU(TorchDispatchMode):
    """A CUDA graph's double: operations run once while they are recorded; `replay` repeats them in the same memory."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def pool(self):
        return None


WAITS = {
    getattr(torch.ops.aten, name).default
    for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "_unique2", "unique_dim", "masked_select")
}


class Waits(TorchDispatchMode):
    """Counts operations for which the host of a GPU has to wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def counting(self, method):
        def counted(*args, **kwargs):
            self.count += 1
            return method(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) else ()
        self.count += func in WAITS or any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices
        )
        return func(*args, **(kwargs or {}))


@pytest.fixture
def graphs(monkeypatch):
    """Records graphs on the CPU; returns them."""
    made = []

    @contextmanager
    def record(graph, pool):
        made.append(graph)
        with graph:
            yield

    @contextmanager
    def stream(_):
        yield

    nothing = SimpleNamespace(wait_stream=lambda other: None)
    double = SimpleNamespace(
        Stream=lambda: nothing, current_stream=lambda: nothing, stream=stream, CUDAGraph=GraphOnCPU, graph=record
    )
    monkeypatch.setattr(decoder, "graphs_of", lambda device: double)
    return made


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("reads", [1, 5, 64])
@pytest.mark.parametrize(("prompts", "slots"), [(RAGGED, None), (GROUPS, 5), (EVEN, None)])
def test_a_cache_whose_shapes_stay_writes_what_a_growing_one_writes(kind, prompts, slots, reads, monkeypatch):
    policy = build(kind)
    expected = write(policy, prompts)
    as_on_a_gpu(monkeypatch, tokens_between_reads=reads)
    assert_equal(write(policy, prompts, max_concurrent_rows=slots), expected)


@pytest.mark.parametrize(("prompts", "slots"), [(RAGGED, None), (GROUPS, 5)])
def test_a_graph_of_a_step_writes_what_the_step_writes(prompts, slots, graphs, monkeypatch):
    policy = build("llama", sampling=TokenSampling(temperature=1.2, min_new_tokens=2))
    expected = write(policy, prompts, seed=2)
    assert not graphs
    as_on_a_gpu(monkeypatch)
    assert_equal(write(policy, prompts, seed=2, max_concurrent_rows=slots), expected)
    assert 1 <= len(graphs) <= 6  # one for each number of rows, which halves


def test_a_step_that_waits_for_the_device_runs_without_a_graph(graphs, monkeypatch):
    policy = build("llama")
    expected = write(policy)
    as_on_a_gpu(monkeypatch)
    handle = policy.trunk.register_forward_pre_hook(
        lambda _, args, kwargs: kwargs["position_ids"].max().item() and None, with_kwargs=True
    )
    with pytest.warns(UserWarning, match="decoding without CUDA graphs, slower: .*not permitted when stream is captur"):
        assert_equal(write(policy), expected)
    handle.remove()
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "sampling", [TokenSampling(), TokenSampling(top_k=5, min_new_tokens=3, allowed_tokens=(1, 2, 3, 4))]
)
def test_decoding_waits_for_the_device_once_in_many_tokens(sampling, monkeypatch):
    policy = build("llama", sampling=sampling)
    policy.trunk.config.max_position_embeddings = 10**6
    as_on_a_gpu(monkeypatch, tokens_between_reads=32)
    ends = policy.eos_token_id
    policy.eos_token_id = None if sampling.min_new_tokens == 0 else ends

    def waits(budget):
        with Waits() as counted, monkeypatch.context() as patch:
            for name in ("tolist", "numpy", "cpu"):  # which do not pass the dispatcher on a CPU
                patch.setattr(torch.Tensor, name, counted.counting(getattr(torch.Tensor, name)))
            write(policy, RAGGED, budget=budget)
        return counted.count

    few, many = waits(64), waits(64 + 320)
    assert many - few <= 320 / 32, (few, many)
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(tokens_between_reads=1))
    assert waits(64) - few >= 60  # the double sees them


def test_nan_is_found_at_the_next_read_and_stays_within_the_vocabulary(monkeypatch):
    logits = torch.full((3, 200), float("nan"))
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.0, 0.5, 0.99], dtype=torch.float64), check=False)
    assert ((tokens >= 0) & (tokens < 200)).all()
    assert logprobs.isnan().all()
    policy = build("gpt2")
    as_on_a_gpu(monkeypatch)
    with torch.no_grad():
        policy.trunk.wte.weight[1:] = float("nan")
    with pytest.raises(FloatingPointError, match="received NaN or infinity"):
        write(policy)


@pytest.mark.parametrize("budget", [1, decoder.AHEAD, decoder.AHEAD + 3])
def test_numbers_that_were_drawn_ahead_are_taken_back(budget):
    from agents.lm.sampling import uniform

    policy = build("gpt2", sampling=TokenSampling(allowed_tokens=(3,)))
    policy.trunk.config.n_positions = 10**6
    policy.trunk.wpe = torch.nn.Embedding(64, 24)
    _, state = write(policy, RAGGED, seed=5, budget=budget)
    generator = torch.Generator().manual_seed(5)
    for _ in range(budget):
        uniform(len(RAGGED), generator, torch.device("cpu"))
    assert state.equal(generator.get_state())


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [None, 3, 50])
def test_top_p_of_a_large_vocabulary_keeps_what_sorting_all_of_it_keeps(top_p, top_k, monkeypatch):
    size, rows = 3000, 64
    logits = 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(0))
    logits[:8] /= 100  # so flat that the first few do not reach it
    sampling = TokenSampling(top_p=top_p, top_k=top_k)
    small = sampling.shape(logits, 0, None)
    monkeypatch.setattr("agents.lm.sampling.LARGE", 2000)
    monkeypatch.setattr("agents.lm.sampling.RANKED", size)
    whole = sampling.shape(logits, 0, None)
    assert top_p > 0.99 or torch.equal(small, whole)  # beyond, the sum's rounding decides
    monkeypatch.setattr("agents.lm.sampling.RANKED", 100)
    assert torch.equal(sampling.shape(logits, 0, None), whole)
    assert torch.equal(sampling.shape(logits[8:], 0, None), whole[8:])


@pytest.mark.parametrize(("device", "has", "expected"), [
    ("cpu", True, "float32"), ("cuda", True, "bfloat16"), ("cuda:1", False, "float32"), ("meta", True, "float32"),
])  # fmt: skip
def test_the_dtype_is_bfloat16_on_cuda_that_has_it_and_float32_elsewhere(device, has, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert resolved("auto", device) == expected
    assert autocast_of("auto", device) == (torch.bfloat16 if expected == "bfloat16" else None)
    assert resolved("float32", device) == "float32"
    assert autocast_of("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(ValueError, match='expected "auto", "float32" or "bfloat16", received \'half\''):
        resolved("half", device)


def test_on_cuda_tf32_is_allowed_unless_float32_is_asked_for(monkeypatch):
    precisions = []
    monkeypatch.setattr("agents.runs.devices.check_device", lambda name: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    for device, dtype in (("cpu", "auto"), ("cuda", "float32"), ("cuda", "auto"), ("cuda:0", "bfloat16")):
        prepare_device(device, dtype)
    assert precisions == ["high", "high"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rounded_weights_of_a_frozen_model_give_what_autocast_gives(family):
    plain = build(family).model
    speed_up(plain)()  # torch's own layers
    for module in plain.modules():
        vars(module).pop("forward", None)
    plain.requires_grad_(False)
    rounded = copy.deepcopy(plain)
    round_weights(rounded, torch.bfloat16)
    found = []
    for model in (plain, rounded):
        model.set_attn_implementation("eager")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(model(input_ids=RAGGED[:, :1].clamp(min=0).expand(-1, 5)).logits)
    assert torch.equal(*found)
    kinds = {name: weight.dtype for name, weight in rounded.named_parameters()}
    assert any(kind == torch.bfloat16 for kind in kinds.values())
    assert all(
        kind == torch.float32 for name, kind in kinds.items() if "norm" in name or "embed" in name or "wte" in name
    )


def test_reward_models_multiply_in_the_chosen_dtype_where_the_device_is_no_cpu():
    for device, expected in (("cpu", None), ("meta", torch.bfloat16)):
        task = TextTask(device=device, dtype="bfloat16")
        (scorer,), _ = build_scorers(task, None)
        assert scorer.autocast == expected


def test_logits_of_many_states_and_a_large_vocabulary_never_exist_at_once():
    """The measure that issue counts: 64 rows of 512 tokens, 152k tokens, width 576, on a GPU's sizes."""
    size, width, tokens = 151_936, 576, 64 * 512
    hidden = torch.zeros(tokens, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.zeros(size, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with LiveBytes(lambda tensor: tensor.dim() == 2 and tensor.shape[1] == size) as live:
        taken = torch.zeros(tokens, dtype=torch.int64, device="meta")
        logprobs, entropy = linear_token_logprobs(hidden, weight, taken)
        (logprobs.sum() + 0.01 * entropy.sum()).backward()
    rows, part = sizes.GPU.logits // size, sizes.GPU.part_logits // size
    assert 2 * rows * size < live.peak <= 2 * 2 * rows * size + 4 * 4 * part * size  # bfloat16 pieces, float32 parts
    assert live.peak < 0.06 * 2 * tokens * size
