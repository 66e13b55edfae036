"""Which models do not mind where their keys stand, beside what their attention is known to be."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from textenvs.lm.kv_cache import any_key_order
from textenvs.lm.packed_attention import use_packed_attention

SIZES = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
WIDE = SIZES | dict(intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64)
GPT_NEO = dict(vocab_size=40, hidden_size=32, num_layers=2, num_heads=4, window_size=256, max_position_embeddings=1024)


def build(kind, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", dict(vocab_size=40, n_embd=32, n_layer=2, n_head=4)),
        ("gptj", dict(vocab_size=40, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)),
        ("llama", WIDE),
        ("mistral", WIDE | dict(sliding_window=None)),
        ("falcon", SIZES),
        ("gpt_neo", GPT_NEO | dict(attention_types=[[["global"], 2]])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_models_with_positions_in_their_tokens_or_keys_take_them_in_any_order(kind, options, dtype):
    model = build(kind, **options).to(dtype)
    assert any_key_order(model)
    attended = build(kind, **options).to(dtype)
    use_packed_attention(attended)
    assert any_key_order(attended.base_model)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", WIDE | dict(sliding_window=5)),
        ("gpt_neo", GPT_NEO | dict(attention_types=[[["global", "local"], 1]])),
        ("mpt", dict(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)),
        ("bloom", dict(vocab_size=40, hidden_size=32, n_layer=2, n_head=4)),
        ("falcon", SIZES | dict(alibi=True)),
        ("mamba", dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_windows_and_slopes_by_column_and_other_states_are_found(kind, options, dtype):
    model = build(kind, **options).to(dtype)
    assert not any_key_order(model)
    assert not any_key_order(model.base_model)


def test_a_window_is_found_when_the_configuration_does_not_tell(monkeypatch):
    monkeypatch.setattr("textenvs.lm.kv_cache.has_full_attention", lambda config: True)
    assert not any_key_order(build("mistral", **WIDE, sliding_window=32))


def test_a_model_is_tried_once_and_left_as_it_was(monkeypatch):
    model = build("gpt2", vocab_size=40, n_embd=32, n_layer=2, n_head=4).train()
    state, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    assert any_key_order(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.get_rng_state().equal(drawn)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr(model, "forward", None)
    assert any_key_order(model)
