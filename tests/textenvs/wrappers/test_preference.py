import inspect
import re

import numpy as np
import pytest
import torch

from textenvs import PreferenceReward, TokenVectorEnv
from textenvs.tokens.rows import PAD


def number_of_words(prompts, completions):
    return [len(text.split()) for text in completions]


class TokenScorer:
    """Counts the real tokens of a completion; refuses to read text."""

    def __init__(self, tokenizer=None):
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def score_tokens(self, prompts, completions):
        return torch.tensor((completions != PAD).sum(1), dtype=torch.float64)


class BothScorer(TokenScorer):
    """Reads either; the sign tells which it was given."""

    def __call__(self, prompts, completions):
        return -np.array([len(text.split()) for text in completions])


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_the_score_is_paid_once_on_the_action_that_ended_the_episode(make_envs, mode):
    envs = PreferenceReward(make_envs(2, max_new_tokens=3, autoreset_mode=mode), TokenScorer())
    envs.reset(seed=0)
    *_, infos = out = envs.step(np.array([5, 5]))
    assert out[1].tolist() == [0, 0]
    assert "score" not in infos
    _, rewards, _, _, infos = envs.step(np.array([0, 5]))
    assert rewards.tolist() == [2, 0]
    assert (infos["score"].tolist(), infos["_score"].tolist()) == ([2, 0], [True, False])
    if mode == "SameStep":
        assert infos["final_info"]["score"].tolist() == [2, 0]
        assert infos["final_info"]["_score"].tolist() == [True, False]
    if mode == "Disabled":
        envs.reset(options={"reset_mask": np.array([True, False])})
    _, rewards, _, _, infos = envs.step(np.array([5, 5]))
    assert rewards.tolist() == [0, 3]
    assert infos["_score"].tolist() == [False, True]


def test_played_rows_have_the_score_on_their_last_action_and_nowhere_else(make_envs):
    envs = PreferenceReward(make_envs(2, max_new_tokens=3), TokenScorer())
    rows = envs.play(envs.draw_prompts(), np.array([[5, 0, PAD], [5, 5, 5]]))
    np.testing.assert_array_equal(rows.rewards, [[0, 2, 0], [0, 0, 3]])
    np.testing.assert_array_equal(rows.scores, [2, 3])


