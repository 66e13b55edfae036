import functools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    FalconConfig,
    FalconModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    OPTConfig,
    OPTModel,
    PreTrainedTokenizerFast,
)

from reward_models.model import RewardModel

WORDS = [
    "<end>",
    "<unknown>",
    *["a", "b", "c", "d", "good", "bad", "dull", "fine", "film", "plot", "actor", "the", "is", "was"],
]


@functools.cache
def tiny_tokenizer():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<end>", eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    )


def tiny_backbone(family, dropout=0.3):
    common = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if family == "gpt2":
        rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        return GPT2Model(GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, **rates, **common))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "falcon":
        return FalconModel(FalconConfig(hidden_dropout=dropout, **sizes, **common))
    sizes["max_position_embeddings"] = 32
    if family == "opt":  # has dropout by default
        return OPTModel(OPTConfig(ffn_dim=32, word_embed_proj_dim=16, **sizes, **common))
    return LlamaModel(LlamaConfig(intermediate_size=32, attention_dropout=dropout, **sizes, **common))


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    torch.manual_seed(0)
    return RewardModel(tiny_backbone(request.param), tiny_tokenizer())


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    return RewardModel(tiny_backbone("gpt2"), tiny_tokenizer())


@pytest.fixture(params=["gpt2", "llama"])
def base(request, tmp_path, tokenizer):
    """A causal LM with its tokenizer in a folder."""
    torch.manual_seed(0)
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if request.param == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, **common))
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=32, **sizes, **common))
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def make_backbone():
    return tiny_backbone
