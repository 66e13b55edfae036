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
    assert [example.content for example in examples.rows] == [row, row]
    assert [example.place for example in examples.rows] == [f"{path}:1", f"{path}:3"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert read_examples(path) == examples


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{oops", "expected JSON, .*oops"),
        ("[1]", r"expected an object, received '\[1\]'"),
        ({"text": "a"}, "missing 'prompt' and 'completion'"),
        ({"prompt": "a"}, "missing 'completion'"),
        ({"prompt": 7, "completion": "a"}, "'prompt' must be a string, received 7"),
        ({"prompt": "a", "completion": None}, "'completion' must be a string, received None"),
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
        ({"question": "a"}, "a row has prompt and completion, or text, or messages; received question"),
        ({"text": "a", "messages": []}, "a row has .*; this one has text, messages"),
        ({"prompt": "a"}, "a row has .*; received prompt"),
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


def test_a_file_without_rows_and_one_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"empty\.jsonl: expected at least one line"):
        read_examples(write(tmp_path / "empty.jsonl", "", ""))
    with pytest.raises(ValueError, match="expected a readable text file"):
        read_examples(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"my\.jsonl:1: .*missing 'messages'"):
        read_examples(write(tmp_path / "my.jsonl", {"text": "a"}), "chats")