def test_text_scorers_get_text_without_special_tokens_and_with_its_spaces(make_envs):
    seen = []

    def scorer(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return np.zeros(len(prompts))

    envs = PreferenceReward(make_envs(2, shuffle=False, max_new_tokens=2), scorer)
    envs.play(envs.draw_prompts(), np.array([[5, 0], [6, 7]]))
    assert seen == [("w1 w2 w3", " w3"), ("w4", " w4 w5")]
    seen.clear()
    envs.play(envs.draw_prompts(), np.array([[0, PAD], [0, PAD]]))
    assert [completion for _, completion in seen] == ["", ""]


def test_token_ids_are_handed_over_only_to_scorers_of_the_same_tokenizer(make_envs, tokenizer, other_tokenizer):
    def score(scorer):
        envs = PreferenceReward(make_envs(1, max_new_tokens=2), scorer)
        return envs.play(envs.draw_prompts(), np.array([[5, 6]])).scores.item()

    import copy

    padded = copy.deepcopy(tokenizer)
    padded(["w1", "w1 w2"], padding=True)  # leaves padding switched on in the backend
    assert score(BothScorer(tokenizer)) == 2
    assert score(BothScorer(padded)) == 2
    assert score(BothScorer()) == 2
    assert score(BothScorer(other_tokenizer)) == -2
    with pytest.raises(ValueError, match=r"TokenScorer.*its tokenizer is not the environment's"):
        score(TokenScorer(other_tokenizer))


def test_an_environment_of_bare_ids_needs_a_scorer_of_ids(tokenizer):
    envs = TokenVectorEnv(1, prompts=[[1]], eos_token_id=0, vocab_size=40, max_new_tokens=2)
    assert PreferenceReward(envs, TokenScorer()).play(envs.draw_prompts(), np.array([[5, 6]])).scores.tolist() == [2]
    with pytest.raises(ValueError, match=r"number_of_words: expected a tokenizer"):
        PreferenceReward(envs, number_of_words)
    with pytest.raises(ValueError, match="expected a tokenizer in the environment"):
        PreferenceReward(envs, BothScorer(tokenizer))


def test_several_scorers_pay_their_mean(make_envs):
    envs = PreferenceReward(make_envs(1, max_new_tokens=2), [number_of_words, TokenScorer(), lambda completions: [6.0]])
    rows = envs.play(envs.draw_prompts(), np.array([[5, 0]]))
    np.testing.assert_allclose(rows.scores, [(1 + 2 + 6) / 3], rtol=1e-6)
    np.testing.assert_allclose(list(envs.score_rows(rows.prompts, rows.completions).members.values()), [[1], [2], [6]])


def test_what_a_scorer_does_to_its_input_reaches_neither_the_next_nor_the_texts(make_envs):
    class Wipes:
        def score_tokens(self, prompts, completions):
            prompts[:], completions[:] = PAD, PAD
            return np.zeros(len(prompts))

    def clears(prompts, completions, finished):
        for given in (prompts, completions, finished):
            given.clear()
        return np.zeros(2)

    def ended(prompts, completions, finished):
        return [float(one) for one in finished]

    envs = PreferenceReward(make_envs(2, max_new_tokens=2), [Wipes(), clears, TokenScorer(), number_of_words, ended])
    completions = np.array([[5, 0], [5, 5]])
    rows = envs.play(envs.draw_prompts(), completions)
    np.testing.assert_array_equal(rows.completions, completions)
    members = envs.score_rows(rows.prompts, completions).members
    np.testing.assert_array_equal(list(members.values()), [[0, 0], [0, 0], [2, 2], [1, 2], [1, 0]])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, np.nan], r"finite numbers, received nan at row( |s\[)1"),
        ([np.inf, 1.0], r"finite numbers, received inf at row( |s\[)0"),
        ([1.0], r"2 numbers, received 1: none at row( |s\[)1"),
        (torch.zeros(2, 1), r"shape \(2,\), received shape \(2, 1\)"),
        (3.0, r"received shape \(\)"),
        (None, r"numbers of shape \(2,\), received None"),
        (["good", "bad"], r"a number or None, received the text 'good' at row( |s\[)0"),
        ([1.0, "2"], r"received the text '2' at row( |s\[)1"),
        (np.array(["1", "2"]), r"received the text .*'1'.* at row( |s\[)0"),
        ([1.0, 2.0, 3.0], r"shape \(2,\), received shape \(3,\)"),
        ({"score": [1.0, 2.0]}, r"received {'score': \[1.0, 2.0\]}"),
        ([torch.ones(1), torch.ones(2)], r"numbers of shape \(2,\), received \[tensor"),
    ],
)
def test_a_bad_score_names_the_scorer_and_what_was_received(make_envs, returned, said):
    def lazy_critic(prompts, completions):
        return returned

    for scorer, name in (
        (lazy_critic, "scorer lazy_critic"),
        ([number_of_words, lazy_critic], r"scorer\[1\] .*lazy_c"),
    ):
        envs = PreferenceReward(make_envs(2, max_new_tokens=1, shuffle=False), scorer)
        with pytest.raises(ValueError, match=f"{name}.*{said}"):
            envs.play(envs.draw_prompts(), np.array([[5], [5]]))
        envs.reset(seed=0)
        with pytest.raises(ValueError, match=f"{name}.*{said}"):
            envs.step(np.array([5, 5]))


@pytest.mark.parametrize("returned", [torch.tensor([1.0, 2.0]), [torch.tensor(1.0), torch.tensor(2.0)]])
def test_scores_may_carry_gradients_and_half_precision(make_envs, returned):
    half = [one.bfloat16() for one in returned] if isinstance(returned, list) else returned.bfloat16()
    grown = [one * torch.ones((), requires_grad=True) for one in half]
    for scores in (half, grown, torch.stack(grown)):
        envs = PreferenceReward(make_envs(2, max_new_tokens=1), lambda completions, scores=scores: scores)
        assert envs.play(envs.draw_prompts(), np.array([[5], [5]])).scores.tolist() == [1.0, 2.0]


