import json

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from textenvs import TokenEnv
from textenvs.tokens.rows import PAD

ALL_MODES = list(AutoresetMode)


def test_a_row_is_its_prompt_and_the_actions_taken(make_envs):
    envs = make_envs(2, shuffle=False)
    observations, infos = envs.reset(seed=0)
    assert observations in envs.observation_space
    np.testing.assert_array_equal(observations[1], [0, 6, *[PAD] * 9])
    observations, rewards, terminated, truncated, infos = envs.step(np.array([9, 8]))
    np.testing.assert_array_equal(observations[0], [0, 3, 4, 5, 9, *[PAD] * 6])
    np.testing.assert_array_equal(observations[1], [0, 6, 8, *[PAD] * 8])
    assert [array.any() for array in (rewards, terminated, truncated)] == [False] * 3
    assert infos["stop_reason"].tolist() == ["", ""]


def test_eos_and_the_budget_both_terminate_and_stop_reason_tells_them_apart(make_envs):
    envs = make_envs(2, autoreset_mode="Disabled")
    envs.reset(seed=0)
    for _ in range(5):
        *_, terminated, truncated, infos = envs.step(np.array([7, 7]))
        assert not terminated.any()
    *_, terminated, truncated, infos = envs.step(np.array([0, 7]))
    assert terminated.tolist() == [True, True]
    assert truncated.tolist() == [False, False]
    assert infos["stop_reason"].tolist() == ["eos", "length"]  # eos as the budget's last token is still eos


def test_the_budget_can_be_a_time_limit(make_envs):
    envs = make_envs(2, autoreset_mode="Disabled", budget="truncate", max_new_tokens=2)
    envs.reset(seed=0)
    envs.step(np.array([7, 7]))
    *_, terminated, truncated, infos = envs.step(np.array([0, 7]))
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])
    rows = envs.play(envs.draw_prompts(), np.array([[7, 0], [7, 7]]))
    assert (rows.terminated.tolist(), rows.truncated.tolist()) == ([True, False], [False, True])
    assert rows.stop_reason.tolist() == infos["stop_reason"].tolist()


def test_same_step_gives_the_final_row_and_the_next_episode_at_once(make_envs):
    envs = make_envs(2, shuffle=False)
    envs.reset(seed=0)
    observations, _, terminated, _, infos = envs.step(np.array([0, 7]))
    assert terminated.tolist() == [True, False]
    np.testing.assert_array_equal(infos["final_obs"][0], [0, 3, 4, 5, 0, *[PAD] * 6])
    assert infos["final_obs"][1] is None
    assert infos["_final_obs"].tolist() == [True, False]
    assert infos["final_info"]["stop_reason"].tolist() == ["eos", ""]
    np.testing.assert_array_equal(observations[0], [0, 7, 8, *[PAD] * 8])  # the third prompt


def test_next_step_ignores_the_action_of_the_reset_step_and_pays_nothing(make_envs):
    envs = make_envs(2, shuffle=False, autoreset_mode="NextStep")
    envs.reset(seed=0)
    observations, _, terminated, _, infos = envs.step(np.array([0, 7]))
    np.testing.assert_array_equal(observations[0], [0, 3, 4, 5, 0, *[PAD] * 6])
    assert "final_obs" not in infos
    observations, rewards, terminated, _, infos = envs.step(np.array([999, 7]))  # 999 is read by nobody
    np.testing.assert_array_equal(observations[0], [0, 7, 8, *[PAD] * 8])
    assert rewards[0] == 0
    assert not terminated[0]


def test_disabled_waits_for_a_reset_of_those_that_ended(make_envs):
    envs = make_envs(3, shuffle=False, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    *_, terminated, _, _ = envs.step(np.array([7, 0, 7]))
    with pytest.raises(ResetNeeded, match=r"sub-environments \[1\] have ended"):
        envs.step(np.array([7, 7, 7]))
    options = {"reset_mask": terminated}
    observations, infos = envs.reset(options=options)
    assert options == {"reset_mask": terminated}
    assert infos["_stop_reason"].tolist() == [False, True, False]
    np.testing.assert_array_equal(observations[:, 0:5], [[0, 3, 4, 5, 7], [0, 9, 10, 11, 12], [0, 7, 8, 7, -1]])
    envs.step(np.array([7, 7, 7]))


@pytest.mark.parametrize("mask", [[True, False, True], np.array([1, 0, 1]), np.ones(2, bool), np.zeros(3, bool)])
def test_a_bad_reset_mask_is_refused(make_envs, mask):
    envs = make_envs(3)
    envs.reset()
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})


