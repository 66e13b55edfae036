import numpy as np
import pytest

from textenvs import KLShaping, PreferenceReward
from textenvs.tokens.rows import PAD
from textenvs.wrappers.reference import CausalLMReference


def by_column(prompts, completions):
    """A reference by hand: the log-prob of the t-th new token is -(t + 1) / 2, whatever it is; NaN at padding."""
    steps = -0.5 * np.arange(1, completions.shape[1] + 1)
    return np.where(completions != PAD, steps, np.nan)


def five_if_long(prompts, completions):
    return [5.0 if len(text.split()) > 1 else 1.0 for text in completions]


def test_each_token_is_charged_beta_times_its_log_ratio(make_envs):
    envs = KLShaping(make_envs(2, max_new_tokens=3), by_column, beta=0.1)
    envs.reset(seed=0)
    envs.hand_logprobs(np.array([-0.2, -2.0]))
    _, rewards, _, _, infos = envs.step(np.array([5, 6]))
    np.testing.assert_allclose(infos["kl"], [-0.2 + 0.5, -2.0 + 0.5], rtol=1e-6)
    np.testing.assert_allclose(rewards, [-0.1 * 0.3, 0.1 * 1.5], rtol=1e-6)
    rows = envs.play(envs.draw_prompts(), np.array([[5, 0, PAD], [5, 6, 7]]), np.full((2, 3), -1.0))
    np.testing.assert_allclose(rows.kl, [[-0.5, 0, 0], [-0.5, 0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(rows.rewards, [[0.05, 0, 0], [0.05, 0, -0.05]], atol=1e-6)


def test_a_rows_rewards_sum_to_the_score_less_beta_times_its_kl(make_envs):
    for mode in ("SameStep", "NextStep"):
        envs = KLShaping(PreferenceReward(make_envs(4, autoreset_mode=mode), five_if_long), by_column, beta=0.3)
        envs.reset(seed=1)
        generator, paid, kls, checked = np.random.default_rng(0), np.zeros(4), np.zeros(4), 0
        for _ in range(40):
            envs.hand_logprobs(-generator.random(4))
            actions = np.where(generator.random(4) < 0.3, 0, generator.integers(1, 40, 4))
            _, rewards, terminated, _, infos = envs.step(actions)
            paid, kls = paid + rewards, kls + infos["kl"]
            for index in np.flatnonzero(terminated):
                np.testing.assert_allclose(paid[index], infos["score"][index] - 0.3 * kls[index], atol=1e-5)
                paid[index] = kls[index] = 0
                checked += 1
        assert checked > 20


def test_the_order_of_the_two_wrappers_does_not_matter(make_envs):
    generator = np.random.default_rng(0)
    inside = KLShaping(PreferenceReward(make_envs(2), five_if_long), by_column, beta=0.3)
    outside = PreferenceReward(KLShaping(make_envs(2), by_column, beta=0.3), five_if_long)
    inside.reset(seed=0), outside.reset(seed=0)
    for _ in range(20):
        actions, logprobs = generator.integers(0, 9, 2), -generator.random(2)
        inside.hand_logprobs(logprobs), outside.hand_logprobs(logprobs)
        one, other = inside.step(actions), outside.step(actions)
        np.testing.assert_allclose(one[1], other[1], rtol=1e-6)
        assert one[4].keys() == other[4].keys()
    prompts, completions = inside.draw_prompts(), np.full((2, 6), 5)
    np.testing.assert_allclose(inside.play(prompts, completions).rewards, outside.play(prompts, completions).rewards)


def test_a_price_that_is_only_told_leaves_the_reward_alone_on_both_paths(make_envs):
    def shaped(**options):
        return KLShaping(PreferenceReward(make_envs(2, max_new_tokens=3), five_if_long), by_column, 0.5, **options)

    completions, logprobs = np.array([[5, 0, PAD], [5, 6, 7]]), np.full((2, 3), -1.0)
    charged, told = shaped(), shaped(charge=False)
    prompts = charged.draw_prompts()
    with_price, without = charged.play(prompts, completions, logprobs), told.play(prompts, completions, logprobs)
    np.testing.assert_array_equal(without.kl, with_price.kl)
    np.testing.assert_array_equal(without.rewards.sum(1), without.scores)
    told.reset(seed=0)
    told.unwrapped.hand_logprobs(np.full(2, -1.0))
    _, rewards, _, _, infos = told.step(np.array([5, 5]))
    assert infos["kl"].any()
    assert not np.asarray(rewards).any()


def test_kl_is_charged_once(make_envs):
    with pytest.raises(ValueError, match="KLShaping: expected at most one, received a second"):
        KLShaping(PreferenceReward(KLShaping(make_envs(), by_column, 0.1), five_if_long), by_column, 0.1)


def test_kl_is_exactly_zero_when_the_policy_is_the_reference(make_envs, model):
    # the acting agent reads its log-probs from a scorer of its own on the same weights
    agent = CausalLMReference(model)
    everyone = np.ones(3, dtype=bool)

    def acting(observations, actions):
        return agent.step(observations, (observations != PAD).sum(1), actions, everyone)

    envs = KLShaping(make_envs(3), model, beta=0.7, acting=acting)
    envs.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(15):
        _, rewards, _, _, infos = envs.step(generator.integers(0, 40, 3))
        assert (infos["kl"] == 0).all()
        assert (rewards == 0).all()
    prompts, completions = envs.draw_prompts(), generator.integers(1, 40, (3, 6))
    rows = envs.play(prompts, completions, agent(prompts, completions))
    assert (rows.kl == 0).all()
    assert (rows.rewards == 0).all()


def test_an_agent_that_tells_nothing_is_priced_as_certain(make_envs):
    envs = KLShaping(make_envs(1, max_new_tokens=2), by_column, beta=1.0)
    envs.reset(seed=0)
    _, rewards, _, _, infos = envs.step(np.array([5]))
    assert infos["kl"].tolist() == [0.5]
    assert rewards.tolist() == [-0.5]
    np.testing.assert_array_equal(envs.play(envs.draw_prompts(), np.array([[5, 6]])).kl, [[0.5, 1.0]])


def test_log_probs_handed_over_hold_for_one_step_and_reach_through_any_wrapper(make_envs):
    from gymnasium.wrappers.vector import RecordEpisodeStatistics

    envs = RecordEpisodeStatistics(KLShaping(make_envs(1), by_column, beta=1.0))
    envs.reset(seed=0)
    envs.unwrapped.hand_logprobs(np.array([-0.5]))
    assert envs.step(np.array([5]))[4]["kl"].tolist() == [0.0]
    assert envs.step(np.array([5]))[4]["kl"].tolist() == [1.0]


def test_next_step_resets_are_not_priced(make_envs):
    envs = KLShaping(make_envs(2, autoreset_mode="NextStep"), by_column, beta=1.0)
    envs.reset(seed=0)
    envs.step(np.array([0, 5]))
    envs.hand_logprobs(np.array([np.nan, -1.0]))  # what an agent says about an action that nobody takes
    _, rewards, _, _, infos = envs.step(np.array([999, 5]))
    assert infos["_kl"].tolist() == [False, True]
    assert rewards.tolist() == [0, 0]
    assert infos["kl"].tolist() == [0, 0]


def test_kl_of_final_steps_is_in_the_final_info_too(make_envs):
    envs = KLShaping(make_envs(2), by_column, beta=1.0)
    envs.reset(seed=0)
    infos = envs.step(np.array([0, 5]))[4]
    assert infos["final_info"]["kl"].tolist() == [0.5, 0]
    assert infos["final_info"]["_kl"].tolist() == [True, False]


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf"), "much"])
def test_a_beta_below_zero_or_not_finite_is_refused(make_envs, beta):
    with pytest.raises(ValueError, match=f"beta: .* received {beta!r}"):
        KLShaping(make_envs(), by_column, beta)
    envs = KLShaping(make_envs(), by_column, 0.0)
    with pytest.raises(ValueError, match="beta"):
        envs.beta = beta


def test_charge_is_a_checked_setting_that_the_next_step_obeys(make_envs):
    envs = KLShaping(make_envs(2, max_new_tokens=3), by_column, beta=0.5, charge=False)
    envs.reset(seed=0)
    assert envs.step(np.array([5, 6]))[1].tolist() == [0, 0]
    envs.charge = True  # log pi = 0 and the reference's second log-prob is -1: a penalty of 0.5 * (0 + 1)
    assert envs.step(np.array([5, 6]))[1].tolist() == [-0.5, -0.5]
    with pytest.raises(ValueError, match="charge: expected True or False, received 'loss'"):
        envs.charge = "loss"


def test_a_suggested_beta_holds_where_none_was_chosen(make_envs):
    envs = KLShaping(make_envs(), by_column)
    assert envs.beta == 0.15
    for suggested, expected in ((0.2, 0.2), (None, 0.15), (0.4, 0.4)):
        envs.suggest_beta(suggested)
        assert envs.beta == expected
    envs.beta = 0.3
    chosen = KLShaping(make_envs(), by_column, 0.3)
    for each in (envs, chosen):
        each.suggest_beta(0.2)
        assert each.beta == 0.3


def test_beta_can_be_set_and_is_part_of_the_state(make_envs):
    envs = KLShaping(make_envs(1, max_new_tokens=1), by_column, beta=0.0)
    rows = envs.play(envs.draw_prompts(), np.array([[5]]))
    assert (rows.rewards.item(), rows.kl.item()) == (0, 0.5)  # reported, not charged
    envs.beta = 2.0
    assert envs.play(envs.draw_prompts(), np.array([[5]])).rewards.item() == -1.0
    other = KLShaping(make_envs(1, max_new_tokens=1), by_column, beta=0.1)
    other.load_state_dict(envs.state_dict())
    assert other.beta == 2.0
    np.testing.assert_array_equal(other.draw_prompts(), envs.draw_prompts())
    with pytest.raises(ValueError, match="without KLShaping"):
        other.load_state_dict(make_envs(1, max_new_tokens=1).state_dict())


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (np.zeros((2, 1)), r"shape \(2, 2\), received shape \(2, 1\)"),
        (np.full((2, 2), np.nan), "received nan"),
        (np.full((2, 2), -np.inf), "received -inf"),
        (np.full((2, 2), 0.5), "at most 0; received 0.5"),
    ],
)
def test_a_bad_reference_is_named_with_what_was_received(make_envs, returned, said):
    envs = KLShaping(make_envs(2, max_new_tokens=2), lambda prompts, completions: returned, 0.1)
    with pytest.raises(ValueError, match=f"reference: .*{said}"):
        envs.play(envs.draw_prompts(), np.full((2, 2), 5))


def test_a_reference_that_is_none_and_bad_log_probs_are_refused(make_envs):
    with pytest.raises(ValueError, match=r"reference: .* received 3"):
        KLShaping(make_envs(), 3, 0.1)
    envs = KLShaping(make_envs(2), by_column, 0.1)
    envs.reset(seed=0)
    for wrong in ([-1.0], [-1.0, np.nan], [-1.0, 0.5], [-1.0, -np.inf]):
        with pytest.raises(ValueError, match="logprobs"):
            envs.hand_logprobs(np.array(wrong))
    other = KLShaping(make_envs(2), by_column, 0.1, acting=lambda observations, actions: [0.1])
    other.reset(seed=0)
    with pytest.raises(ValueError, match=r"acting: .*shape \(2,\), received shape \(1,\)"):
        other.step(np.array([5, 5]))