def test_what_cannot_score_is_refused_at_once(make_envs):
    with pytest.raises(ValueError, match="empty list"):
        PreferenceReward(make_envs(), [])
    with pytest.raises(ValueError, match="scorer int: it cannot be called"):
        PreferenceReward(make_envs(), 7)
    with pytest.raises(ValueError, match="PreferenceReward: expected at most one, received a second"):
        PreferenceReward(PreferenceReward(make_envs(), number_of_words), number_of_words)


def test_foreign_wrappers_go_outside(make_envs):
    from gymnasium.wrappers.vector import RecordEpisodeStatistics

    with pytest.raises(ValueError, match="put other wrappers outside"):
        PreferenceReward(RecordEpisodeStatistics(make_envs()), number_of_words)
    envs = RecordEpisodeStatistics(PreferenceReward(make_envs(1, max_new_tokens=2), TokenScorer()))
    envs.reset(seed=0)
    envs.step(np.array([5]))
    assert envs.step(np.array([5]))[4]["episode"]["r"].tolist() == [2]


def counts_three(prompts, completions):
    return [3.0] * len(completions)


class Ensemble:
    """Two members whose scores are 1 and 5 everywhere."""

    members = (lambda completions: [1.0] * len(completions), lambda completions: [5.0] * len(completions))


@pytest.mark.parametrize(
    ("options", "paid"),
    [
        ({}, [(1 + 3 + 6) / 3, (2 + 3 + 6) / 3]),
        ({"combine": "worst"}, [1.0, 2.0]),
        # variances of 1, 3, 6 about 10/3: (49 + 1 + 64) / 27 = 38/9; of 2, 3, 6 about 11/3: (25 + 4 + 49) / 27 = 26/9
        ({"combine": "uncertainty", "uncertainty_coef": 0.9}, [10 / 3 - 0.9 * 38 / 9, 11 / 3 - 0.9 * 26 / 9]),
        ({"weights": (0.5, -1.0, 0.0)}, [0.5 - 3, 1.0 - 3]),
    ],
)
@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_both_paths_pay_the_combined_score_and_tell_the_spread(make_envs, options, paid, mode):
    def build():
        scorers = [number_of_words, counts_three, lambda completions: [6.0] * len(completions)]
        return PreferenceReward(make_envs(2, max_new_tokens=2, autoreset_mode=mode), scorers, **options)

    envs = build()
    completions = np.array([[5, 0], [5, 5]])
    rows = envs.play(envs.draw_prompts(seed=0), completions)
    spread = np.sqrt([38 / 9, 26 / 9])  # whatever the weights
    np.testing.assert_allclose(rows.scores, paid, rtol=1e-6)
    np.testing.assert_allclose(rows.rewards[:, 1], paid, rtol=1e-6)
    np.testing.assert_allclose(rows.score_std, spread, rtol=1e-6)
    assert [values.tolist() for values in rows.member_scores.values()] == [[1, 2], [3, 3], [6, 6]]

    stepped = build()
    stepped.reset(seed=0)
    *_, infos = stepped.step(completions[:, 0])
    assert "score_std" not in infos
    _, rewards, _, _, infos = stepped.step(completions[:, 1])
    for told in (infos, infos["final_info"]) if mode == "SameStep" else (infos,):
        np.testing.assert_array_equal(told["score"], rows.scores)
        np.testing.assert_array_equal(told["score_std"], rows.score_std)
        assert told["_score_std"].tolist() == [True, True]
    np.testing.assert_array_equal(rewards, rows.scores)


