import json
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import acrobot
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.control.classic.base import ClassicVectorEnv
from agents.control.environments import make_vector

IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


def _sync(env_id, num_envs, mode, **kwargs):
    return SyncVectorEnv([lambda: gym.make(env_id, **kwargs)] * num_envs, autoreset_mode=mode)


def _actions(envs, generator, step):
    """Random actions, drifting; continuous ones also leave the bounds, or meet them exactly."""
    if isinstance(envs.single_action_space, gym.spaces.Box):
        drawn = generator.normal(0.5 * math.sin(step / 20), 1.0, size=envs.action_space.shape)
        return np.where(np.abs(drawn) > 2, np.sign(drawn), drawn).astype(np.float32)
    return generator.integers(envs.single_action_space.n, size=envs.num_envs)


def _numpy_is_one_kernel():
    """Whether numpy computes cos, sin and pow of arrays as it computes them of single numbers, and as C does."""
    x = np.random.default_rng(0).normal(size=2000)
    two = np.full_like(x, 2.0)
    single = all(v**2 == w for v, w in zip(x, np.power(x, two), strict=True))
    c = all(math.cos(v) == w and math.sin(v) == u for v, w, u in zip(x, np.cos(x), np.sin(x), strict=True))
    return single and c


@pytest.fixture
def one_kernel(monkeypatch):
    """Where numpy rounds arrays as it does not round single numbers (AVX-512 has it do so), let C compute for both."""
    if _numpy_is_one_kernel():
        return

    def elementwise(function):
        return lambda *xs: np.vectorize(function, otypes=[np.result_type(*xs)])(*xs)[()]

    for name in ("cos", "sin"):
        by_c = elementwise(getattr(math, name))
        monkeypatch.setattr(np, name, by_c)
        monkeypatch.setattr(acrobot, name, by_c)  # which has imported its own
    monkeypatch.setattr(np, "power", elementwise(lambda x, y: x**y))


def _follow(ours, original, steps, *, exact):
    """Step both with the same actions and compare all that they return; in DISABLED, reset what has ended."""
    generator = np.random.default_rng(1)
    compare = (
        np.testing.assert_array_equal if exact else lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    )
    num_ended = 0
    for step in range(steps):
        actions = _actions(original, generator, step)
        got, expected = ours.step(actions), original.step(actions)
        for mine, theirs in zip(got[:4], expected[:4], strict=True):
            compare(mine, theirs)
            assert mine.dtype == theirs.dtype
        assert got[4].keys() == expected[4].keys()
        ended = got[2] | got[3]
        num_ended += int(ended.sum())
        if "final_obs" in got[4]:
            np.testing.assert_array_equal(got[4]["_final_obs"], expected[4]["_final_obs"])
            for row in ended.nonzero()[0]:
                compare(got[4]["final_obs"][row], expected[4]["final_obs"][row])
        if ours.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            restarted = [envs.reset(options={"reset_mask": ended.copy()})[0] for envs in (ours, original)]
            compare(*restarted)
    return num_ended


@pytest.mark.usefixtures("one_kernel")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", IDS)
def test_every_episode_equals_the_scalar_environment_bit_for_bit(env_id, mode):
    ours, original = make_vector(env_id, 5, mode, max_episode_steps=70), _sync(env_id, 5, mode, max_episode_steps=70)
    for seed in (3, [9, 8, 7, 6, 5], None):  # a seed, seeds, and generators that run on
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], original.reset(seed=seed)[0])
        assert ours.np_random_seed == original.np_random_seed
        assert _follow(ours, original, 80, exact=True) >= 5


@pytest.mark.usefixtures("one_kernel")
@pytest.mark.parametrize("env_id", IDS)
def test_a_full_episode_equals_the_scalar_environment_bit_for_bit(env_id):
    ours, original = (
        make_vector(env_id, 2),
        gym.make_vec(env_id, 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}),
    )
    ours.reset(seed=11), original.reset(seed=11)
    assert _follow(ours, original, 520 if env_id != "MountainCarContinuous-v0" else 1010, exact=True) >= 2


@pytest.mark.parametrize("env_id", IDS)
def test_one_step_from_the_same_state_equals_the_scalar_environment_on_any_cpu(env_id):
    num_envs = 40
    ours = make_vector(env_id, num_envs, AutoresetMode.DISABLED)
    ours.reset(seed=0)
    generator = np.random.default_rng(2)
    scale = {"CartPole-v1": (0.2,) * 4, "Acrobot-v1": (3, 3, 4, 9), "Pendulum-v1": (6, 4)}.get(env_id, (0.5, 0.04))
    state = generator.normal(size=(num_envs, len(scale))) * scale
    if env_id == "MountainCarContinuous-v0":
        state = state.astype(np.float32)  # as the original's is after its first step
    ours.load_state_dict({**ours.state_dict(), "state": state.T, "steps": np.ones(num_envs)})
    actions = _actions(ours, generator, 0)
    observations, rewards, terminated, truncated, _ = ours.step(actions)
    scalar = gym.make(env_id).unwrapped
    for row in range(num_envs):
        scalar.reset(seed=0)
        scalar.state = state[row]
        observation, reward, ended, _, _ = scalar.step(actions[row])
        np.testing.assert_allclose(observations[row], observation, rtol=1e-6, atol=1e-7)
        # Pendulum's torque is float32, and its price 0.001 torque^2 <= 0.004 may round to either neighbor (4.7e-10).
        np.testing.assert_allclose(rewards[row], reward, rtol=1e-12, atol=1e-9)
        assert terminated[row] == ended
        assert not truncated[row]


