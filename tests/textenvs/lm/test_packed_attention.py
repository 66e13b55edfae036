"""Attention over rows without padding equals each row alone, forward and backward; half types are rounded once."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig, MistralConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.textenvs.lm.test_linear_kernels import assert_same_gradients
from textenvs.lm.linear_kernels import padded_rows
from textenvs.lm.packed_attention import OURS, RowLayout, SharedPrefixes, has_full_attention, use_packed_attention
from textenvs.lm.packed_forward import can_pack, hidden_states, recompute_layers
from textenvs.lm.sizes import CPU
from textenvs.tokens.rows import PAD

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=50, n_positions=40, n_embd=24, n_layer=2, n_head=4, initializer_range=0.2),
    "llama": LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40, initializer_range=0.2,
    ),
}  # fmt: skip


@pytest.fixture(params=list(CONFIGS))
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[request.param])).eval()


LENGTHS = torch.tensor([5, 1, 9, 3])
TOKENS = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(3))
ROWS = TOKENS.where(torch.arange(9) < LENGTHS[:, None], PAD)
EVERY = (torch.arange(9) < LENGTHS[:, None]).nonzero().unbind(1)


def trunk_layers(trunk):
    return trunk.h if hasattr(trunk, "h") else trunk.layers


def rows_alone(trunk):
    """Hidden states [18, D] of every token, each row by itself."""
    return torch.cat(
        [trunk(input_ids=row[None, :n]).last_hidden_state[0] for row, n in zip(ROWS, LENGTHS, strict=True)]
    )


@pytest.mark.parametrize("lengths", [(2, 1, 3), (15, 16), (7, 7, 7), (8, 8), (1,)])
def test_a_layout_takes_rows_apart_and_together_again(lengths):
    layout, real = RowLayout(torch.tensor(lengths)), sum(lengths)
    tokens = len(layout.places)
    assert tokens == padded_rows(real)
    packed = torch.arange(float(tokens)).view(1, 1, tokens, 1).requires_grad_()
    rows = layout.spread(packed)
    assert rows.shape == (len(lengths), 1, max(lengths), 1)
    in_order = iter(range(real))
    assert [rows[i, 0, :n, 0].tolist() for i, n in enumerate(lengths)] == [
        [next(in_order) for _ in range(n)] for n in lengths
    ]
    assert layout.positions()[:real].tolist() == [step for n in lengths for step in range(n)]
    together = layout.pack(rows.transpose(1, 2)).flatten()
    assert together.shape == (tokens,)
    assert together[:real].tolist() == list(range(real))
    (together[:real] * torch.arange(1.0, real + 1)).sum().backward()
    assert packed.grad.flatten().tolist() == [*range(1, real + 1), *[0] * (tokens - real)]


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_rows_equal_each_row_alone_and_so_do_gradients(model, recompute):
    twin = copy.deepcopy(model)
    use_packed_attention(model)
    if recompute:
        recompute_layers(model.base_model)
    weights = torch.randn(18, 24, generator=torch.Generator().manual_seed(4))
    assert can_pack(model.base_model)
    assert not can_pack(twin.base_model)
    found = hidden_states(model.base_model, ROWS, LENGTHS, *EVERY)
    expected = rows_alone(twin.base_model)
    torch.testing.assert_close(found, expected)
    for hidden in (found, expected):
        (hidden * weights).sum().backward()
    assert_same_gradients(model.base_model, twin.base_model)


READ = [(torch.tensor([0, 2, 2, 3]), torch.tensor([4, 8, 3, 2])), (torch.tensor([2]), torch.tensor([0]))]


@pytest.mark.parametrize("reads", READ, ids=["some", "one"])
def test_the_last_mlp_is_computed_where_it_is_read_and_nothing_else_changes(model, reads):
    lengths, rows = torch.full((4,), 9), TOKENS.repeat(1, 4)[:, :36]
    lengths, reads = lengths * 4, (reads[0], reads[1] * 4)
    twin, weights = copy.deepcopy(model), torch.randn(len(reads[0]), 24, generator=torch.Generator().manual_seed(4))
    use_packed_attention(model)
    assert can_pack(model.base_model)
    mlp, seen = trunk_layers(model.base_model)[-1].mlp, []
    next(mlp.children()).register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[1]))
    found = hidden_states(model.base_model, rows, lengths, *reads)
    assert seen == [16]  # of 144
    assert "forward" not in vars(mlp)
    expected = twin.base_model(input_ids=rows).last_hidden_state[reads]
    torch.testing.assert_close(found, expected)
    for hidden in (found, expected):
        (hidden * weights).sum().backward()
    assert_same_gradients(model.base_model, twin.base_model)


WHICH, COMMON = torch.tensor([7, 0, 7, 0, 7, 2]), torch.tensor([4, 3, 4, 3, 4, 2])
ALIKE = SharedPrefixes(WHICH, COMMON)
ALIKE_LENGTHS = torch.tensor([6, 2, 9, 3, 4, 7])
"""Row 1 has not even all of what it begins with, so that row 3 must have the rest; row 4 has nothing beyond it."""


def rows_that_begin_alike():
    torch.manual_seed(1)
    rows = torch.randint(0, 50, (6, 9))
    for row, number in enumerate(WHICH.tolist()):
        twin = WHICH.tolist().index(number)
        rows[row, : COMMON[row]] = rows[twin, : COMMON[row]]
    return rows.where(torch.arange(9) < ALIKE_LENGTHS[:, None], PAD)


def test_a_layout_has_what_rows_begin_with_once():
    layout = RowLayout(ALIKE_LENGTHS, ALIKE)
    assert layout.real == 6 + 2 + (9 - 4) + (3 - 2) + 0 + 7
    rows = torch.arange(6)
    assert layout.at(rows, torch.ones_like(rows)).tolist() == [1, 7, 1, 7, 1, 15]
    assert layout.at(torch.tensor([0, 2, 2, 5]), torch.tensor([5, 3, 4, 0])).tolist() == [5, 3, 8, 14]
    assert layout.positions()[: layout.real].tolist() == [*range(6), *range(2), *range(4, 9), 2, *range(7)]
    assert RowLayout(ALIKE_LENGTHS, SharedPrefixes(torch.arange(6), ALIKE_LENGTHS)).real == 31
    alone = SharedPrefixes(torch.tensor([0, 1, 2, 3, 0, 4]), torch.ones(6, dtype=torch.int64))
    assert RowLayout(ALIKE_LENGTHS, alone).real == 31  # one token is not worth it


@pytest.mark.parametrize("recompute", [False, True])
def test_what_rows_begin_with_is_computed_once_and_every_gradient_is_the_sum(model, recompute):
    rows, real = rows_that_begin_alike(), torch.arange(9) < ALIKE_LENGTHS[:, None]
    row, position = real.nonzero().unbind(1)
    twin, weights = copy.deepcopy(model), torch.randn(31, 24, generator=torch.Generator().manual_seed(4))
    use_packed_attention(model)
    if recompute:
        recompute_layers(model.base_model)
    assert can_pack(model.base_model)
    seen = []
    trunk_layers(model.base_model)[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape[1]))
    found = hidden_states(model.base_model, rows, ALIKE_LENGTHS, row, position, prefixes=ALIKE)
    assert seen == [32]  # 21 tokens of 31, filled up
    expected = [
        twin.base_model(input_ids=r[None, :n]).last_hidden_state[0] for r, n in zip(rows, ALIKE_LENGTHS, strict=True)
    ]
    expected = torch.cat(expected)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(
            hidden_states(model.base_model, rows, ALIKE_LENGTHS, row, position, prefixes=ALIKE), expected
        )
    for hidden in (found, expected):
        (hidden * weights).sum().backward()
    assert_same_gradients(model.base_model, twin.base_model)


@pytest.mark.parametrize("at_once", [1, 12, 20, 100])
def test_rows_that_begin_alike_a_few_at_a_time(model, at_once, monkeypatch):
    use_packed_attention(model)
    row, position = torch.tensor([5, 2, 4, 0, 1]), torch.tensor([6, 3, 0, 5, 1])
    rows = rows_that_begin_alike()
    expected = hidden_states(model.base_model, rows, ALIKE_LENGTHS, row, position).detach()
    monkeypatch.setattr("textenvs.lm.sizes.CPU", CPU._replace(pass_tokens=at_once))
    with torch.no_grad():
        found = hidden_states(model.base_model, rows, ALIKE_LENGTHS, row, position, prefixes=ALIKE)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("at_once", [1, 6, 9, 100])
def test_a_few_tokens_at_a_time_read_the_same_states_in_the_order_asked_for(model, at_once, monkeypatch):
    use_packed_attention(model)
    lengths = torch.tensor([5, 1, 9, 3])
    row, position = torch.tensor([3, 0, 2, 0, 2]), torch.tensor([1, 4, 8, 2, 0])  # none of row 1
    whole = hidden_states(model.base_model, ROWS, lengths, row, position).detach()
    monkeypatch.setattr("textenvs.lm.sizes.CPU", CPU._replace(pass_tokens=at_once))
    passes = []
    model.base_model.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    with torch.no_grad():
        found = hidden_states(model.base_model, ROWS, lengths, row, position)
        torch.testing.assert_close(found, whole)
        assert len(passes) == {1: 4, 6: 3, 9: 3, 100: 1}[at_once]
        none = hidden_states(model.base_model, ROWS, lengths, row[:0], position[:0])
    assert none.shape == (0, 24)
    passes.clear()
    hidden_states(model.base_model, ROWS, lengths, row, position)
    assert len(passes) == 1  # with a graph, whose parts would live until the backward pass


def test_an_mlp_that_looks_beyond_its_position_is_computed_everywhere(model):
    class Mixing(torch.nn.Module):
        def forward(self, hidden):
            return hidden.cumsum(1)

    use_packed_attention(model)
    trunk_layers(model.base_model)[-1].mlp = Mixing()
    row = TOKENS.view(1, 36)
    expected = model.base_model(input_ids=row).last_hidden_state[0, 35:]
    read = hidden_states(model.base_model, row, torch.tensor([36]), torch.tensor([0]), torch.tensor([35]))
    torch.testing.assert_close(read, expected)


def test_a_model_that_sees_what_comes_is_not_packed():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    model = AutoModel.from_config(config).eval()
    use_packed_attention(model)
    assert not can_pack(model)


def test_no_row_sees_another(model):
    use_packed_attention(model)
    before = hidden_states(model.base_model, ROWS, LENGTHS, *EVERY)
    other = ROWS.clone()
    other[2, :9] = (other[2, :9] + 7) % 50
    after = hidden_states(model.base_model, other, LENGTHS, *EVERY)
    assert (EVERY[0] != 2).sum() == 9
    assert torch.equal(before[EVERY[0] != 2], after[EVERY[0] != 2])
    assert not torch.equal(before[EVERY[0] == 2], after[EVERY[0] == 2])


def test_a_model_with_a_sliding_window_is_not_packed_and_right_all_the_same():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MistralConfig(
            vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=40, sliding_window=3, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    expected = rows_alone(model.base_model)
    use_packed_attention(model)
    assert not has_full_attention(model.config)
    assert not can_pack(model.base_model)
    torch.testing.assert_close(hidden_states(model.base_model, ROWS, LENGTHS, *EVERY), expected)


def test_a_model_that_does_not_tell_all_its_layers_is_not_packed(model, monkeypatch):
    use_packed_attention(model)
    trunk = model.base_model
    layers = trunk_layers(trunk)
    told = layers[1].forward
    monkeypatch.setattr(layers[1], "forward", lambda *args, row_layout=None, **options: told(*args, **options))
    assert not can_pack(trunk)


def test_attention_in_float32_rounds_once_at_the_end(model):
    use_packed_attention(model)
    attention = ALL_ATTENTION_FUNCTIONS[OURS]
    layer = next(module for module in model.modules() if hasattr(module, "is_causal"))
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(3, 4, 12, 6, generator=generator).bfloat16() for _ in range(3))
    if hasattr(layer, "num_key_value_groups"):  # two heads share their keys and values
        key, value = key[:, :2], value[:, :2]
    seen = torch.ones(12, 12, dtype=torch.bool).tril()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attention(layer, query, key, value, seen, scaling=0.4)
    keys, values = (part.float().repeat_interleave(4 // part.shape[1], dim=1) for part in (key, value))
    scores = (0.4 * query.float() @ keys.mT).masked_fill(~seen, -torch.inf)
    exact = (scores.softmax(-1) @ values).transpose(1, 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-5)  # half a unit in the last of 8 bits


def test_attention_in_float32_leaves_a_float32_model_bit_for_bit_as_it_was(model):
    tokens = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=tokens).logits
    use_packed_attention(model)
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_what_is_saved_does_not_name_our_attention(model, tmp_path):
    use_packed_attention(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
