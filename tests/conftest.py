"""Tiny language models on disk: a GPT-2 of ten words, and GPT-2 and Llama with a tokenizer that has a chat template."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # a second thread would spin more than it computes; what tests start inherits this
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # and neither torch nor transformers here: the process that only hands out tests need not load them

WORDS = ["<end>", "good", "bad", "the", "film", "is", "a", "very", "plot", "and"]
CHAT_WORDS = [
    "<end>", "<user>", "<assistant>", "<system>", "<new>", "what", "is", "two", "three", "four", "plus", "and", "red",
    "sky", "grass", "blue", "green",
]  # fmt: skip
"""A word's place is its token id."""
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> <new> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
"""As ChatML: a turn ends with the end of text, and then comes a line's end, which is not the assistant's to write."""


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A folder with a random GPT-2 of ten words and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<end>", eos_token="<end>", pad_token="<end>", unk_token="a"
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=24, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def chat_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(CHAT_WORDS)}, unk_token="and"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<end>", eos_token="<end>", pad_token="<end>", unk_token="and",
        additional_special_tokens=CHAT_WORDS[1:5], chat_template=CHAT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_chat_model(family: str):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.2}
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=len(CHAT_WORDS), n_positions=32, n_embd=16, n_layer=2, n_head=2, **ends)
        )
    config = LlamaConfig(
        vocab_size=len(CHAT_WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, **ends,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def chat_model_dir(request, tmp_path_factory, chat_tokenizer):
    """A folder that transformers loads, of each family."""
    path = tmp_path_factory.mktemp(request.param)
    build_chat_model(request.param).save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory, chat_tokenizer):
    """The same, Llama alone."""
    path = tmp_path_factory.mktemp("llama_alone")
    build_chat_model("llama").save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path
