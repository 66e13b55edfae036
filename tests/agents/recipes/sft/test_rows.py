"""Which tokens are learned, worked out by hand in a vocabulary of words (`conftest.CHAT_WORDS` are the ids)."""

import copy
import json

import numpy as np
import pytest

from agents.recipes.sft.data import Examples, read_examples
from agents.recipes.sft.rows import RowEncoder, TokenRow, check_vocabulary, limit_rows, split_rows
from textenvs.tokens.prompts import load_prompts
from textenvs.tokens.row_files import Row
from textenvs.wrappers.chat_prompts import ChatTemplate

END, USER, ASSISTANT, SYSTEM, NEW = range(5)
WHAT, IS, TWO, THREE, FOUR, PLUS, AND, RED, SKY, GRASS, BLUE, GREEN = range(5, 17)


def encode(tokenizer, row, **options):
    kind = {"prompt": "completions", "text": "texts", "messages": "chats"}[next(iter(row))]
    examples = Examples(kind=kind, rows=[Row(row, "my.jsonl:1")])
    encoder = RowEncoder(tokenizer, eos_token_id=END, **options)
    return encoder(examples)[0], encoder


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def learned(row):
    return [row.tokens[begin:end].tolist() for begin, end in row.spans]


def row_of(tokens, begin=1, place="my.jsonl:1"):
    return TokenRow(
        tokens=np.array(tokens, dtype=np.int32), spans=((begin, len(tokens)),), opening=begin, prompt="", place=place
    )


def test_of_a_completion_the_completion_and_its_end_are_learned(chat_tokenizer):
    row, _ = encode(chat_tokenizer, {"prompt": "two plus", "completion": " three is"})
    assert row.tokens.tolist() == [END, TWO, PLUS, THREE, IS, END]
    assert learned(row) == [[THREE, IS, END]]
    assert (row.opening, row.prompt) == (3, "two plus")


def test_a_turn_that_ends_with_another_token_of_the_set_learns_that_one(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = (
        "{% for turn in messages %}<{{ turn['role'] }}> {{ turn['content'] }} <new> {% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    examples = Examples(kind="chats", rows=[Row({"messages": turns(("user", "what"), ("assistant", "sky"))}, "a:1")])
    (row,) = RowEncoder(tokenizer, eos_token_id=(END, NEW))(examples)
    assert row.tokens.tolist() == [USER, WHAT, NEW, ASSISTANT, SKY, NEW]
    assert learned(row) == [[SKY, NEW]]
    plain = Examples(kind="texts", rows=[Row({"text": "sky is blue"}, "a:1")])
    assert RowEncoder(tokenizer, eos_token_id=(END, NEW))(plain)[0].tokens[-1] == END  # the tokenizer's own


def test_of_a_text_everything_but_the_first_token_is_learned(chat_tokenizer):
    row, _ = encode(chat_tokenizer, {"text": "sky is blue"})
    assert row.tokens.tolist() == [END, SKY, IS, BLUE, END]
    assert learned(row) == [[SKY, IS, BLUE, END]]
    assert row.opening == 2


def test_of_a_chat_the_assistants_words_and_ends_of_turn_are_learned_and_nothing_else(chat_tokenizer):
    messages = turns(("system", "and"), ("user", "what"), ("assistant", "sky"), ("user", "is"), ("assistant", "blue"))
    row, encoder = encode(chat_tokenizer, {"messages": messages})
    assert row.tokens.tolist() == [
        SYSTEM, AND, END, NEW, USER, WHAT, END, NEW, ASSISTANT, SKY, END, NEW,
        USER, IS, END, NEW, ASSISTANT, BLUE, END,
    ]  # fmt: skip
    assert learned(row) == [[SKY, END], [BLUE, END]]
    assert (row.opening, row.prompt) == (9, "and\nwhat")
    assert encoder.num_apart == 0


def test_turns_after_the_last_answer_are_left_out(chat_tokenizer):
    asked = turns(("user", "what"), ("assistant", "sky"))
    short, _ = encode(chat_tokenizer, {"messages": asked})
    longer, _ = encode(chat_tokenizer, {"messages": [*asked, *turns(("user", "is"))]})
    assert short.tokens.tolist() == longer.tokens.tolist()


def test_a_prompt_has_the_tokens_that_reinforcement_learning_begins_with(chat_tokenizer, tmp_path):
    pair = {"prompt": "what is", "completion": "sky"}
    wrapped, _ = encode(chat_tokenizer, pair, wrap=True)
    bare, _ = encode(chat_tokenizer, pair)
    messages = turns(("system", "and"), ("user", "what is"), ("assistant", "sky"))
    chat, _ = encode(chat_tokenizer, {"messages": messages})
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}))
    reader = ChatTemplate(chat_tokenizer)
    for row, source, tokenizer in (
        (wrapped, ["what is"], reader),
        (bare, ["what is"], chat_tokenizer),
        (chat, tmp_path / "chats.jsonl", reader),
        (chat, [messages], chat_tokenizer),
    ):
        prompts = load_prompts(source, tokenizer, vocab_size=len(chat_tokenizer))
        assert row.tokens[: row.opening].tolist() == prompts.tokens[0].tolist()


