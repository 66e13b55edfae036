"""Packed rows by the kernel for rows of different lengths: here a loop over them with its arguments, on a CPU."""

import copy
import inspect

import pytest
import torch

from tests.textenvs.lm.test_packed_attention import (
    ALIKE,
    ALIKE_LENGTHS,
    EVERY,
    LENGTHS,
    ROWS,
    assert_same_gradients,
    model,
    rows_alone,
)
from textenvs.lm import varlen
from textenvs.lm.packed_attention import RowLayout, use_packed_attention
from textenvs.lm.packed_forward import can_pack, hidden_states

__all__ = ["model"]


@pytest.fixture
def calls(monkeypatch):
    """The kernel's arguments ``(bounds, longest, grouped)`` of each call."""
    found = []

    def by_row(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert window_size == (-1, 0)
        assert cu_seq_q is cu_seq_k
        found.append((cu_seq_q.tolist(), (max_q, max_k), enable_gqa))
        heads, rows = query.shape[1] // key.shape[1], []
        for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
            asked, keys, values = (
                query[begin:end],
                *(each[begin:end].repeat_interleave(heads, 1) for each in (key, value)),
            )
            scores = torch.einsum("qhd,khd->hqk", asked, keys) * (scale or asked.shape[-1] ** -0.5)
            later = torch.ones(end - begin, end - begin).triu(1).bool()
            rows.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), values))
        return torch.cat(rows)

    monkeypatch.setattr(varlen, "_kernel", lambda: by_row)
    monkeypatch.setattr(varlen, "runs_on", lambda query: True)
    monkeypatch.setattr(varlen, "takes_heads", lambda query, value: True)
    return found


def test_rows_of_the_kernel_equal_each_row_alone_and_so_do_gradients(model, calls):
    twin = copy.deepcopy(model)
    use_packed_attention(model)
    assert can_pack(model.base_model)
    calls.clear()
    weights = torch.randn(18, 24, generator=torch.Generator().manual_seed(4))
    found, expected = hidden_states(model.base_model, ROWS, LENGTHS, *EVERY), rows_alone(twin.base_model)
    torch.testing.assert_close(found, expected)
    for hidden in (found, expected):
        (hidden * weights).sum().backward()
    assert_same_gradients(model.base_model, twin.base_model)
    grouped = model.config.model_type == "llama"
    assert calls == [([0, 5, 6, 15, 18], (9, 9), grouped)] * 2  # one for each of the two layers


def test_what_the_kernel_cannot_do_is_left_to_torchs_attention(calls):
    assert RowLayout(ALIKE_LENGTHS, ALIKE).bounds is None  # rows that share a prefix do not stand one behind the other
    query = torch.zeros(1, 2, 20, 4)
    bounds = RowLayout(LENGTHS).bounds
    assert bounds.dtype == torch.int32
    for other in ({"dropout": 0.1}, {"sliding_window": 4}, {"softcap": 30.0}):
        assert varlen.varlen_attention(query, query, query, bounds, 9, real=18, **other) is None
    out = varlen.varlen_attention(query, query, query, bounds, 9, real=18, dropout=0.0)
    assert out.shape == (1, 20, 2, 4)


def test_heads_that_the_kernel_does_not_take_are_left_to_torchs_attention(monkeypatch):
    """FlashAttention's limits; DeepSeek's heads, for one, have 192 and 128 numbers."""
    taken = [(8, 8), (64, 64), (80, 80), (256, 256)]
    assert all(varlen.takes_heads(*each) for each in taken)
    assert not any(varlen.takes_heads(*each) for each in [(4, 4), (20, 20), (192, 128), (264, 264), (512, 512)])
    monkeypatch.setattr(varlen, "_kernel", lambda: pytest.fail)
    monkeypatch.setattr(varlen, "runs_on", lambda query: True)
    query, value = torch.zeros(1, 2, 18, 16), torch.zeros(1, 2, 18, 8)
    assert varlen.varlen_attention(query, query, value, RowLayout(LENGTHS).bounds, 9, real=18) is None


def test_without_a_cuda_device_there_is_no_kernel_call():
    query = torch.zeros(1, 2, 18, 4, dtype=torch.bfloat16)
    assert varlen.varlen_attention(query, query, query, RowLayout(LENGTHS).bounds, 9, real=18) is None


def test_torchs_kernel_takes_these_arguments():
    module = pytest.importorskip("torch.nn.attention.varlen")
    if "enable_gqa" not in inspect.signature(module.varlen_attn).parameters:
        pytest.skip("an older torch, whose rows are unpacked")
    assert varlen._kernel() is module.varlen_attn
    inspect.signature(module.varlen_attn).bind(1, 2, 3, 4, 5, 6, 7, scale=1.0, window_size=(-1, 0), enable_gqa=True)
