import json

import pytest

from agents.recipes.sft.data import read_examples


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "two plus", "completion": " three"}, "completions"),
        ({"text": "the sky"}, "texts"),
        (chat(("system", ""), ("user", "sky"), ("assistant", "blue"), ("user", "and")), "chats"),
    ],
)
def test_the_first_row_tells_the_kind_and_rows_know_their_line(tmp_path, row, kind):
    path = write(tmp_path / "my.jsonl", row, "", row | {"source": "ignored"})
    examples = read_examples(path)
    assert examples.kind == kind
    assert [example.columns for example in examples.rows] == [row, row]
    assert [example.place for example in examples.rows] == [f"{path}:1", f"{path}:3"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert read_examples(path) == examples


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": "a"}, "expected prompt and completion; received text"),
        ({"prompt": "a"}, "expected prompt and completion; received prompt"),
        ({"prompt": 7, "completion": "a"}, "'prompt' must be a string or a chat, received 7"),
        ({"prompt": "a", "completion": None}, "expected prompt and completion; received prompt"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a string, received 3"),
        ({"prompt": "a", "completion": " \n"}, "'completion' is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, complaint):
    path = write(tmp_path / "my.jsonl", {"prompt": "a", "completion": "b"}, row)
    with pytest.raises(ValueError, match=rf"my\.jsonl:2: expected a row to learn from: {complaint}"):
        read_examples(path)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "a"}, "expected messages, or prompt and completion, or text; received question"),
        ({"prompt": "a"}, "expected messages, or .*; received prompt"),
        ({"text": 3}, "'text' must be a string, received 3"),
        ({"messages": []}, "'messages': expected a list of turns"),
        ({"messages": ["hello"]}, "turn 1: expected an object with the strings role and content, received 'hello'"),
        (chat(("user", ["a", "picture"])), "turn 1: expected an object"),
        (chat(("user", "sky")), "no turn is the assistant's"),
        (chat(("assistant", "blue")), "'messages': expected another role than assistant in the first turn"),
        (chat(("user", "sky"), ("assistant", " ")), "turn 2: expected text of the assistant"),
    ],
)
def test_a_bad_first_row_is_named_too(tmp_path, row, complaint):
    with pytest.raises(ValueError, match=rf"my\.jsonl:1: expected a row to learn from: .*{complaint}"):
        read_examples(write(tmp_path / "my.jsonl", row))


def test_a_prompt_beside_messages_is_one_more_field(tmp_path):
    row = chat(("user", "sky"), ("assistant", "blue"))
    assert read_examples(write(tmp_path / "my.jsonl", row | {"prompt": "sky"})).kind == "chats"


def test_a_prompt_that_is_a_chat_and_its_completion_are_one_chat(tmp_path):
    (first, second), whole = (
        chat(("user", "sky"), ("assistant", "blue"))["messages"],
        chat(("user", "sky"), ("assistant", "blue")),
    )
    rows = {"prompt": [first], "completion": [second]}, {"prompt": [first], "completion": "blue"}
    examples = read_examples(write(tmp_path / "my.jsonl", *rows))
    assert [row.columns for row in examples.rows] == [whole, whole]
    with pytest.raises(ValueError, match=r"my\.jsonl:1: .*turn 2: expected .* received .*7"):
        read_examples(write(tmp_path / "my.jsonl", {"prompt": [first], "completion": 7}))


def test_a_file_without_rows_and_one_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"empty\.jsonl: expected at least one row"):
        read_examples(write(tmp_path / "empty.jsonl", "", ""))
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.jsonl"):
        read_examples(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"my\.jsonl:1: .*expected messages; received text"):
        read_examples(write(tmp_path / "my.jsonl", {"text": "a"}), "chats")
