import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from reward_models import RewardModel

ROWS = [[0, 2, 3, 4], [0, 5, 6, 7, 8, 9, 0], [0, 3]]


def right_padded(rows, garbage):
    width = max(map(len, rows)) + 2
    tokens = torch.tensor([[*row, *[garbage] * (width - len(row))] for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return tokens, mask


def left_padded(rows, garbage):
    tokens, mask = right_padded([row[::-1] for row in rows], garbage)
    return tokens.flip(1), mask.flip(1)


@torch.no_grad()
def test_the_score_is_the_head_at_the_last_real_token(model):
    model.eval()
    for row, score in zip(ROWS, model.score_rows(ROWS), strict=True):
        hidden = model.backbone(input_ids=torch.tensor([row])).last_hidden_state
        torch.testing.assert_close(torch.tensor(score), (hidden[0, -1] @ model.head.weight[0]).float())


@pytest.mark.parametrize("padded", [left_padded, right_padded])
@torch.no_grad()
def test_padding_on_either_side_and_neighbors_change_no_score(model, padded):
    model.eval()
    alone = torch.cat([model(torch.tensor([row]), torch.ones(1, len(row))) for row in ROWS])
    for garbage in (0, 11):
        torch.testing.assert_close(model(*padded(ROWS, garbage)), alone)
    torch.testing.assert_close(torch.tensor(model.score_rows(ROWS, batch_size=1)), alone)


def test_text_and_tokens_get_the_same_score_with_and_without_eos(model):
    prompts, completions = ["the film", "a plot", ""], [" is good", " was", " dull film"]
    ids = [model.tokenizer(text)["input_ids"] for text in completions]
    finished = [True, False, True]
    prompt_rows = np.full((3, 4), -1)
    completion_rows = np.full((3, 5), -1)
    for i, (prompt, completion) in enumerate(zip(prompts, ids, strict=True)):
        row = [0, *model.tokenizer(prompt)["input_ids"]]
        prompt_rows[i, : len(row)] = row
        row = [*completion, 0] if finished[i] else completion
        completion_rows[i, : len(row)] = row
    by_tokens = model.score_tokens(prompt_rows, completion_rows)
    np.testing.assert_allclose(by_tokens, model.score(prompts, completions, finished=finished), rtol=1e-5)
    assert by_tokens.dtype == np.float32
    assert abs(by_tokens[1] - model(prompts, completions)[1]) > 1e-4


def encoder(family, tokenizer):
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, pad_token_id=1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return RewardModel(AutoModel.from_config(config), tokenizer).eval()


@pytest.mark.parametrize(("family", "longest"), [("roberta", 18), ("xlm-roberta", 18), ("mpnet", 18), ("bert", 20)])
@pytest.mark.parametrize("padded", [left_padded, right_padded])
@torch.no_grad()
def test_an_encoder_counts_positions_as_it_does_by_itself(tokenizer, family, longest, padded):
    """RoBERTa's begin behind the padding index, so that 20 are room for 18 tokens."""
    model = encoder(family, tokenizer)
    rows = [*ROWS, [3] * longest]
    alone = [model.backbone(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    expected = torch.stack(alone) @ model.head.weight[0]
    torch.testing.assert_close(model(*padded(ROWS, 11)), expected[:3])
    torch.testing.assert_close(torch.tensor(model.score_rows(rows)), expected)
    assert model.max_length == longest


def test_dropout_is_off_in_scoring_and_training_mode_is_given_back(model):
    model.train()
    np.testing.assert_array_equal(model.score_rows(ROWS), model.score_rows(ROWS))
    assert model.training
    assert model.backbone.training


def test_save_and_load_is_bit_equal_head_and_calibration_included(model, tmp_path):
    model.calibrate(ROWS)
    model.save(tmp_path / "saved")
    loaded = RewardModel.load(tmp_path / "saved")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.state_dict().keys() == model.state_dict().keys()
    np.testing.assert_array_equal(loaded.score_rows(ROWS), model.score_rows(ROWS))
    np.testing.assert_array_equal(loaded(["the film"], [" is bad"]), model(["the film"], [" is bad"]))
    assert not loaded.training


def test_loading_draws_nothing_from_torchs_global_generator(gpt2, tmp_path):
    gpt2.save(tmp_path)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    RewardModel.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_calibrated_scores_have_mean_0_and_standard_deviation_1_and_keep_the_order(gpt2):
    before = gpt2.score_rows(ROWS)
    gpt2.calibrate(ROWS)
    gpt2.calibrate(ROWS)  # a second time changes nothing
    scores = gpt2.score_rows(ROWS)
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(scores, (before - before.mean()) / before.std(), rtol=1e-4, atol=1e-5)


def test_calibration_refuses_too_few_or_equal_rows(gpt2):
    with pytest.raises(ValueError, match="at least two rows"):
        gpt2.calibrate(ROWS[:1])
    with pytest.raises(ValueError, match="std"):
        gpt2.calibrate([ROWS[0], ROWS[0]])


def test_a_row_longer_than_the_model_keeps_its_newest_tokens(gpt2):
    long = [0, *[2, 3, 4, 5] * 20]
    np.testing.assert_array_equal(gpt2.score_rows([long]), gpt2.score_rows([long[-32:]]))


def test_bad_input_is_named(gpt2):
    with pytest.raises(ValueError, match=r"completions: expected 2, .* received 1"):
        gpt2(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="share a tokenizer"):
        gpt2.score_tokens(np.array([[0, 99]]), np.array([[1]]))
    with pytest.raises(ValueError, match=r"\[N, P\] prompts"):
        gpt2.score_tokens(np.array([0, 1]), np.array([[1]]))
    with pytest.raises(ValueError, match="empty row"):
        gpt2.score_rows([[]])
    assert gpt2([], []).shape == (0,)


def test_a_folder_that_holds_no_whole_reward_model_is_refused(gpt2, tmp_path):
    with pytest.raises(ValueError, match="holds no reward model"):
        RewardModel.load(tmp_path)
    gpt2.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        RewardModel.load(tmp_path)
    gpt2.save(tmp_path)
    description = json.loads((tmp_path / "reward_model.json").read_text())
    (tmp_path / "reward_model.json").write_text(json.dumps(description | {"version": 99}))
    with pytest.raises(ValueError, match="version"):
        RewardModel.load(tmp_path)
    for wrong in ({"std": 0.0}, {"mean": float("nan")}, {"std": None}, {"max_length": "128"}):
        (tmp_path / "reward_model.json").write_text(json.dumps(description | wrong))
        with pytest.raises(ValueError, match=f"damaged reward model: reward_model.json has .*{next(iter(wrong))}"):
            RewardModel.load(tmp_path)


@pytest.mark.parametrize("cut", ["reward_models.files.write_aside", "reward_models.files.write_json"])
def test_a_save_over_a_model_that_was_cut_short_leaves_no_mixture_of_the_two(gpt2, tmp_path, monkeypatch, cut):
    """The new weights were read with the old calibration."""

    def killed(*_):
        raise KeyboardInterrupt

    gpt2.save(tmp_path)
    monkeypatch.setattr(cut, killed)
    with pytest.raises(KeyboardInterrupt):
        gpt2.save(tmp_path)
    with pytest.raises(ValueError, match="holds no reward model"):
        RewardModel.load(tmp_path)


def test_a_model_directory_without_tokenizer_is_named(gpt2, tmp_path):
    gpt2.backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: no tokenizer"):
        RewardModel.from_backbone(tmp_path)
    gpt2.tokenizer.save_pretrained(tmp_path)
    assert RewardModel.from_backbone(tmp_path).max_length == 32
