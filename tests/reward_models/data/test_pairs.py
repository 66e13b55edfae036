import json

import pytest

from reward_models.data.comparisons import PairBatches, split_pairs
from reward_models.data.pairs import PreferencePair, read_pairs, write_pairs


def pair(prompt, chosen, rejected, **more):
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, **more)


def test_what_is_written_is_read_again(tmp_path):
    pairs = [pair("a", " b\u2028c", " c\n"), pair("", "ü", "v", margin=0.5)]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    marked = tmp_path / "marked.jsonl"  # as some editors begin a file
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "pairs.jsonl").read_bytes())
    assert read_pairs(marked) == pairs


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "chosen": "b\\ud83d", "rejected": "c"}', "chosen: expected Unicode text"),
        ('{"prompt": "a", "chosen": "b"}', "missing 'rejected'"),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}', "'rejected': expected a string, received 3"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}', "'margin': expected a finite number"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}', "'margin': expected a finite number"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}', "'margin': expected a finite number"),
    ],
)
def test_a_line_that_is_not_a_pair_is_named(tmp_path, line, reason):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"mine\.jsonl:3: .*{reason}"):
        read_pairs(path)


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": turns(("system", "Be brief."), ("user", "Sky?")), "chosen": "Blue.", "rejected": "Red."},
        {
            "prompt": turns(("system", "Be brief."), ("user", "Sky?")),
            "chosen": turns(("assistant", "Blue.")),
            "rejected": turns(("assistant", "Red.")),
        },
        {
            "prompt": "Sky?",
            "chosen": turns(("system", "Be brief."), ("user", "Sky?"), ("assistant", "Blue.")),
            "rejected": turns(("system", "Be brief."), ("user", "Sky?"), ("assistant", "Red.")),
        },
    ],
)
def test_chats_are_read_as_they_are_said(tmp_path, content):
    (tmp_path / "chats.jsonl").write_text(json.dumps(content))
    assert read_pairs(tmp_path / "chats.jsonl") == [pair("Be brief.\nSky?\n", "Blue.", "Red.")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"prompt": turns(("assistant", "a")), "chosen": "b", "rejected": "c"},
            "'prompt': expected another role than assistant in the first turn",
        ),
        ({"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}, "turn 1: expected an object"),
        ({"prompt": [], "chosen": "b", "rejected": "c"}, "'prompt': expected a string"),
        (
            {"prompt": "a", "chosen": turns(("user", "b")), "rejected": "c"},
            "expected a last turn",
        ),
        (
            {
                "chosen": turns(("user", "a"), ("assistant", "b")),
                "rejected": turns(("user", "other"), ("assistant", "c")),
            },
            "expected answers to the same turns",
        ),
        ({"chosen": turns(("assistant", "b")), "rejected": turns(("assistant", "c"))}, "missing 'prompt'"),
        ({"prompt": "a", "chosen": turns(("assistant", "b")), "rejected": "c"}, "two texts or two chats"),
    ],
)
def test_a_chat_that_is_not_a_pair_is_named(tmp_path, content, reason):
    (tmp_path / "mine.jsonl").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"mine\.jsonl:1: expected a preference pair: .*{reason}"):
        read_pairs(tmp_path / "mine.jsonl")


HH = "\n\nHuman: Sky?\n\nAssistant: What?\n\nHuman: Its color?\n\nAssistant:"
ULTRA = turns(("user", "Sky?"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": HH + " Blue.\nYes.", "rejected": HH + " Blue.\nNo."}, (HH, " Blue.\nYes.", " Blue.\nNo.")),
        ({"chosen": "Sky?\nBlue, I say.", "rejected": "Sky?\nBlack."}, ("Sky?\n", "Blue, I say.", "Black.")),
        ({"chosen": "blue", "rejected": "black"}, ("", "blue", "black")),
        (
            {
                "prompt": "Sky?", "messages": [*ULTRA, *turns(("assistant", "Blue."))], "score_chosen": 8.5,
                "score_rejected": 3.0, "chosen": [*ULTRA, *turns(("assistant", "Blue."))],
                "rejected": [*ULTRA, *turns(("assistant", "Red."))],
            },
            ("Sky?\n", "Blue.", "Red."),
        ),
        (  # conversations that part before the last turn
            {
                "chosen": [*ULTRA, *turns(("assistant", "Blue."), ("user", "Sure?"), ("assistant", "Yes."))],
                "rejected": [*ULTRA, *turns(("assistant", "Red."), ("user", "Oh?"), ("assistant", "No."))],
            },
            ("Sky?\n", "Blue.\nSure?\nYes.", "Red.\nOh?\nNo."),
        ),
        (  # one goes on where the other ends
            {
                "chosen": [*ULTRA, *turns(("assistant", "Blue."))],
                "rejected": [*ULTRA, *turns(("assistant", "Blue."), ("user", "Sure?"), ("assistant", "No."))],
            },
            ("Sky?\n", "Blue.", "Blue.\nSure?\nNo."),
        ),
    ],
)  # fmt: skip
def test_whole_conversations_begin_with_their_prompt(tmp_path, row, expected):
    (tmp_path / "hub.json").write_text(json.dumps([row]))
    assert read_pairs(tmp_path / "hub.json") == [pair(*expected)]


def test_rows_that_prefer_nothing_are_left_out_and_counted(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    ties = [row | {"rejected": "b"}, row | {"score_chosen": 5, "score_rejected": 5.0}]
    ties.append(row | {"chosen_rating": 1, "rejected_rating": 2})
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([*ties, row | {"chosen_score": 5, "rejected_score": 4}]))
    with pytest.warns(UserWarning, match=r"mine\.json: 3 of 4 rows are ties .* left out"):
        assert read_pairs(path) == [pair("a", "b", "c")]
    path.write_text(json.dumps(ties))
    with pytest.raises(ValueError, match=r"3 of 3 rows are ties .* expected rows that prefer one text"):
        read_pairs(path)


def test_the_margins_of_a_csv_file_are_numbers(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,margin\na,b,c,0.5\na,b,d,\n")
    assert read_pairs(path) == [pair("a", "b", "c", margin=0.5), pair("a", "b", "d")]


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="at least one row"):
        read_pairs(tmp_path / "empty.jsonl")


def test_pairs_that_share_a_text_or_a_prompt_are_never_split():
    pairs = [pair(f"prompt {i // 2}", f"c{i}", f"r{i}") for i in range(40)]
    pairs += [pair("", f"text {i}", f"Text {i + 1}!") for i in range(0, 5)]
    train, heldout = split_pairs(pairs, heldout_share=0.2)
    assert sorted(map(repr, [*train, *heldout])) == sorted(map(repr, pairs))
    assert 4 <= len(heldout) <= 18
    assert not {p.prompt for p in train if p.prompt} & {p.prompt for p in heldout if p.prompt}
    assert len({p in heldout for p in pairs[40:]}) == 1


def test_pairs_that_all_hang_together_cannot_be_split():
    with pytest.raises(ValueError, match="none can be held out"):
        split_pairs([pair("same", f"{i}", f"{i + 1}") for i in range(9)])


def test_an_epoch_has_every_pair_once_and_encodes_shared_texts_once(rng):
    pairs = [pair("p", "best", f"worse {i}") for i in range(10)]
    batches = list(PairBatches(pairs=pairs, batch_size=4).epoch(rng))
    assert [len(batch.chosen) for batch in batches] == [4, 4, 2]
    assert sum(list(batch.texts).count("pbest") for batch in batches) == 3
    seen = sorted(batch.texts[i] for batch in batches for i in batch.rejected)
    assert seen == sorted(f"pworse {i}" for i in range(10))