def test_the_spread_is_told_only_of_texts_that_ended_and_is_0_for_one_scorer(make_envs):
    envs = PreferenceReward(make_envs(2, max_new_tokens=3), [number_of_words, counts_three])
    envs.reset(seed=0)
    *_, infos = envs.step(np.array([0, 5]))
    assert infos["_score_std"].tolist() == [True, False]
    assert infos["score_std"].tolist() == [1.5, 0]  # of 0 and 3; the other text goes on
    alone = PreferenceReward(make_envs(2, max_new_tokens=1), number_of_words)
    rows = alone.play(alone.draw_prompts(), np.array([[5], [0]]))
    assert rows.score_std.tolist() == [0, 0]
    assert list(rows.member_scores) == ["number_of_words"]


def test_an_ensemble_is_taken_apart_and_its_weight_shared_out(make_envs):
    envs = PreferenceReward(make_envs(1, max_new_tokens=2), [Ensemble(), counts_three], combine="worst")
    rows = envs.play(envs.draw_prompts(), np.array([[5, 0]]))
    found = {name: values.tolist() for name, values in rows.member_scores.items()}
    assert found == {"Ensemble/0": [1], "Ensemble/1": [5], "counts_three": [3]}
    assert rows.scores.tolist() == [1]
    envs = PreferenceReward(make_envs(1, max_new_tokens=2), [Ensemble(), counts_three], weights=(2.0, 1.0))
    assert envs.play(envs.draw_prompts(), np.array([[5, 0]])).scores.tolist() == [2 * (1 + 5) / 2 + 3]
    envs = PreferenceReward(make_envs(1, max_new_tokens=2), Ensemble())
    assert envs.play(envs.draw_prompts(), np.array([[5, 0]])).score_std.tolist() == [2]


def test_names_are_numbered_where_they_are_the_same_and_may_be_given(make_envs):
    def names(scorers, **options):
        envs = PreferenceReward(make_envs(1, max_new_tokens=1), scorers, **options)
        return list(envs.play(envs.draw_prompts(), np.array([[5]])).member_scores)

    assert names([counts_three, number_of_words, counts_three]) == [
        "counts_three_0",
        "number_of_words",
        "counts_three_2",
    ]
    assert names([counts_three, Ensemble()], names=["a", "b"]) == ["a", "b/0", "b/1"]
    with pytest.raises(ValueError, match="2 different ones, received"):
        names([counts_three, number_of_words], names=["a", "a"])


def test_a_callable_that_asks_is_told_which_texts_ended_by_themselves(make_envs):
    told = []

    def asks(prompts, completions, *, finished):
        told.append(finished)
        return np.zeros(len(prompts))

    envs = PreferenceReward(make_envs(3, max_new_tokens=2), [asks, counts_three])
    envs.play(envs.draw_prompts(), np.array([[5, 0], [5, 5], [0, PAD]]))
    assert told.pop() == [True, False, True]
    envs.reset(seed=0)
    envs.step(np.array([5, 0, 5]))
    assert told.pop() == [True]
    envs.step(np.array([0, 5, 5]))
    assert told.pop() == [True, False]


def test_a_callable_is_called_by_the_names_of_its_parameters_in_any_order(make_envs):
    """As TRL calls reward functions (trl#4939)."""
    seen = {}

    def exchanged(completions, prompts, **more):
        seen["exchanged"] = (prompts, completions, more)
        return np.zeros(2)

    def alone(completions):
        seen["alone"] = completions
        return np.zeros(2)

    def ids(*, completion_ids, weight=2.0):
        seen["ids"] = completion_ids
        return np.zeros(2)

    def by_place(first, second, /, finished):
        seen["by place"] = (first, second, finished)
        return np.zeros(2)

    def anything(*texts):
        seen["anything"] = texts
        return np.zeros(2)

    scorers = [exchanged, alone, ids, by_place, anything]
    envs = PreferenceReward(make_envs(2, shuffle=False, max_new_tokens=2), scorers)
    envs.play(envs.draw_prompts(), np.array([[5, 0], [6, 7]]))
    prompts, completions, flags, tokens = ["w1 w2 w3", "w4"], [" w3", " w4 w5"], [True, False], [[5, 0], [6, 7]]
    assert seen == {
        "exchanged": (prompts, completions, {"finished": flags, "completion_ids": tokens}),
        "alone": completions,
        "ids": tokens,
        "by place": (prompts, completions, flags),
        "anything": (prompts, completions),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        lambda prompts, completions, answer: [0.0],
        lambda completion, prompt: [0.0],
        lambda: [0.0],
        lambda threshold=0.5: [0.0],
        lambda text, /: [0.0],
    ],
)
def test_a_callable_of_other_parameters_is_refused_at_once_with_those_that_are_right(make_envs, wrong):
    its = re.escape(str(inspect.signature(wrong)))
    names = "prompts, completions, finished, completion_ids"
    with pytest.raises(ValueError, match=rf"scorer <lambda>: .*expected parameters .*{names}.* received {its}"):
        PreferenceReward(make_envs(), wrong)


