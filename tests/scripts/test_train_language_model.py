import math
import random

import pytest
import torch

from scripts import train_language_model as lm
from scripts.movie_reviews import MovieReviewSplits

SENTENCES = ["The film was good.", "The plot was thin.", "A fine cast!", "I liked the end.", "Nobody else did."]


@pytest.fixture
def toy_splits(monkeypatch):
    splits = MovieReviewSplits(
        judge=[], train=[SENTENCES] * 60, validation=SENTENCES[:2], prompt_train=SENTENCES, prompt_test=SENTENCES
    )
    monkeypatch.setattr(lm, "movie_review_splits", lambda: splits)


def config(tmp_path, **options):
    return lm.TrainLanguageModelConfig(
        run_dir=str(tmp_path / "run"), vocab_size=280, num_layers=1, width=16, num_heads=2, batch_tokens=256, **options
    )


def test_rows_open_at_a_sentence_and_repeat_the_one_they_cut():
    review = [[1, 1, 9], [2, 2, 2, 9], [3, 9]]
    assert list(lm.rows_of(review, length=6, start=0)) == [[0, 1, 1, 9, 2, 2], [0, 2, 2, 2, 9, 3], [0, 3, 9]]
    assert list(lm.rows_of(review, length=20, start=0)) == [[0, 1, 1, 9, 2, 2, 2, 9, 3, 9]]


def test_perplexity_of_a_uniform_model_is_the_vocabulary_whatever_the_padding():
    class Uniform(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            class Output:
                logits = torch.zeros(*input_ids.shape, 7)

            return Output

    assert lm.perplexity(Uniform(), [[0, 1, 2], [0, 3], [0, 1, 2, 3, 4, 5]], "cpu") == pytest.approx(7.0)


def test_batches_hold_whole_epochs_of_rows_of_one_length():
    data = lm.batches([[[1] * 20 + [9]] * 6] * 40, 0, 192, random.Random(0))
    for tokens, mask in (next(data) for _ in range(5)):
        assert tokens.shape[1] in lm.ROW_LENGTHS
        assert mask.any(1).all()


def test_the_tokenizer_opens_a_text_and_forgets_case():
    tokenizer = lm.train_tokenizer(SENTENCES, vocab_size=280, max_length=32)
    ids = tokenizer("The FILM")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the film"


def test_the_learning_rate_rises_then_falls_to_a_twentieth():
    rates = [lm.learning_rate_factor(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20, rel=1e-3)
    assert max(rates) == pytest.approx(1.0, abs=2e-3)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)


def test_what_was_trained_loads_with_transformers_and_the_same_seed_gives_the_same_model(tmp_path, toy_splits):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summaries = []
    for name in ("a", "b"):
        summary = lm.main(config(tmp_path / name, train_tokens=4096, eval_every=5))
        summaries.append(summary["validation_perplexity"])
        folder = tmp_path / name / "run" / "model"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert model.config.vocab_size == len(tokenizer)
    assert summaries[0] == summaries[1]
    assert summaries[0] < 280
    assert math.isfinite(summaries[0])


def test_ctrl_c_keeps_what_was_trained(tmp_path, toy_splits, monkeypatch):
    def interrupted(model, rows, device):
        if not (tmp_path / "seen").exists():
            (tmp_path / "seen").touch()
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(lm, "perplexity", interrupted)
    summary = lm.main(config(tmp_path, train_tokens=40_960, eval_every=2))
    assert summary["interrupted"]
    assert summary["train_tokens"] < 40_960
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
