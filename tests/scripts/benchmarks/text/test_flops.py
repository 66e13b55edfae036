import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.benchmarks.text.flops import (
    Transformer,
    causal_pairs,
    fastest_rate,
    forward_flops,
    matmul_rate,
    update_flops,
    update_shapes,
)

SHAPE = Transformer(layers=2, width=16, vocabulary=37)


@pytest.fixture
def gpt2():
    config = GPT2Config(vocab_size=37, n_positions=16, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager")
    return GPT2LMHeadModel(config).eval()


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_forward_pass_takes_what_torch_counts(gpt2):
    rows, length = 3, 7
    tokens = torch.randint(0, 37, (rows, length))
    # torch's count is of whole squares of attention: `length` keys for every query
    ours = forward_flops(SHAPE, tokens=rows * length, pairs=rows * length**2, predictions=rows * length)
    assert counted(lambda: gpt2(tokens)) == ours


def test_only_the_logits_that_are_asked_for_count(gpt2):
    tokens = torch.randint(0, 37, (3, 7))
    ours = forward_flops(SHAPE, tokens=21, pairs=3 * 49, predictions=3 * 2)
    assert counted(lambda: gpt2(tokens, logits_to_keep=2)) == ours


def test_a_backward_pass_takes_twice_the_forward_pass(gpt2):
    tokens = torch.randint(0, 37, (3, 7))
    forward = counted(lambda: gpt2(tokens))
    assert counted(lambda: gpt2(tokens).logits.sum().backward()) == 3 * forward


def test_causal_attention_sees_the_lower_triangle():
    assert causal_pairs(4) == int(torch.ones(4, 4).tril().sum())


def test_an_update_is_writing_judging_and_three_passes_an_epoch():
    # one row of 3 + 2 tokens, by hand: a pass that judges takes in 4 tokens, 10 pairs, and predicts 2; a block is 12
    # squares of its width, of which the last one's 8 of the feed-forward part are for what is read
    judged = 2 * 16**2 * (12 * 4 + 4 * 4 + 8 * 2) + 4 * 2 * 16 * 10 + 2 * 16 * 37 * 2
    scored = 2 * 16**2 * (12 * 5 + 4 * 5 + 8 * 1) + 4 * 2 * 16 * 15
    parts = update_flops(SHAPE, prompts=[3], responses=[2], epochs=4)
    assert parts == {
        "write": judged,
        "reference": judged,
        "reward_model": scored,
        "update": 12 * judged,
        "total": 14 * judged + scored,
    }


def test_rows_add_up_and_a_shorter_row_costs_less():
    one, other = (update_flops(SHAPE, prompts=[3], responses=[n], epochs=1)["total"] for n in (2, 5))
    assert update_flops(SHAPE, prompts=[3, 3], responses=[2, 5], epochs=1)["total"] == one + other
    assert one < other


def test_the_products_of_a_minibatch_are_those_of_its_layers_and_head():
    shapes = update_shapes(SHAPE, rows=4, tokens=20, predictions=8)
    assert (20, 16, 48) in shapes  # queries, keys and values
    assert (16, 20, 48) in shapes  # the gradient of their weights
    assert (8, 16, 37) in shapes  # logits
    assert len(shapes) == len(set(shapes))


def test_a_rate_counts_every_product_it_timed(monkeypatch):
    clock = iter(float(second) for second in range(100))
    monkeypatch.setattr("scripts.benchmarks.text.flops.time.perf_counter", lambda: next(clock))
    calls = []
    rate = matmul_rate((2, 3, 4), lambda *pair: calls.append(pair), repeats=2, flops=480.0)
    assert rate == 480.0  # ten products of 2 * 2 * 3 * 4 operations, in the one second between two looks at the clock
    assert len(calls) == 30  # the first ten are not counted


def test_the_fastest_product_sets_the_rate(monkeypatch):
    rates = {(1, 1, 1): 5.0, (2, 2, 2): 7.0}
    monkeypatch.setattr("scripts.benchmarks.text.flops.matmul_rate", lambda shape, multiply: rates[shape])
    assert fastest_rate(rates) == 7.0


def test_both_ways_to_multiply_give_the_product():
    from scripts.benchmarks.text.flops import _by_onednn

    one, other = torch.randn(5, 7), torch.randn(7, 3)
    torch.testing.assert_close(_by_onednn(one, other), one @ other)