def test_nothing_is_stepped_before_a_reset(make_envs):
    with pytest.raises(ResetNeeded):
        make_envs(2).step(np.array([1, 1]))
    with pytest.raises(ValueError, match=r"expected it to include sub-environments \[1\]"):
        make_envs(2).reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        ([1, 40, 1], r"expected token ids in \[0, 40\), received 40 for sub-environment 1"),
        ([1, 1, -1], "received -1 for sub-environment 2"),
        ([1, 1], r"expected 3 integers, received int64 \(2,\)"),
        ([1.0, 1.0, 1.0], "received float64"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(make_envs, actions, said):
    envs = make_envs(3)
    before, _ = envs.reset(seed=0)
    with pytest.raises(ValueError, match=said):
        envs.step(np.array(actions))
    np.testing.assert_array_equal(envs.tokens, before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_envs": 0}, "num_envs: expected a whole number of 1 or more, received 0"),
        ({"num_envs": 2.0}, "num_envs: expected a whole number of 1 or more, received 2.0"),
        ({"group_size": "2"}, "group_size: expected a whole number of 1 or more, received '2'"),
        ({"max_new_tokens": 0}, "max_new_tokens: .* received 0"),
        ({"eos_token_id": 40}, "eos_token_id: expected ids in .*, received 40"),
        ({"budget": "stop"}, "budget: .* received 'stop'"),
        ({"max_prompt_tokens": 2}, r"rows\[0\]: expected a prompt of at most 2 tokens, received 4"),
        (
            {"prompts": [[1]], "tokenizer": None},
            "tokenizer: expected one, a reference that brings it, or vocab_size",
        ),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens: expected a whole number of 1 or more, received 0"),
        ({"autoreset_mode": "SAME_STEP"}, "autoreset_mode: expected one of NextStep, SameStep, Disabled"),
        ({"num_envs": 4, "group_size": 3}, "group_size: expected a divisor of num_envs 4, received 3"),
    ],
)
def test_the_constructor_refuses_what_is_wrong(make_envs, options, said):
    with pytest.raises(ValueError, match=said):
        make_envs(**options)


def random_actions(generator, count):
    return np.where(generator.random(count) < 0.3, 0, generator.integers(1, 40, count))


@pytest.mark.parametrize("mode", ALL_MODES)
def test_the_vector_environment_equals_scalar_ones_step_by_step(make_envs, mode):
    # every scalar environment is given, in order, the prompts that its twin drew
    def run(envs, generator):
        observations, _ = envs.reset(seed=5)
        seen, masks = [observations], []
        for _ in range(40):
            if mode is AutoresetMode.DISABLED and masks and masks[-1].any():
                observations, _ = envs.reset(options={"reset_mask": masks[-1]})
                seen.append(observations)
            observations, rewards, terminated, truncated, infos = envs.step(random_actions(generator, 3))
            masks.append(terminated | truncated)
            seen += [observations, rewards, terminated, truncated]
            seen += [row for row in infos.get("final_obs", []) if row is not None]
        return seen

    envs = make_envs(3, autoreset_mode=mode)
    drawn: list[list[list[int]]] = [[], [], []]
    begin = envs._begin

    def spy(indices):
        begin(indices)
        for index in indices:
            drawn[index].append(envs.tokens[index, : envs.lengths[index]].tolist())

    envs._begin = spy
    expected = run(envs, np.random.default_rng(1))
    widest = {"max_prompt_tokens": envs.max_prompt_tokens, "shuffle": False, "autoreset_mode": AutoresetMode.DISABLED}
    twins = [lambda own=own: TokenEnv(make_envs(1, prompts=own, **widest)) for own in drawn]
    actual = run(SyncVectorEnv(twins, autoreset_mode=mode), np.random.default_rng(1))
    assert len(expected) == len(actual) > 160
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_infos_follow_gymnasiums_own_vector_environment(make_envs, mode):
    options = {"prompts": [{"prompt": "w1 w2", "answer": "w3", "level": 2}], "max_new_tokens": 3}
    ours = make_envs(2, autoreset_mode=mode, **options)
    theirs = SyncVectorEnv(
        [lambda: TokenEnv(make_envs(1, autoreset_mode="Disabled", **options))] * 2, autoreset_mode=mode
    )
    (_, our), (_, their) = ours.reset(seed=0), theirs.reset(seed=0)
    assert our.keys() == their.keys() == {"stop_reason", "_stop_reason", "answer", "_answer", "level", "_level"}
    for actions in ([5, 5], [0, 5], [5, 5], [5, 5]):
        our, their = ours.step(np.array(actions))[4], theirs.step(np.array(actions))[4]
        assert our.keys() == their.keys()
        assert our["_stop_reason"].tolist() == their["_stop_reason"].tolist()
        assert our["answer"].tolist() == ["w3", "w3"]
        assert our["level"][their["_level"]].tolist() == their["level"][their["_level"]].tolist() == [2, 2]
        if "final_info" in our:
            assert our["_final_info"].tolist() == their["_final_info"].tolist()
            mask = our["final_info"]["_stop_reason"]
            assert mask.tolist() == their["final_info"]["_stop_reason"].tolist()
            for name in ("stop_reason", "answer", "level"):
                assert our["final_info"][name][mask].tolist() == their["final_info"][name][mask].tolist()
                assert our["final_info"][f"_{name}"].tolist() == mask.tolist()


