"""How rewards are called: where they do not apply, side by side, and what is told of one that fails."""

import asyncio
import json
import threading
import traceback

import numpy as np
import pytest

from textenvs import PreferenceReward
from textenvs.rewards import judge, threaded
from textenvs.wrappers.chat_prompts import ChatTemplate
from textenvs.wrappers.preference import combine_scores, score_spread
from textenvs.wrappers.scorers import RewardError

NAN = np.nan
ROWS = [{"prompt": f"w{i} w1", "answer": i} for i in range(1, 5)]


def play(make_envs, scorer, rows=ROWS, **options):
    envs = PreferenceReward(make_envs(len(rows), prompts=rows, shuffle=False, max_new_tokens=2), scorer, **options)
    prompts = envs.draw_prompts(seed=0)
    return envs.play(prompts, np.full((len(rows), 2), 5), columns=envs.unwrapped.drawn_columns)


def test_a_member_adds_nothing_where_it_returns_none_and_a_text_that_none_scores_gets_0(make_envs):
    def even(completions, answer):
        return [None if one % 2 else 10.0 for one in answer]

    def small(answer):
        return [float(one) if one < 3 else None for one in answer]

    rows = play(make_envs, [even, small], weights=[1.0, -0.5])
    assert rows.scores.tolist() == [-0.5, 10 - 1, 0, 10]
    assert rows.rewards[:, 1].tolist() == rows.scores.tolist()
    np.testing.assert_array_equal(rows.member_scores["even"], [NAN, 10, NAN, 10])
    assert play(make_envs, [even, small]).scores.tolist() == [1, (10 + 2) / 2, 0, 10]
    assert play(make_envs, [even, small]).score_std.tolist() == [0, 4, 0, 0]  # of 10 and 2
    assert play(make_envs, even).scores.tolist() == [0, 10, 0, 10]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2, 4, 0]),
        ({"combine": "worst"}, [1, 4, 0]),
        ({"combine": "uncertainty", "uncertainty_coef": 0.5}, [2 - 0.5 * 1, 4, 0]),  # of 1 and 3: variance 1
        ({"weights": [2.0, 1.0, -1.0]}, [2 * 1 - 3, 4, 0]),
    ],
)
def test_scores_are_combined_over_the_members_that_apply(options, expected):
    scores = np.array([[1, NAN, NAN], [NAN, 4, NAN], [3, NAN, NAN]], dtype=np.float32)
    assert combine_scores(scores, **options).tolist() == expected
    assert score_spread(scores).tolist() == [1, 0, 0]


def test_coroutines_and_threads_run_side_by_side_and_scores_keep_the_order(make_envs):
    """Each waits for all others to have begun, so one after the other they would never end."""
    begun = threading.Barrier(3, timeout=20)

    @threaded
    def first(answer):
        begun.wait()
        return [1.0] * len(answer)

    async def second(answer):
        await asyncio.to_thread(begun.wait)
        return [2.0 * one for one in answer]

    @threaded
    def third(answer):
        begun.wait()
        return [None] * len(answer)

    def fourth(answer):
        return [4.0] * len(answer)

    rows = play(make_envs, [first, second, third, fourth], weights=[1.0, 1.0, 1.0, 1.0])
    assert rows.scores.tolist() == [1 + 2 * one + 4 for one in (1, 2, 3, 4)]
    assert list(rows.member_scores) == ["first", "second", "third", "fourth"]


def test_coroutines_run_under_a_running_loop_and_keep_theirs_from_call_to_call(make_envs):
    """As in a notebook; a client that is bound to its loop (an HTTP session) can be kept."""
    loops = []

    async def asks(answer):
        loops.append(asyncio.get_running_loop())
        return [float(one) for one in answer]

    async def cell():
        return play(make_envs, asks).scores.tolist()

    assert asyncio.run(cell()) == play(make_envs, asks).scores.tolist() == [1, 2, 3, 4]
    assert loops[0] is loops[1]


