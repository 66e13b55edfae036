"""Which prompts a text run trains on, and which it is judged by."""

import json

import pytest

from agents.recipes.rlhf.prompts import prompt_sets
from agents.recipes.rlhf.task import TextTask


def asked(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_prompt_of_several_rows_is_on_one_side_only(tmp_path, chat_tokenizer):
    words = ["what", "is", "two", "three", "four", "plus", "red", "sky", "grass", "blue"]
    rows = [{"prompt": word, "answer": number} for number in range(4) for word in words]
    task = TextTask(rows=asked(tmp_path / "p.jsonl", *rows))
    train, heldout = prompt_sets(task, chat_tokenizer)
    assert heldout.tokens.tolist() == [[0, 5]] * 4  # a tenth of 40 rows: all with the first prompt
    assert [row["answer"] for row in heldout.columns] == [0, 1, 2, 3]
    assert len(train) == 36
    assert [0, 5] not in train.tokens.tolist()
    with pytest.raises(ValueError, match=r"one\.jsonl: expected two different prompts .* pass --eval-rows"):
        prompt_sets(TextTask(rows=asked(tmp_path / "one.jsonl", *rows[::10])), chat_tokenizer)


def test_what_a_file_of_evaluation_prompts_has_is_not_trained_on(tmp_path, chat_tokenizer):
    mine = asked(tmp_path / "mine.jsonl", *({"prompt": word} for word in ("what", "is", "two", "what")))
    other = asked(tmp_path / "other.jsonl", {"prompt": "what"}, {"prompt": "red"})
    with pytest.warns(UserWarning, match=r"2 rows are not trained on: .*other\.jsonl"):
        train, heldout = prompt_sets(TextTask(rows=mine, eval_rows=other), chat_tokenizer)
    assert (train.tokens.tolist(), heldout.tokens.tolist()) == ([[0, 6], [0, 7]], [[0, 5], [0, 12]])
    with pytest.raises(ValueError, match=r"mine\.jsonl: expected prompts other than those to train on"):
        prompt_sets(TextTask(rows=mine, eval_rows=mine), chat_tokenizer)


def test_long_prompts_are_refused_cut_to_their_end_or_skipped(tmp_path, chat_tokenizer, capsys):
    mine = asked(tmp_path / "mine.jsonl", *({"prompt": prompt} for prompt in ("what", "is two three", "red", "sky")))
    sides = {}
    for too_long in ("cut", "skip"):
        task = TextTask(rows=mine, max_prompt_tokens=2, too_long=too_long)
        sides[too_long] = [side.tokens.tolist() for side in prompt_sets(task, chat_tokenizer)]
        assert f"1 prompts longer than 2 tokens: too_long {too_long}" in capsys.readouterr().out
    assert sides == {"cut": [[[7, 8], [0, 12], [0, 13]], [[0, 5]]], "skip": [[[0, 12], [0, 13]], [[0, 5]]]}
    with pytest.raises(ValueError, match=r"mine\.jsonl:2: expected a prompt of at most 2 tokens, received 4"):
        prompt_sets(TextTask(rows=mine, max_prompt_tokens=2), chat_tokenizer)
    with pytest.raises(ValueError, match="every prompt is longer than max_prompt_tokens 1"):
        prompt_sets(TextTask(rows=mine, max_prompt_tokens=1, too_long="skip"), chat_tokenizer)
    with pytest.raises(ValueError, match="too_long cut needs max_prompt_tokens"):
        TextTask(rows=mine, too_long="cut")