COLUMNS = [{"prompt": f"w{i}", "answer": i} | ({"stop_reason": 1, "_answer": 2} if i == 2 else {}) for i in range(1, 6)]


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_info_has_the_columns_of_the_row_that_is_shown_and_final_info_those_of_the_one_that_ended(make_envs, mode):
    envs = make_envs(2, prompts=COLUMNS, max_new_tokens=1, autoreset_mode=mode)
    observations, infos = envs.reset(seed=0)
    for _ in range(12):
        shown = (observations[:, 1] - 2).tolist()  # w1 is token 3
        assert (infos["answer"].tolist(), infos["_answer"].tolist()) == (shown, [True, True])
        assert infos["stop_reason"].tolist() != [1, 1]  # the environment's own, not the column of that name
        assert not any(name.startswith("__") for name in infos)
        observations, _, _, _, infos = envs.step(np.array([7, 7]))
        if mode == "SameStep":
            assert infos["final_info"]["answer"].tolist() == shown
        if mode == "Disabled":
            observations, infos = envs.reset(options={"reset_mask": np.array([True, True])})
    assert envs.reset(options={"reset_mask": np.array([True, False])})[1]["_answer"].tolist() == [True, False]


def test_the_scalar_environment_tells_the_columns_as_they_are_in_the_row(make_envs):
    rows = [{"prompt": "w1", "answer": [1, "two"], "level": 2}]
    env = TokenEnv(make_envs(1, prompts=rows, max_new_tokens=1, autoreset_mode="Disabled"))
    assert env.reset()[1] == {"answer": [1, "two"], "level": 2, "stop_reason": ""}
    assert env.step(5)[4] == {"answer": [1, "two"], "level": 2, "stop_reason": "length"}


def test_a_group_shares_its_row_and_a_state_goes_on_with_the_same_rows_only(make_envs):
    envs = make_envs(4, prompts=COLUMNS, group_size=2)
    prompts, columns = envs.draw_prompts(seed=0), envs.drawn_columns
    assert (prompts[::2] == prompts[1::2]).all()
    assert [row["answer"] for row in columns[::2]] == [row["answer"] for row in columns[1::2]]
    state = envs.state_dict()
    resumed = make_envs(4, prompts=COLUMNS, group_size=2)
    resumed.load_state_dict(state)
    assert resumed.draw_prompts().tolist() == envs.draw_prompts().tolist()
    assert resumed.drawn_columns == envs.drawn_columns
    other = [row | {"answer": 0} for row in COLUMNS]
    with pytest.raises(ValueError, match="expected the same prompts"):
        make_envs(4, prompts=other, group_size=2).load_state_dict(state)


