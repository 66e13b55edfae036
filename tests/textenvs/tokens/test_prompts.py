import copy
import json
import tracemalloc

import numpy as np
import pytest
from tokenizers import processors

from textenvs.tokens.prompts import PromptSampler, load_prompts


def read(source, tokenizer=None, **options):
    return load_prompts(source, tokenizer, **{"vocab_size": 40} | options)


def test_lists_text_files_and_jsonl_files_give_the_same_prompts(tmp_path, tokenizer):
    texts = ["w1 w2", "w3"]
    (tmp_path / "p.txt").write_text("w1 w2\r\n\nw3\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": [0, 5], "more": 1}\n', encoding="utf-8-sig")
    for source in (texts, iter(texts), tmp_path / "p.txt", str(tmp_path / "p.jsonl"), [[0, 3, 4], np.array([0, 5])]):
        prompts = read(source, tokenizer)
        np.testing.assert_array_equal(prompts.tokens, [[0, 3, 4], [0, 5, -1]])
        np.testing.assert_array_equal(prompts.lengths, [3, 2])
    assert read(tmp_path / "p.txt", tokenizer).places[1].endswith("p.txt:3")
    assert read(read(tmp_path / "p.txt", tokenizer)[1:]).places == (f"{tmp_path / 'p.txt'}:3",)
    with pytest.raises(ValueError, match=r"p\.txt:1: expected a prompt of at most 2 tokens, received 3"):
        read(read(tmp_path / "p.txt", tokenizer), max_tokens=2)


