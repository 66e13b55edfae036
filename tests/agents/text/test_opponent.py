"""A policy's copy as an opponent: it reads and writes what the policy does in its own dialogues, and does not learn."""

import random
from functools import partial

import gymnasium as gym
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.text.collector import TextCollector
from agents.text.opponent import PolicyOpponent


class Counter(gym.Env):
    """Writes another word behind each of four turns."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turn, self.start = 0, int(self.np_random.integers(20))
        return f"w{self.start} w2", {}

    def step(self, action):
        self.turn += 1
        return f"w{self.start + self.turn}", 0.0, self.turn == 4, False, {}


@pytest.fixture
def policy():
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, n_positions=48, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5)
    return CausalLMPolicy(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)))


@pytest.fixture
def tokenizer():
    words = ["<end>", *(f"w{number}" for number in range(39))]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def played(policy, tokenizer):
    """Eight dialogues of the likeliest tokens, as turns of a chat."""
    options = {"tokenizer": tokenizer, "max_turn_tokens": 3, "max_tokens": 48}
    envs = gym.make_vec("textenvs/Dialogue-v0", num_envs=8, env=Counter, **options)
    TextCollector(envs, generate=partial(generate, deterministic=True)).collect(policy)
    return [talk[:8] for talk in envs.unwrapped._played.messages]


def replies(opponent, talks):
    return [opponent(talk[:place]) for talk in talks for place in range(1, 8, 2)]


def test_it_says_what_the_policy_says_in_the_same_dialogue_until_it_is_updated(policy, tokenizer):
    opponent = PolicyOpponent(policy, tokenizer, max_turn_tokens=3, deterministic=True)
    talks = played(policy, tokenizer)
    said = [talk[place]["content"] for talk in talks for place in range(1, 8, 2)]
    assert len(set(said)) > 4
    assert replies(opponent, talks) == said
    with torch.no_grad():
        for weight in policy.model.transformer.h.parameters():
            weight.add_(torch.randn_like(weight))
    assert replies(opponent, talks) == said
    opponent.update(policy)
    after = played(policy, tokenizer)
    assert replies(opponent, after) == [talk[place]["content"] for talk in after for place in range(1, 8, 2)] != said


def test_what_it_samples_follows_pythons_generator(policy, tokenizer):
    opponent = PolicyOpponent(policy, tokenizer, max_turn_tokens=3)
    start = [{"role": "user", "content": "w1"}]

    def sampled(seed):
        random.seed(seed)
        return [opponent(start) for _ in range(4)]

    assert sampled(3) == sampled(3) != sampled(4)
