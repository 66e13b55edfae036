"""A model may end its texts with any of several tokens: where they are named, and that every path stops at each."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import textenvs  # noqa: F401  registers the ids
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.sampling import TokenSampling
from agents.text.stepwise import generate_by_acting
from textenvs import TokenVectorEnv
from textenvs.tokens.end_of_text import end_of_text, find_end_tokens, template_end
from textenvs.tokens.end_tokens import as_eos_token_id, is_end
from textenvs.tokens.rows import PAD

CHATML = (
    "{% for turn in messages %}<user> {{ turn['content'] }} <new>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def model_of(vocab_size=9, eos=None, generation=None):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=24, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5,
        bos_token_id=None, eos_token_id=eos, pad_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.generation_config.eos_token_id = generation
    return model


def test_the_set_is_what_config_generation_config_and_template_name(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = CHATML  # ends each turn with <new>, token 4, and the tokenizer's eos is 0
    model = model_of(len(tokenizer), eos=[0, 7], generation=[3])
    assert find_end_tokens(model, tokenizer) == {
        "config.json": (0, 7), "generation_config.json": (3,), "chat template": (4,),
    }  # fmt: skip
    assert end_of_text(model, tokenizer) == (0, 3, 4, 7)
    assert end_of_text(model) == (0, 3, 7)


def test_the_tokenizers_token_counts_where_nothing_else_is_named(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = None
    assert find_end_tokens(model_of(len(tokenizer)), tokenizer) == {"tokenizer": (0,)}
    with pytest.raises(ValueError, match="has no end-of-text token"):
        end_of_text(model_of(5))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, (4,)),
        (
            "{% for turn in messages %}{{ turn['content'] }} is <system> <end>{% endfor %}",
            (3,),
        ),  # the first special one
        ("{% for turn in messages %}{{ turn['content'] }} {% endfor %}", ()),  # writes no end
        ("{{ raise_exception('no') }}", ()),
        (None, ()),
    ],
)
def test_the_end_that_a_template_writes_is_found_by_rendering_an_answer(chat_tokenizer, template, expected):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = template
    assert template_end(tokenizer) == expected


def test_the_shortest_form_of_a_set():
    assert [as_eos_token_id(given) for given in (None, [], 3, [3, 3], (5, 2), np.int64(4))] == [
        None,
        None,
        3,
        3,
        (2, 5),
        4,
    ]
    with pytest.raises(ValueError, match=r"expected ids in \[0, 5\), received \[1, 5\]"):
        as_eos_token_id([1, 5], 5)
    assert is_end(np.array([[1, 2], [3, PAD]]), (2, 3)).tolist() == [[False, True], [True, False]]


def test_an_episode_ends_at_any_of_them_and_play_agrees():
    envs = TokenVectorEnv(3, prompts=[[1]], eos_token_id=[0, 2], vocab_size=9, max_new_tokens=4)
    envs.reset(seed=0)
    terminated = envs.step(np.array([0, 2, 5]))[2]
    assert terminated.tolist() == [True, True, False]
    rows = envs.play([[1], [1], [1]], [[0, PAD, PAD, PAD], [3, 2, PAD, PAD], [3, 3, 3, 3]])
    assert rows.stop_reason.tolist() == ["eos", "eos", "length"]
    with pytest.raises(ValueError, match=r"continues after its end-of-text token \(0, 2\)"):
        envs.play([[1]], [[2, 0, PAD, PAD]])


@pytest.mark.parametrize("written_by", [generate, generate_by_acting])
def test_generation_stops_at_any_of_them(written_by):
    policy = CausalLMPolicy(model_of(eos=[0, 2]), critic="none")
    assert policy.eos_token_id == (0, 2)
    prompts = torch.full((64, 1), 5)
    rows = written_by(policy, prompts, max_new_tokens=8, generator=torch.Generator().manual_seed(0)).completions
    lengths = (rows != PAD).sum(1)
    last = rows[torch.arange(64), lengths - 1]
    early = lengths < 8
    assert set(last[early].tolist()) == {0, 2}
    ended = (rows == 0) | (rows == 2)
    assert not (ended.cumsum(1) - ended.int() > 0)[rows != PAD].any()  # nothing follows an end


def test_min_new_tokens_forbids_all_of_them():
    shaped = TokenSampling(min_new_tokens=2).shape(torch.zeros(2, 5), torch.tensor([0, 2]), (1, 3))
    assert (shaped == -torch.inf).tolist() == [[False, True, False, True, False], [False] * 5]


def test_a_registered_environment_takes_the_set_of_its_reference(tmp_path, chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = CHATML
    model_of(len(tokenizer), eos=0, generation=[0, 7]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    envs = gym.make_vec(
        "textenvs/TextGeneration-v0", num_envs=1, rows=["what is"], reference=tmp_path, max_new_tokens=4
    )
    assert envs.unwrapped.eos_token_id == (0, 4, 7)
    named = gym.make_vec(
        "textenvs/TextGeneration-v0",
        num_envs=1,
        rows=["what is"],
        reference=tmp_path,
        eos_token_id=7,
        max_new_tokens=4,
    )
    assert named.unwrapped.eos_token_id == 7