class Merging:
    """A tokenizer in which "a" and "b" together are another token than each for itself."""

    def __call__(self, text, **options):
        ids = {"a": [1], "b": [2], "ab": [3], "ac": [1, 4]}
        return {"input_ids": ids[text] if isinstance(text, str) else [ids[one] for one in text]}


def test_a_completion_that_would_merge_with_its_prompt_is_tokenized_apart_and_counted():
    row, encoder = encode(Merging(), {"prompt": "a", "completion": "b"})
    assert row.tokens.tolist() == [1, 2, END]
    assert encoder.num_apart == 1
    row, encoder = encode(Merging(), {"prompt": "a", "completion": "c"})
    assert row.tokens.tolist() == [1, 4, END]
    assert encoder.num_apart == 0


def with_template(tokenizer, template):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_templates_that_cannot_be_followed_are_refused_by_line(chat_tokenizer):
    two = {"messages": turns(("user", "what"), ("assistant", "sky"), ("user", "is"), ("assistant", "blue"))}
    refuses = with_template(chat_tokenizer, "{{ raise_exception('no such roles') }}")
    with pytest.raises(ValueError, match=r"my\.jsonl:1: the chat template rejects these turns: no such roles"):
        encode(refuses, two)
    forgets = with_template(
        chat_tokenizer,
        "{% for m in messages[-2:] %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}",
    )
    with pytest.raises(ValueError, match=r"my\.jsonl:1: with turn 4 the chat template writes what was before"):
        encode(forgets, two)
    silent = with_template(chat_tokenizer, "<user> <assistant> ")
    with pytest.raises(ValueError, match=r"my\.jsonl:1: the chat template drops what the assistant says"):
        encode(silent, two)
    with pytest.raises(ValueError, match=r"my\.jsonl:1: expected a tokenizer with a chat template for a chat"):
        encode(with_template(chat_tokenizer, None), two)


def test_plain_text_cannot_be_wrapped_into_turns(chat_tokenizer):
    with pytest.raises(ValueError, match="--chat-template: rows of plain text have no turns"):
        encode(chat_tokenizer, {"text": "sky"}, wrap=True)


def test_longer_rows_are_refused_cut_or_skipped():
    rows = [row_of([1, 2, 3]), row_of([1, 2, 3, 4, 5], begin=2, place="my.jsonl:2")]
    assert limit_rows(rows, 5, "refuse") == (rows, 0)
    assert limit_rows(rows, None, "refuse") == (rows, 0)
    with pytest.raises(ValueError, match=r"my\.jsonl:2: a row of 5 tokens is longer than 4"):
        limit_rows(rows, 4, "refuse")
    assert limit_rows(rows, 4, "skip") == (rows[:1], 1)
    cut, number = limit_rows(rows, 4, "cut")
    assert number == 1
    assert learned(cut[1]) == [[3, 4]]
    with pytest.raises(ValueError, match=r"my\.jsonl:2: the first 2 of its 5 tokens are all prompt"):
        rows[1].cut(2)


def test_no_prompt_is_on_both_sides_of_the_split_and_the_seed_chooses():
    rows = [row_of([prompt, prompt, answer], begin=2) for prompt in range(20) for answer in range(3)]
    train, heldout = split_rows(rows, share=0.2, most=100, seed=0)
    assert len(heldout) == 12
    assert len(train) + len(heldout) == len(rows)
    assert not {int(row.tokens[0]) for row in train} & {int(row.tokens[0]) for row in heldout}
    assert split_rows(rows, share=0.2, most=100, seed=0)[1] == heldout
    assert split_rows(rows, share=0.2, most=100, seed=1)[1] != heldout
    assert len(split_rows(rows, share=0.9, most=6, seed=0)[1]) == 6
    with pytest.raises(ValueError, match=r"expected two different prompts .* --heldout-share 0"):
        split_rows([row_of([1, 1, answer], begin=2) for answer in range(9)], share=0.5, most=9, seed=0)


def test_a_token_that_the_model_does_not_know_is_named_by_line():
    check_vocabulary([row_of([0, 6])], 7)
    with pytest.raises(ValueError, match=r"my\.jsonl:1: token 7 is not in the model's vocabulary \[0, 7\)"):
        check_vocabulary([row_of([0, 7])], 7)


def test_rows_of_a_file_come_in_its_order(chat_tokenizer, tmp_path):
    (tmp_path / "my.jsonl").write_text('{"text": "sky"}\n{"text": "grass"}\n')
    rows = RowEncoder(chat_tokenizer, eos_token_id=END)(read_examples(tmp_path / "my.jsonl"))
    assert [row.tokens.tolist() for row in rows] == [[END, SKY, END], [END, GRASS, END]]