@pytest.mark.parametrize(
    "env_id, kwargs, options",
    [
        ("MountainCar-v0", {"goal_velocity": 0.04}, {"low": 0.3, "high": 0.45}),
        ("MountainCarContinuous-v0", {"goal_velocity": 0.02}, {"low": 0.3, "high": 0.44}),
        ("Pendulum-v1", {"g": 9.81}, {"x_init": 0.3, "y_init": 2}),
        ("Acrobot-v1", {}, {"low": -1, "high": 1.5}),
        ("CartPole-v1", {"sutton_barto_reward": True}, {"low": -0.1, "high": 0.2}),
    ],
)
def test_arguments_and_reset_options_are_the_original_ones(env_id, kwargs, options):
    ours, original = make_vector(env_id, 8, **kwargs), _sync(env_id, 8, AutoresetMode.SAME_STEP, **kwargs)
    starts = [envs.reset(seed=4, options=options)[0] for envs in (ours, original)]
    np.testing.assert_allclose(*starts, rtol=1e-6)
    _follow(ours, original, 12, exact=False)


@pytest.mark.parametrize("env_id", IDS)
def test_a_loaded_state_continues_bit_for_bit_through_json(env_id):
    first, second = (make_vector(env_id, 3, max_episode_steps=25) for _ in range(2))
    first.reset(seed=0)
    generator = np.random.default_rng(0)
    for step in range(30):
        first.step(_actions(first, generator, step))
    saved = json.loads(json.dumps(first.state_dict(), default=np.ndarray.tolist))
    second.load_state_dict(saved)
    for step in range(60):
        actions = _actions(first, generator, step)
        for mine, theirs in zip(first.step(actions)[:4], second.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_state_of_another_size_is_refused():
    envs = make_vector("Pendulum-v1", 3)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        envs.load_state_dict(make_vector("Pendulum-v1", 4).state_dict())


def test_returned_arrays_are_never_overwritten_by_a_later_step():
    envs = make_vector("Acrobot-v1", 2)
    observations, _ = envs.reset(seed=0)
    kept = observations.copy()
    envs.step(np.array([0, 2]))
    np.testing.assert_array_equal(observations, kept)


@pytest.mark.parametrize("env_id", IDS)
def test_actions_outside_the_space_are_refused(env_id):
    envs = make_vector(env_id, 2)
    envs.reset(seed=0)
    discrete = [np.array([0, 3]), np.array([-1, 0]), np.array([0]), np.array([0.0, 1.0]), None]
    continuous = [np.zeros(2, np.float32), np.zeros((2, 1)), np.full((2, 1), np.nan, np.float32), None]
    for actions in continuous if isinstance(envs.single_action_space, gym.spaces.Box) else discrete:
        with pytest.raises(AssertionError, match="is not in"):
            envs.step(actions)


def test_a_reset_mask_is_checked_and_an_ended_sub_environment_is_not_stepped():
    envs = make_vector("Pendulum-v1", 2, AutoresetMode.DISABLED, max_episode_steps=1)
    torque = np.zeros((2, 1), np.float32)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(torque)
    with pytest.raises(gym.error.ResetNeeded, match="all 2"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    assert envs.step(torque)[3].all()
    with pytest.raises(AssertionError, match="reset_mask"):
        envs.step(torque)
    for mask, error in [([True, True], TypeError), (np.zeros(2, bool), ValueError), (np.ones(3, bool), ValueError)]:
        with pytest.raises(error, match="reset_mask"):
            envs.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="one per sub-environment"):
        envs.reset(seed=[1])


@pytest.mark.parametrize("env_id, options", [("CartPole-v1", {"low": 1, "high": 0}), ("Pendulum-v1", {"x_init": "a"})])
def test_reset_options_that_make_no_sense_are_refused(env_id, options):
    with pytest.raises(ValueError, match=r"option|bound"):
        make_vector(env_id, 1).reset(options=options)


def test_make_vector_picks_the_native_form_and_otherwise_scalar_environments():
    for env_id in IDS:
        envs = make_vector(env_id, 2)
        assert isinstance(envs, ClassicVectorEnv)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        assert envs.spec is not None
        assert envs.spec.id == env_id
        original = gym.make(env_id)
        assert envs.single_action_space == original.action_space
        assert envs.single_observation_space == original.observation_space
        assert envs.max_episode_steps == original.spec.max_episode_steps
    assert isinstance(make_vector("Taxi-v4", 2), SyncVectorEnv)
    assert isinstance(make_vector("gymnasium:Taxi-v4", 2, AutoresetMode.NEXT_STEP), SyncVectorEnv)
    assert isinstance(make_vector("Pendulum-v1", 2, render_mode="rgb_array"), SyncVectorEnv)
    with pytest.raises(gym.error.Error):
        make_vector("NoSuchTask-v0", 2)
    with pytest.raises(ValueError, match="num_envs"):
        make_vector("Pendulum-v1", 0)
    with pytest.raises(ValueError, match="max_episode_steps"):
        make_vector("Pendulum-v1", 2, max_episode_steps=0)


def test_the_dynamics_equal_gymnasiums_own_vector_cart_pole():
    ours, theirs = make_vector("CartPole-v1", 16, AutoresetMode.NEXT_STEP), gym.make_vec("CartPole-v1", 16)
    ours.reset(seed=0), theirs.reset(seed=0)
    theirs.unwrapped.state = ours.state_dict()["state"].copy()
    for step in range(9):  # nine pushes topple no pole
        actions = np.full(16, step % 2)
        np.testing.assert_allclose(ours.step(actions)[0], theirs.step(actions)[0], rtol=1e-6)