@pytest.mark.parametrize(
    ("line", "received"),
    [
        ("{oops", "oops"),
        ('{"question": "w1"}', "question"),
        ('["w1"]', "w1"),
        ('{"prompt": 7}', "7"),
        ('{"prompt": [1.5]}', "1.5"),
        ('{"prompt": ""}', "at least one token"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_file_and_number_with_what_was_received(tmp_path, line, received):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": [1]}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.jsonl:2: .*" + received.replace("[", r"\[")):
        read(path, lambda text: {"input_ids": []})


def test_empty_sources_are_refused(tmp_path, tokenizer):
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty\.txt: expected at least one row"):
        read(tmp_path / "empty.txt", tokenizer)
    with pytest.raises(ValueError, match="rows: expected at least one row"):
        read([])
    with pytest.raises(ValueError, match=r"rows\[1\]: expected a prompt of at least one token"):
        read([[1], []])


def test_wrong_prompts_are_refused_by_place(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        read(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match=r"rows\[1\]: expected a prompt of at most 3 tokens, received 4"):
        read(["w1 w2", "w1 w2 w3"], tokenizer, max_tokens=3)
    with pytest.raises(ValueError, match=r"rows\[0\]: token id 40 is outside the vocabulary \[0, 40\)"):
        read([[1, 40]])
    with pytest.raises(ValueError, match=r"rows\[0\]: token id -1 "):
        read([[1, -1]])
    with pytest.raises(ValueError, match=r"rows\[0\]: expected a tokenizer, or token ids"):
        read(["w1"])
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt:1: expected UTF-8"):
        read(tmp_path / "latin.txt", tokenizer)


def test_every_prompt_is_drawn_once_an_epoch_in_an_order_of_its_own():
    sampler, generator = PromptSampler(20, shuffle=True), np.random.default_rng(0)
    epochs = [tuple(sampler.draw(20, generator)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len(set(epochs)) == 3
    np.testing.assert_array_equal(PromptSampler(2, shuffle=False).draw(5, generator), [0, 1, 0, 1, 0])


def test_a_sampler_goes_on_from_its_saved_state_through_json():
    sampler, generator = PromptSampler(7, shuffle=True), np.random.default_rng(0)
    sampler.draw(10, generator)
    saved, generator_state = json.loads(json.dumps(sampler.state_dict())), generator.bit_generator.state
    expected = sampler.draw(30, generator)
    other, other_generator = PromptSampler(7, shuffle=True), np.random.default_rng(9)
    other_generator.bit_generator.state = generator_state
    other.load_state_dict(saved)
    np.testing.assert_array_equal(other.draw(30, other_generator), expected)
    with pytest.raises(ValueError, match="expected 8 prompts, each 1 times in a row, received 7"):
        PromptSampler(8, shuffle=True).load_state_dict(saved)


def test_repeated_prompts_come_in_a_row_and_each_once_an_epoch():
    sampler, generator = PromptSampler(3, shuffle=True, repeats=2), np.random.default_rng(0)
    drawn = sampler.draw(12, generator).reshape(6, 2)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert sorted(drawn[:3, 0]) == sorted(drawn[3:, 0]) == [0, 1, 2]
    with pytest.raises(ValueError, match="each 1 times in a row"):
        PromptSampler(3, shuffle=True).load_state_dict(sampler.state_dict())


def test_one_long_prompt_among_many_costs_its_own_tokens_only():
    short, long = [1, 2, 3, 4, 5, 6, 7, 8], [9] * 4_000
    source = [[*short]] * 10_000 + [long]
    tracemalloc.start()
    prompts = read(source)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    own = 4 * (10_000 * 8 + 4_000)
    assert prompts.flat.nbytes == own
    assert kept - own < 2e6
    assert peak - own < 4e6
    assert prompts.padded([7, 10_000])[:, :9].tolist() == [[*short, -1], [9] * 9]


@pytest.mark.parametrize("kind", ["list", "jsonl", "parquet", "Dataset", "folder"])
def test_rows_are_the_same_from_every_source(tmp_path, tokenizer, kind):
    rows = [{"prompt": "w1 w2", "answer": 3, "hints": ["a", None]}, {"prompt": "w3", "answer": None, "hints": ["b"]}]
    source = rows if kind == "list" else tmp_path / f"train.{kind}"
    if kind == "jsonl":
        source.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(rows), source
        )
    elif kind in ("Dataset", "folder"):
        table = pytest.importorskip("datasets").table.InMemoryTable.from_pylist(rows)
        data = pytest.importorskip("datasets").Dataset(table, fingerprint="any")
        source = data if kind == "Dataset" else (data.save_to_disk(source), source)[1]
    prompts = read(source, tokenizer)
    assert [prompts.row(i).tolist() for i in (0, 1)] == [[0, 3, 4], [0, 5]]
    assert [dict(row) for row in prompts.columns] == [{"answer": 3, "hints": ["a", None]}, {"hints": ["b"]}]
    assert [row.place for row in prompts.columns] == list(prompts.places)


def test_what_is_no_list_of_rows_is_refused(tokenizer):
    with pytest.raises(ValueError, match="received a dict: pass one of its splits"):
        read({"train": ["w1"], "test": ["w2"]}, tokenizer)
    with pytest.raises(ValueError, match=r"received a DataFrame: pass its to_dict\('records'\)"):
        read(pytest.importorskip("pandas").DataFrame([{"prompt": "w1"}]), tokenizer)
    with pytest.raises(ValueError, match=r"rows\[1\]: expected messages, or prompt; received question, answer"):
        read([{"prompt": "w1"}, {"question": "w1", "answer": 2}], tokenizer)
    with pytest.raises(ValueError, match=r"rows\[0\]: answer: expected Unicode text"):
        read([{"prompt": "w1", "answer": "\ud83d"}], tokenizer)


def test_columns_beside_the_prompt_stay_with_it():
    prompts = read([{"prompt": [1], "answer": "a"}, [2], {"prompt": [3], "answer": None, "level": 2}])
    assert [dict(columns) for columns in prompts.columns] == [{"answer": "a"}, {}, {"level": 2}]
    assert [dict(columns) for columns in prompts[[2, 0]].columns] == [{"level": 2}, {"answer": "a"}]
    assert prompts[1:].tokens.tolist() == [[2], [3]]


def test_texts_that_no_tokenizer_takes_are_named_by_place(tokenizer):
    with pytest.raises(ValueError, match=r"rows\[1\]: prompt: expected Unicode text, .*'\\ud83d' at character 3"):
        read(["w1", "w1 \ud83d"], tokenizer)

    def breaks(text):
        raise TypeError("TextEncodeInput must be Union[...]")

    with pytest.raises(ValueError, match=r"rows\[0\]: TypeError: TextEncodeInput"):
        read(["w1"], breaks)


def test_an_unfinished_text_gets_no_end_and_a_rendered_one_no_second_beginning(tokenizer):
    ends = copy.deepcopy(tokenizer)
    ends.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<end> $A <end>", special_tokens=[("<end>", 0)]
    )
    assert ends("w1")["input_ids"] == [0, 3, 0]
    assert read(["w1", "<end> w1", "w1 <end>"], ends).tokens.tolist() == [[0, 3, -1], [0, 3, -1], [0, 3, 0]]
    assert read(["w1", "<end> w1"], tokenizer).tokens.tolist() == [[0, 3], [0, 3]]
