"""A reward model in an environment gets the same rows as token ids and as text, whether a text ended or was cut."""

import numpy as np
import pytest

from textenvs import PreferenceReward, TokenVectorEnv
from textenvs.tokens.rows import PAD

COMPLETIONS = np.array([[6, 7, 0, PAD], [6, 7, 8, 9], [0, PAD, PAD, PAD], [9, 8, 7, 0]])
"""Two texts that ended before the budget, one that it cut, one that ended with it."""


def environment(tokenizer, scorer):
    prompts = ["the film is", "a plot", "b", "the actor was"]
    options = {"eos_token_id": 0, "max_new_tokens": 4, "shuffle": False, "autoreset_mode": "Disabled"}
    envs = TokenVectorEnv(4, prompts=prompts, tokenizer=tokenizer, **options)
    return PreferenceReward(envs, scorer)


def test_token_ids_and_text_give_the_same_scores_cut_rows_included(model):
    def reads_text(prompts, completions, *, finished):
        return model(prompts, completions, finished=finished)

    by_tokens, by_text = (environment(model.tokenizer, scorer) for scorer in (model, reads_text))
    played = [envs.play(envs.draw_prompts(seed=0), COMPLETIONS).scores for envs in (by_tokens, by_text)]
    np.testing.assert_allclose(played[1], played[0], rtol=1e-5)  # padding of another width

    by_text.reset(seed=0)
    stepped = np.zeros(4, dtype=np.float32)
    alive = np.ones(4, dtype=bool)
    for column in COMPLETIONS.T:
        if not alive.all():
            by_text.reset(options={"reset_mask": ~alive})
        *_, infos = by_text.step(np.where(alive, column, 5))
        ended = alive & infos.get("_score", np.zeros(4, dtype=bool))
        stepped[ended] = infos["score"][ended] if ended.any() else 0
        alive &= ~ended
    np.testing.assert_allclose(stepped, played[0], rtol=1e-5)


def test_a_cut_text_without_an_end_is_another_text_to_the_model(model):
    prompts, completions = ["a plot"], [" good bad dull fine"]
    cut, ended = (model(prompts, completions, finished=[flag]).item() for flag in (False, True))
    assert cut != pytest.approx(ended, abs=1e-4)


def test_a_model_with_another_tokenizer_reads_the_text_anew_and_knows_which_were_cut(model):
    """Trap T16: the same words have other ids here, and the environment's ids would be other words."""
    import copy

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = model.tokenizer.get_vocab()
    order = sorted(words, key=lambda word: (words[word] > 1, -words[word]))  # the words backwards, special tokens first
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(order)}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<end>", "eos_token": "<end>", "unk_token": "<unknown>"}
    theirs = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    other = copy.deepcopy(model)
    other.tokenizer = theirs
    embeddings = other.backbone.get_input_embeddings()
    with torch.no_grad():  # so that it reads the same words as `model`, under their own ids
        embeddings.weight.copy_(
            embeddings.weight[[words[word] for word in theirs.convert_ids_to_tokens(range(len(words)))]]
        )
    assert theirs.convert_tokens_to_ids("good") != words["good"]
    envs = [environment(model.tokenizer, scorer) for scorer in (model, other)]
    played = [one.play(one.draw_prompts(seed=0), COMPLETIONS).scores for one in envs]
    np.testing.assert_allclose(played[1], played[0], rtol=1e-5)
