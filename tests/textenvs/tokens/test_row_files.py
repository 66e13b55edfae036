"""Every kind of file gives the same rows to every stage, and every fault in one is named by file and line."""

import csv
import json
import sys

import pytest

from agents.recipes.sft.data import read_examples
from reward_models.data.pairs import read_pairs
from textenvs.tokens.prompts import load_prompts
from textenvs.tokens.row_files import Row, hold_out, kind_of, left_over, read_rows

ROWS = [
    {"prompt": "w1 w2", "completion": "w3", "answer": "a\nb", "messages": [{"role": "user", "content": "w1"}]},
    {"prompt": "w3", "completion": "w4", "answer": "ü", "messages": None},
]
KEPT = [ROWS[0], {name: value for name, value in ROWS[1].items() if value is not None}]


def written(path):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n", encoding="utf-8-sig")
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, ROWS[0])
            out.writeheader()
            out.writerows([ROWS[0] | {"messages": json.dumps(ROWS[0]["messages"])}, ROWS[1]])
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        datasets = pytest.importorskip("datasets")
        table = datasets.table.InMemoryTable.from_pylist(ROWS)
        datasets.Dataset(table, fingerprint="any").save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["my.jsonl", "my.json", "my.csv", "my.parquet", "folder"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = written(tmp_path / name)
    places = {".jsonl": (":1", ":2"), ".csv": (":2", ":4")}.get(path.suffix, ("[0]", "[1]"))
    assert read_rows(path) == [Row(kept, f"{path}{place}") for kept, place in zip(KEPT, places, strict=True)]


def test_the_row_numbers_that_pandas_writes_are_no_column(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text(",prompt,answer\n0,film,1\n1,plot,2\n")
    assert [(row.columns, row.place) for row in read_rows(path)] == [
        ({"prompt": "film", "answer": "1"}, f"{path}:2"), ({"prompt": "plot", "answer": "2"}, f"{path}:3"),
    ]  # fmt: skip


def test_a_json_file_of_json_lines_and_lines_of_text(tmp_path):
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))
    assert [row.columns for row in read_rows(tmp_path / "lines.json")] == KEPT
    (tmp_path / "my.txt").write_text("w1\r\n\nw2 \n")
    rows = read_rows(tmp_path / "my.txt", bare="prompt")
    assert rows == [Row({"prompt": "w1"}, f"{tmp_path}/my.txt:1"), Row({"prompt": "w2 "}, f"{tmp_path}/my.txt:3")]
    with pytest.raises(ValueError, match=r"my\.txt: expected a file of rows \(\.jsonl, .*\), received a '\.txt' file"):
        read_rows(tmp_path / "my.txt")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("my.jsonl", '{"a": "b"}\n{oops', r"my\.jsonl:2: expected JSON, received '\{oops'"),
        ("my.jsonl", '{"a": "b"}\n["b"]', r"my\.jsonl:2: expected a JSON object, received \"\['b'\]\""),
        ("my.jsonl", '\n{"a": [{"b": "c\\ud83d"}]}', r"my\.jsonl:2: a: .*lone surrogate '\\ud83d' at character 1"),
        ("my.jsonl", "[" * 100_000, r"my\.jsonl:1: RecursionError"),
        ("my.jsonl", b'{"a": "b"}\n{"a": "\xe9"}', r"my\.jsonl:2: expected UTF-8 text"),
        ("my.jsonl", " \n", r"my\.jsonl: expected at least one row"),
        ("my.json", '[{"a": "b"}, 3]', r"my\.json\[1\]: expected a JSON object, received '3'"),
        ("my.json", "[{]", r"my\.json: expected JSON"),
        ("my.csv", 'a,b\n1,2\n1,2,3\n', r"my\.csv:3: expected 2 cells, as the header has, received 3"),
        ("my.csv", 'a,b\n1,"2\n', r"my\.csv:\d: Error: unexpected end of data"),
        ("my.csv", 'a,b\n1,"[{\'role\': 2}]"\n', r"my\.csv:2: expected JSON"),
        ("my.csv", b'a,b\n1,\xe9\n', r"my\.csv:\d: .*utf-8"),
        ("my.csv", 'a,b,a\n1,2,3\n', r"my\.csv:1: expected each name once, received 'a' more than once"),
        ("my.jsonl", '{"a": 1}\n{"a": {"b": 1, "b": 2}}', r"my\.jsonl:2: .*each name once, received 'b'"),
        ("my.docx", "a", r"my\.docx: expected a file of rows"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_file_and_line(tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=fault):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["my.parquet", "folder", "owner/name"])