def test_a_seed_makes_everything_reproducible_and_another_changes_it(make_envs):
    def prompts(envs, seed):
        return [envs.reset(seed=seed)[0], *(envs.draw_prompts() for _ in range(3))]  # ends within an epoch

    envs = make_envs(3)
    first = prompts(envs, 7)
    for one, other in zip(first, prompts(envs, 7), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((one != other).any() for one, other in zip(first[1:], prompts(make_envs(3), 8)[1:], strict=True))


def test_drawing_prompts_moves_on_as_a_reset_does_and_disturbs_no_episode(make_envs):
    one, other = make_envs(3), make_envs(3)
    before, _ = one.reset(seed=3)
    np.testing.assert_array_equal(other.draw_prompts(seed=3), before[:, : one.max_prompt_tokens])
    np.testing.assert_array_equal(one.draw_prompts(), other.draw_prompts())
    np.testing.assert_array_equal(one.tokens, before)
    np.testing.assert_array_equal(one.reset()[0][:, : one.max_prompt_tokens], other.draw_prompts())


def test_groups_begin_with_the_same_prompt_on_both_paths(make_envs):
    one, other = make_envs(6, group_size=3), make_envs(6, group_size=3)
    before, _ = one.reset(seed=3)
    assert (before[:3] == before[0]).all()
    assert (before[3:] == before[3]).all()
    assert (before[0] != before[3]).any()
    np.testing.assert_array_equal(other.draw_prompts(seed=3), before[:, : one.max_prompt_tokens])
    np.testing.assert_array_equal(one.reset()[0][:, : one.max_prompt_tokens], other.draw_prompts())


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_an_environment_goes_on_from_its_saved_state_through_json(make_envs, mode):
    envs, generator = make_envs(3, autoreset_mode=mode), np.random.default_rng(0)
    envs.reset(seed=0)
    actions = [random_actions(generator, 3) for _ in range(60)]
    for action in actions[:20]:
        envs.step(action)
    listed = {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in envs.state_dict().items()
    }
    other = make_envs(3, autoreset_mode=mode)
    other.load_state_dict(json.loads(json.dumps(listed)))
    for action in actions[20:]:
        for one, two in zip(envs.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_state_of_another_environment_is_refused(make_envs):
    state = make_envs(3).state_dict()
    with pytest.raises(ValueError, match="other prompts"):
        make_envs(3, prompts=["w1"]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"expected rows of shape \(2, 11\), received \(3, 11\)"):
        make_envs(2).load_state_dict(state)
    del state["sampler"]
    with pytest.raises(ValueError, match=r"expected the keys \['sampler'\]"):
        make_envs(3).load_state_dict(state)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([PAD] * 6, "row 1 is empty"),
        ([5, PAD, 5, 5, 5, 0], "row 1 has padding before a token"),
        ([5, 5, 5, 5, 5, 40], "row 1 has a token id outside"),
        ([5, -2, 5, 5, 5, 5], "row 1 has a token id outside"),
        ([5, 0, 5, 5, 5, 5], "row 1 continues after its end-of-text token 0"),
        ([5, 5, PAD, PAD, PAD, PAD], "row 1 stops before"),
    ],
)
def test_rows_that_no_episode_could_give_are_refused(make_envs, row, said):
    envs = make_envs(2)
    with pytest.raises(ValueError, match=said):
        envs.play(envs.draw_prompts(), np.array([[5, 5, 5, 5, 5, 5], row]))


def test_played_rows_of_another_shape_are_refused(make_envs):
    envs = make_envs(2)
    prompts = envs.draw_prompts()
    with pytest.raises(ValueError, match="expected at most 6 columns, received 7"):
        envs.play(prompts, np.full((2, 7), 5))
    with pytest.raises(ValueError, match=r"expected prompts \[N, P\], completions \[N, T\]"):
        envs.play(prompts, np.full((3, 6), 5))
    with pytest.raises(ValueError, match=r"logprobs: expected shape \(2, 6\)"):
        envs.play(prompts, np.full((2, 6), 5), np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"logprobs: .* received nan"):
        envs.play(prompts, np.full((2, 6), 5), np.full((2, 6), np.nan))


def test_log_probs_at_padding_may_be_anything(make_envs):
    envs = make_envs(1)
    rows = envs.play(envs.draw_prompts(), np.array([[5, 0, PAD]]), np.array([[-1.0, -2.0, np.nan]]))
    np.testing.assert_array_equal(rows.logprobs, [[-1, -2, 0]])


def test_edge_rows_eos_first_one_token_and_a_prompt_at_the_maximum(make_envs):
    envs = make_envs(2, max_new_tokens=1, prompts=["w1", "w1 w2 w3"], max_prompt_tokens=4, shuffle=False)
    observations, _ = envs.reset(seed=0)
    assert observations.shape == (2, 5)
    *_, terminated, _, infos = envs.step(np.array([0, 9]))
    assert terminated.all()
    assert infos["stop_reason"].tolist() == ["eos", "length"]
    assert infos["final_obs"][1].tolist() == [0, 3, 4, 5, 9]
    assert envs.play(envs.draw_prompts(), np.array([[0], [9]])).stop_reason.tolist() == ["eos", "length"]


def test_without_eos_only_the_budget_ends_an_episode(make_envs):
    envs = make_envs(1, eos_token_id=None, max_new_tokens=2)
    envs.reset(seed=0)
    assert not envs.step(np.array([0]))[2].any()
    assert envs.step(np.array([0]))[4]["stop_reason"].tolist() == ["length"]


def test_what_was_returned_is_never_changed_afterwards(make_envs):
    envs = make_envs(2, max_new_tokens=2)
    first, _ = envs.reset(seed=0)
    kept = first.copy()
    *_, infos = envs.step(np.array([5, 0]))
    final = infos["final_obs"][1].copy()
    envs.step(np.array([5, 5]))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(infos["final_obs"][1], final)