ANSWERS = [{"answer": 1, "level": "easy"}, {"answer": 2}, {"answer": 3}]
ROWS = [{"prompt": text} | row for text, row in zip(["w1 w2", "w1 w2", "w3"], ANSWERS, strict=True)]


def by_answer(answer):
    return [float(one) for one in answer]


def test_columns_travel_with_the_row_also_where_prompts_are_the_same(make_envs):
    """Their text would not tell rows apart; nor would that of prompts with special tokens."""
    seen = []

    def keeps(completions, **columns):
        seen.append(columns)
        return [0.0] * len(completions)

    envs = PreferenceReward(make_envs(3, prompts=ROWS, shuffle=False, max_new_tokens=2), [by_answer, keeps])
    prompts = envs.draw_prompts()
    rows = envs.play(prompts, np.full((3, 2), 5), columns=envs.unwrapped.drawn_columns)
    assert rows.member_scores["by_answer"].tolist() == [1, 2, 3]
    assert {name: seen[0][name] for name in ("answer", "level")} == {"answer": [1, 2, 3], "level": ["easy", None, None]}
    with pytest.raises(
        ValueError, match=r"by_answer\): no row has 'answer', .*expected parameters .* received \(answer\)"
    ):
        envs.play(prompts, np.full((3, 2), 5))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_columns_travel_with_the_row_on_the_step_path_and_through_a_saved_state(make_envs, mode):
    def build():
        return PreferenceReward(make_envs(3, prompts=ROWS, max_new_tokens=2, autoreset_mode=mode), by_answer)

    envs, other = build(), build()
    other.draw_prompts(seed=0)
    drawn = by_answer([row["answer"] for row in other.unwrapped.drawn_columns])
    assert drawn != sorted(drawn)
    envs.reset(seed=0)
    envs.step(np.full(3, 5))
    resumed = build()
    resumed.load_state_dict(envs.state_dict())
    told = [one.step(np.array([5, 0, 5]))[4]["score"].tolist() for one in (envs, resumed)]
    assert told == [drawn, drawn]


def test_a_column_that_the_prompts_lack_is_refused_at_once(make_envs):
    with pytest.raises(
        ValueError, match=r"by_answer: no row has 'answer', which it asks for; .* hint .* received \(answer\)"
    ):
        PreferenceReward(make_envs(1, prompts=[{"prompt": "w1", "hint": "w2"}]), by_answer)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"combine": "median"}, "one of mean, worst, uncertainty, received 'median'"),
        ({"combine": "worst", "weights": (1, 1)}, "expected combine=\"mean\", received combine='worst'"),
        ({"weights": (1.0,)}, "one for each of the 2 scorers, received 1"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"weights": (1.0, np.nan)}, "finite"),
        ({"combine": "uncertainty", "uncertainty_coef": -1.0}, "0 or more, received -1.0"),
        ({"uncertainty_coef": 0.5}, 'uncertainty_coef: expected combine="uncertainty" beside it'),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(make_envs, options, said):
    with pytest.raises(ValueError, match=said):
        PreferenceReward(make_envs(1), [Ensemble(), counts_three], **options)