def test_what_a_missing_package_is_needed_for_is_told(tmp_path, monkeypatch, name):
    package = "pyarrow" if name == "my.parquet" else "datasets"
    for module in ("pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "my.parquet").touch()
    (tmp_path / "folder").mkdir()
    path = name if name == "owner/name" else tmp_path / name
    with pytest.raises(ImportError, match=rf"{name}: .*pip install {package}"):
        read_rows(path)


def test_a_data_set_of_the_hub_is_loaded_by_its_split(tmp_path, monkeypatch):
    asked = []

    class Hub:
        @staticmethod
        def load_dataset(*names, split):
            asked.append((*names, split))
            return [{"prompt": "w1"}]

        load_from_disk = None

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    for name in ("owner/name", "owner/name:test", "owner/name:main:test"):
        assert read_rows(name) == [Row({"prompt": "w1"}, f"{name}[0]")]
    assert asked == [("owner/name", "train"), ("owner/name", "test"), ("owner/name", "main", "test")]
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere/my\.jsonl'"):
        read_rows("nowhere/my.jsonl")


def test_messages_come_before_a_prompt_and_a_prompt_before_text():
    everything = {name: "" for name in ("text", "completion", "prompt", "messages")}
    order = ["chats", "completions", "prompts", "texts"]
    for place, (kind, column) in enumerate(zip(order, ("messages", "completion", "prompt", "text"), strict=True)):
        assert kind_of(everything, order[place:]) == kind_of(everything, order) == kind
        del everything[column]
    with pytest.raises(ValueError, match="expected messages, or prompt; received text"):
        kind_of({"text": ""}, ["chats", "prompts"])


def test_all_stages_read_the_same_chat_out_of_one_file(tmp_path, chat_tokenizer):
    asked, answer = {"role": "user", "content": "what is sky"}, {"role": "assistant", "content": "blue"}
    row = {"prompt": "what", "messages": [asked, answer], "chosen": "red", "rejected": "green", "answer": "blue"}
    for name in ("my.jsonl", "my.json"):
        (tmp_path / name).write_text(json.dumps([row] if name == "my.json" else row))
        path = tmp_path / name
        assert read_examples(path).kind == "chats"
        prompts = load_prompts(path, chat_tokenizer, vocab_size=17)
        text = chat_tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
        assert prompts.row(0).tolist() == chat_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert prompts.kind == "chats"
        assert prompts.columns[0] == {name: row[name] for name in ("prompt", "chosen", "rejected", "answer")}
        assert read_pairs(path)[0].prompt == "what is sky\n"


def test_rows_with_one_key_stay_together_and_one_row_at_least_is_trained_on():
    keys = [b"a", b"b", b"a", b"c", b"a", b"b"]
    assert hold_out(keys, 1) == ([0, 1, 2, 4, 5], [3])  # the only key with one row
    assert hold_out(keys, 4) == ([1, 5], [0, 2, 3, 4])
    assert hold_out([b"a", b"a", b"b", b"a", b"b"], 1) == ([0, 1, 3], [2, 4])  # none fits: the smaller one
    assert hold_out(keys, 9) == ([3], [0, 1, 2, 4, 5])
    for seed in range(9):
        train, heldout = hold_out(keys, 3, seed=seed)
        assert sorted(train + heldout) == list(range(6))
        assert not {keys[number] for number in train} & {keys[number] for number in heldout}
    assert len({str(hold_out(keys, 3, seed=seed)) for seed in range(9)}) > 1
    for few in ([b"a"], [b"a", b"a"]):
        with pytest.raises(ValueError, match="expected two different prompts at least"):
            hold_out(few, 1)


def test_what_another_file_holds_out_is_not_trained_on_and_counted():
    with pytest.warns(UserWarning, match=r"2 rows are not trained on: other\.jsonl holds their prompts out"):
        assert left_over([{1}, {2, 3}, {4}, {3, 5}], {3, 6}, "other.jsonl") == [0, 2]
    with pytest.raises(ValueError, match=r"other\.jsonl: expected prompts other than those to train on"):
        left_over([{1}, {2}], {1, 2}, "other.jsonl")