@pytest.mark.parametrize("kind", ["plain", "threaded", "async"])
def test_one_that_raises_is_named_with_the_row_and_keeps_its_traceback(make_envs, tmp_path, kind):
    def looks_up(completions, answer):
        return [{1: 1.0, 2: 2.0, 4: 4.0}[one] for one in answer]

    async def later(completions, answer):
        return looks_up(completions, answer)

    later.__name__ = "looks_up"
    scorer = {"plain": looks_up, "threaded": threaded(lambda completions, answer: looks_up(completions, answer))}
    scorer = scorer.get(kind, later)
    scorer.__name__ = "looks_up"
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))

    def build():
        return make_envs(4, prompts=path, shuffle=False, max_new_tokens=2)

    envs = PreferenceReward(build(), [lambda completions: [0.0] * len(completions), scorer])
    with pytest.raises(RewardError, match=r"scorer\[1\] \(looks_up\) failed on .*train\.jsonl:3, completion ' w3 w3'"):
        envs.play(envs.draw_prompts(), np.full((4, 2), 5), columns=envs.unwrapped.drawn_columns)
    envs.reset()
    envs.step(np.full(4, 5))
    with pytest.raises(RewardError, match=r"KeyError: 3 \(.*test_scorers\.py:\d+\)") as raised:
        envs.step(np.full(4, 5))
    frames = traceback.extract_tb(raised.value.__cause__.__traceback__)
    assert type(raised.value.__cause__) is KeyError
    assert "[{1: 1.0, 2: 2.0, 4: 4.0}[one] for one in answer]" in frames[-1].line
    assert "train.jsonl:3" in raised.value.__notes__[0]


def test_a_scorer_that_fails_only_on_several_texts_together_names_them_all(make_envs):
    def crowded(answer):
        if len(answer) > 1:
            raise ValueError("too many")
        return [0.0]

    with pytest.raises(
        RewardError, match=r"crowded failed on 2 texts, from rows\[0\] to rows\[1\]: ValueError: too many"
    ):
        play(make_envs, crowded)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, None, NAN, 1.0], r"expected finite numbers, received nan at rows\[2\]"),
        ([1.0, None, "yes", 1.0], r"expected a number or None, received the text 'yes' at rows\[2\]"),
        ([1.0, None], r"expected 4 numbers, received 2: none at rows\[2\]"),
        ("good", "received 'good'"),
        (None, "received None"),
    ],
)
def test_what_is_no_number_is_named_with_the_row(make_envs, returned, said):
    async def later(completions):
        return returned

    for scorer in (lambda completions: returned, later):
        with pytest.raises(RewardError, match=rf"scorer \S+: .*{said}") as raised:
            play(make_envs, scorer)
        assert not hasattr(raised.value, "__notes__")  # one message, without a traceback


def test_a_judge_is_asked_for_each_text_with_its_columns_a_few_at_a_time(make_envs):
    at_once = []

    async def ask(prompt, completion, answer, wish=None):
        at_once.append(1)
        assert len(at_once) <= 2
        await asyncio.sleep(0.001)
        at_once.pop()
        return None if answer == 2 else len(completion) + answer

    def plainly(prompt, completion, **columns):
        return float(columns["answer"]) if prompt.endswith("w1") else -1.0

    rows = play(make_envs, [judge(ask, at_once=2), judge(plainly)], weights=[1.0, 10.0])
    np.testing.assert_array_equal(rows.member_scores["ask"], [len(" w3 w3") + 1, NAN, 9, 10])
    assert rows.scores.tolist() == [7 + 10, 20, 9 + 30, 10 + 40]
    with pytest.raises(ValueError, match="ask: no row has 'answer'"):
        play(make_envs, judge(ask), rows=[{"prompt": "w1"}])


def test_what_reads_chats_without_their_template_stays_threaded_or_a_coroutine(chat_tokenizer):
    template = ChatTemplate(chat_tokenizer)
    decoded = chat_tokenizer.decode(template("what is")["input_ids"], skip_special_tokens=True)

    @threaded
    def slow(prompts, completions):
        return prompts

    async def later(prompts, completions):
        return prompts

    assert template.scorer(slow).threaded
    assert template.scorer(slow)(prompts=[decoded], completions=["two"]) == ["what is\n"]
    assert not template.scorer(later).threaded
    assert asyncio.run(template.scorer(later)(prompts=[decoded], completions=["two"])) == ["what is\n"]
