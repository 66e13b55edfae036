import random

import pytest
import torch

from agents.recipes.sft.from_scratch import ROW_LENGTHS, batches, loss_per_token, rows_of, train_tokenizer

SENTENCES = ["The film was good.", "The plot was thin.", "A fine cast!", "I liked the end.", "Nobody else did."]


def test_rows_open_at_a_sentence_and_repeat_the_one_they_cut():
    review = [[1, 1, 9], [2, 2, 2, 9], [3, 9]]
    assert list(rows_of(review, length=6, start=0)) == [[0, 1, 1, 9, 2, 2], [0, 2, 2, 2, 9, 3], [0, 3, 9]]
    assert list(rows_of(review, length=20, start=0)) == [[0, 1, 1, 9, 2, 2, 2, 9, 3, 9]]


def test_a_uniform_model_loses_the_logarithm_of_the_vocabulary_whatever_the_padding():
    class Uniform(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            class Output:
                logits = torch.zeros(*input_ids.shape, 7)

            return Output

    loss = loss_per_token(Uniform(), [[0, 1, 2], [0, 3], [0, 1, 2, 3, 4, 5]], "cpu")
    assert loss == pytest.approx(torch.tensor(7.0).log().item())


def test_batches_hold_whole_epochs_of_rows_of_one_length():
    data = batches([[[1] * 20 + [9]] * 6] * 40, 0, 192, random.Random(0))
    for tokens, mask in (next(data) for _ in range(5)):
        assert tokens.shape[1] in ROW_LENGTHS
        assert mask.any(1).all()


def test_the_tokenizer_opens_a_text_and_forgets_case():
    tokenizer = train_tokenizer(SENTENCES, vocab_size=280, max_length=32)
    ids = tokenizer("The FILM")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the film"
