"""Every weight of a loaded model comes from its file, or the loader names those that do not (no random weights)."""

import shutil
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from textenvs.lm.loading import load_causal_lm, load_peft, load_trunk
from textenvs.tokens.tokenizers import load_tokenizer

WEIGHTS = "model.safetensors"
GPT2 = GPT2Config(vocab_size=13, n_positions=9, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
LLAMA = LlamaConfig(
    vocab_size=13, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=9, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=None,
)  # fmt: skip


@pytest.fixture(params=[(GPT2LMHeadModel, GPT2), (LlamaForCausalLM, LLAMA)], ids=["tied", "untied"])
def folder(request, tmp_path):
    torch.manual_seed(0)
    kind, config = request.param
    kind(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def without_last(weights):
    return dict(sorted(weights.items())[:-1])


def test_a_whole_model_loads_as_saved(folder):
    loaded = load_causal_lm(folder)
    saved = load_file(folder / WEIGHTS)
    assert not loaded.training
    for name, value in saved.items():
        assert torch.equal(loaded.state_dict()[name], value), name
    trunk = load_trunk(folder).state_dict()
    ours = {name.split(".", 1)[1]: value for name, value in saved.items() if name != "lm_head.weight"}
    assert trunk.keys() == ours.keys()
    assert all(torch.equal(trunk[name], value) for name, value in ours.items())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
@pytest.mark.parametrize("load", [load_causal_lm, load_trunk])
def test_a_wrappers_prefix_is_refused(folder, prefix, load):
    rewrite(folder, lambda weights: {prefix + name: value for name, value in weights.items()})
    with pytest.raises(ValueError, match=rf"are missing \(.* do not belong to it \({prefix}"):
        load(folder)


@pytest.mark.parametrize("load", [load_causal_lm, load_trunk])
def test_missing_weights_are_named(folder, load):
    last_norms = ("model.norm.weight", "transformer.ln_f.weight")
    rewrite(folder, lambda weights: {name: value for name, value in weights.items() if name not in last_norms})
    with pytest.raises(ValueError, match=r"1 are missing \((\w+\.)*(norm|ln_f).weight\)"):
        load(folder)


def test_a_missing_output_layer_is_named_unless_it_is_tied(folder):
    rewrite(folder, lambda weights: {name: value for name, value in weights.items() if name != "lm_head.weight"})
    if "llama" in (folder / "config.json").read_text():
        with pytest.raises(ValueError, match=r"1 are missing \(lm_head.weight\)"):
            load_causal_lm(folder)
    else:
        load_causal_lm(folder)


def test_weights_that_the_model_lacks_are_named(folder):
    rewrite(folder, lambda weights: weights | {"adapter.weight": torch.zeros(2)})
    for load in (load_causal_lm, load_trunk):
        with pytest.raises(ValueError, match=r"1 do not belong to it \(adapter.weight\)"):
            load(folder)


def test_a_weight_of_another_shape_is_named(folder):
    name = sorted(load_file(folder / WEIGHTS))[-1]
    rewrite(folder, lambda weights: weights | {name: torch.zeros(3)})
    with pytest.raises(ValueError, match="could be loaded from there"):
        load_causal_lm(folder)


def test_a_classifier_is_no_language_model(tmp_path):
    GPT2ForSequenceClassification(GPT2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 do not belong to it \(score.weight\)"):
        load_causal_lm(tmp_path)
    load_trunk(tmp_path)


def test_a_trunk_needs_no_pooler(tmp_path):
    config = BertConfig(vocab_size=13, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    load_trunk(tmp_path)


def test_a_broken_file_is_named(folder, tmp_path):
    whole = (folder / WEIGHTS).read_bytes()
    for content in (whole[:-100], whole[:4], b"", b"\x80\x04" + whole):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(ValueError, match=f"{folder}: no causal language model could be loaded"):
            load_causal_lm(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="there is none of that name"):
        load_causal_lm(folder)


def test_an_adapter_has_exactly_its_weights(folder, tmp_path):
    adapter = tmp_path / "adapter"
    get_peft_model(load_causal_lm(folder), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(adapter)
    load_peft(load_causal_lm(folder), adapter, "default")
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    for weights, message in (
        (without_last(whole), "1 are missing"),
        (whole | {"base_model.more": torch.zeros(1)}, r"1 do not belong to it \(base_model.more\)"),
    ):
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load_peft(load_causal_lm(folder), adapter, "default")


def test_weights_that_are_no_numbers_are_called_so(model_dir, tmp_path):
    model = load_causal_lm(model_dir)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"received NaN or infinite ones in transformer\.h\.0\.mlp\.c_fc\.bias"):
        load_causal_lm(tmp_path)


def test_a_model_that_is_nowhere_is_refused_within_seconds_where_no_hub_answers(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # refuses connections
    began = time.monotonic()
    with pytest.raises(ValueError, match="nosuchdir: expected a model's folder or name; there is no such folder, and"):
        load_causal_lm("nosuchdir")
    with pytest.raises(ValueError, match="expected a model's folder, and there is none of that name"):
        load_causal_lm(tmp_path / "no" / "such")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a model's folder or name, received a file"):
        load_causal_lm(tmp_path / "file")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("load", [load_causal_lm, load_trunk, load_tokenizer])
def test_an_adapters_folder_in_place_of_a_model_names_the_model_below(load, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base", "peft_type": "LORA"}')
    with pytest.raises(ValueError, match=r"expected a whole model, received a LoRA adapter of some/base.*--adapter"):
        load(tmp_path)
