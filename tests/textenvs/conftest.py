"""Tiny parts, built on the spot: a word tokenizer of 40 entries, random GPT-2, Llama, Mistral and GPT-Neo models."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from textenvs import TokenVectorEnv

WORDS = [f"w{index}" for index in range(38)]
PROMPTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10", "w11 w12"]


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Id 0 is bos, eos and pad; id 1 is what is unknown; then the words."""
    vocabulary = {"<end>": 0, "<unk>": 1} | {word: index + 2 for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    special = {"bos_token": "<end>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture(scope="session")
def other_tokenizer():
    return word_tokenizer(WORDS[::-1])


def build_gpt2(seed: int = 0, positions: int = 32) -> GPT2LMHeadModel:
    # a wide initialization and live dropout, so that a wrong position or a model left in training mode is seen
    torch.manual_seed(seed)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = GPT2Config(
        vocab_size=40, n_positions=positions, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5, **ends
    )
    return GPT2LMHeadModel(config)


ROTARY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def build_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**ROTARY))


def build_mistral() -> MistralForCausalLM:
    """Every layer sees three tokens back."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**ROTARY, sliding_window=3))


def build_gpt_neo() -> GPTNeoForCausalLM:
    """Its second layer sees three tokens back, which its configuration says in words of its own."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=40,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=3,
        max_position_embeddings=32,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoForCausalLM(config)


BUILD = {"gpt2": build_gpt2, "llama": build_llama, "mistral": build_mistral, "gpt_neo": build_gpt_neo}


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(request):
    return BUILD[request.param]()


@pytest.fixture(scope="session", params=list(BUILD))
def any_model(request):
    """Those that see every earlier token, and those that do not."""
    return BUILD[request.param]()


@pytest.fixture(scope="session")
def tiny_gpt2():
    return build_gpt2


@pytest.fixture
def make_envs(tokenizer):
    """A token environment over five short prompts, six new tokens; keyword arguments change it."""

    def make(num_envs: int = 3, **options) -> TokenVectorEnv:
        parts = {"prompts": PROMPTS, "tokenizer": tokenizer, "eos_token_id": 0, "max_new_tokens": 6}
        return TokenVectorEnv(num_envs, **parts | options)

    return make
