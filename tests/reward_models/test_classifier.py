"""Reward models of transformers, and ours as transformers loads them: AutoModelForSequenceClassification."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reward_models import RewardClassifier, RewardModel
from textenvs import assets

PROMPTS, COMPLETIONS, FINISHED = ["the film", "a plot", ""], [" is good", " was", " dull film"], [True, False, True]


def as_transformers(folder):
    """Model and tokenizer in a folder, with a report that must be empty."""
    model, found = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "falcon"])
@torch.no_grad()
def test_a_saved_reward_model_is_a_sequence_classifier_with_the_same_scores(family, make_backbone, tokenizer, tmp_path):
    """The score is (logit - mean) / std, with both in reward_model.json."""
    torch.manual_seed(0)
    reward = RewardModel(make_backbone(family), tokenizer).eval()
    rows = reward.encode([p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)], finished=FINISHED)
    reward.calibrate(rows)
    reward.save(tmp_path / "saved")
    model, saved = as_transformers(tmp_path / "saved")
    assert model.config.num_labels == 1
    logits = torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
    expected = reward.score(PROMPTS, COMPLETIONS, finished=FINISHED)
    np.testing.assert_allclose((logits - reward.mean) / reward.std, expected, rtol=1e-5, atol=1e-5)
    assert saved.pad_token is None  # it was eos, and transformers would read the token before the padding
    with pytest.raises(ValueError, match="no padding token"):
        model(input_ids=torch.tensor(rows[:1] * 2))


def test_a_text_in_place_of_a_list_is_refused_and_not_scored_by_letters():
    from_transformers = RewardClassifier.load(assets.reward_model_dir())
    for scorer in (RewardModel.load(assets.reward_model_dir()), from_transformers):
        for texts in (("ab", ["c"]), (["a"], "c"), ("ab", "cd")):
            with pytest.raises(ValueError, match="expected a list of texts, received the text"):
                scorer(*texts)


@torch.no_grad()
def test_a_padding_token_that_ends_no_text_is_kept_and_batches_score_the_same(make_backbone, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = "d"
    torch.manual_seed(0)
    reward = RewardModel(make_backbone("gpt2"), tokenizer).eval()
    reward.save(tmp_path)
    model, saved = as_transformers(tmp_path)
    rows = reward.encode([p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)], finished=FINISHED)
    batch = saved.pad({"input_ids": rows}, return_tensors="pt")
    np.testing.assert_allclose(model(**batch).logits[:, 0], reward.score_rows(rows), rtol=1e-5, atol=1e-6)


def test_the_shipped_reward_model_is_one():
    model, tokenizer = as_transformers(assets.reward_model_dir())
    ours = RewardModel.load(assets.reward_model_dir())
    ids = tokenizer("the film was a joy .", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logit = float(model(input_ids=torch.tensor([[0, *ids, 0]])).logits)
    score = float(ours(["the film"], [" was a joy ."])[0])
    assert (logit - float(ours.mean)) / float(ours.std) == pytest.approx(score, abs=1e-5)


@pytest.fixture
def foreign(tokenizer, tmp_path):
    """Saves a classifier as the hub has them."""

    def save(family, *, num_labels=1, **options):
        config = AutoConfig.for_model(
            family, vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=20, num_labels=num_labels, bos_token_id=0, eos_token_id=0,
            **options,
        )  # fmt: skip
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "foreign")
        tokenizer.save_pretrained(tmp_path / "foreign")
        return tmp_path / "foreign"

    return save


FAMILIES = [("llama", 1), ("llama", None), ("bert", 1), ("roberta", 1), ("deberta-v2", 1)]


@pytest.mark.parametrize(("family", "pad"), FAMILIES)
@torch.no_grad()
def test_a_foreign_one_scores_what_its_own_logit_is(family, pad, foreign):
    folder = foreign(family, pad_token_id=pad)
    model, tokenizer = as_transformers(folder)
    texts = [p + c + "<end>" * end for p, c, end in zip(PROMPTS, COMPLETIONS, FINISHED, strict=True)]
    alone = [model(**tokenizer(text, return_tensors="pt")).logits[0, 0] for text in texts]
    scores = RewardClassifier.load(folder)(PROMPTS, COMPLETIONS, finished=FINISHED)
    np.testing.assert_allclose(scores, torch.stack(alone), rtol=1e-5, atol=1e-6)
    assert np.ptp(scores) > 1e-3


@torch.no_grad()
def test_a_foreign_one_with_a_chat_template_reads_a_chat(foreign):
    folder = foreign("llama", pad_token_id=1)
    model, tokenizer = as_transformers(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] | trim }} <end> {% endfor %}"
    tokenizer.save_pretrained(folder)
    ids = tokenizer("u the film <end> a is good <end>", add_special_tokens=False, return_tensors="pt")
    scores = RewardClassifier.load(folder)(["the film\n"], ["is good"], finished=[True])
    np.testing.assert_allclose(scores, model(**ids).logits[:, 0], rtol=1e-5)


def test_what_is_no_reward_model_is_refused_by_name(foreign, base):
    with pytest.raises(ValueError, match=r"expected one label, received 2 \(LABEL_0, LABEL_1\)"):
        RewardClassifier.load(foreign("bert", num_labels=2))
    with pytest.raises(ValueError, match=r"are missing \(score.weight\)"):
        RewardClassifier.load(base)
