"""What an object holds, as plain data and back."""

import enum
from collections import Counter, OrderedDict, defaultdict, namedtuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents import PPO, PPOConfig
from agents.control.env_state.plain_state import from_plain, hidden_in, is_hidden, plain
from agents.runs import checkpoint

CONFIG = PPOConfig(num_envs=2, num_steps=8, epochs=1, hidden=(4,))


@pytest.mark.parametrize(
    "array", [np.array([[b"SF", b"H"]]), np.array(["né", ""]), np.array(["2020-01-02"], "M8[D]"), np.array([], "S3")]
)
def test_arrays_that_are_no_numbers_come_back_as_they_were(array):
    found = from_plain(plain(array), None)
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


def test_arrays_of_objects_are_hidden():
    assert is_hidden(plain(np.array([object()])))
    assert is_hidden(plain(np.zeros(1, [("a", object)])))


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Taxi-v4"])
def test_environments_whose_map_is_text_are_resumed_bit_for_bit(env_id, tmp_path):
    straight = PPO(env_id, CONFIG).learn(48)
    path = PPO(env_id, CONFIG).learn(48, lambda agent: agent.updates < 1).save(tmp_path / "agent")
    again = PPO.load(path).learn()
    for one, other in zip(straight.policy.parameters(), again.policy.parameters(), strict=True):
        assert one.equal(other)


Pair = namedtuple("Pair", "x y")


class Phase(enum.Enum):
    """What an attribute may be."""

    RISING = 1


class Level(enum.IntEnum):
    """An int of another type."""

    LOW = 1


@pytest.mark.parametrize(
    "value",
    [
        Pair(1, 2), Counter("aab"), defaultdict(int, a=1), OrderedDict(a=1), Level.LOW, Phase.RISING, {"x": Pair(1, 2)},
        [Counter("a")], np.ma.array([1.0]), np.zeros(2, [("x", "f4")]), {1: 2}, {"__tuple__": [1]},
    ],
)  # fmt: skip
def test_what_would_come_back_as_another_type_is_hidden(value):
    assert is_hidden(plain(value))
    env = gym.Env()
    env.value = value
    assert hidden_in(env) == ["Env.value"]


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.bool_(True), np.str_("a"), np.array([1.5], ">f4"), np.longdouble(2)]
)
def test_numpys_own_numbers_and_orders_come_back_as_such(value, tmp_path):
    state = checkpoint.load(checkpoint.save(tmp_path / "state", {"value": plain(value)}))
    found = from_plain(state["value"], None)
    assert type(found) is type(value)
    assert (found.dtype, found) == (value.dtype, value)


def test_attributes_that_share_memory_are_hidden_since_copies_would_part_them():
    env = gym.Env()
    env.board = np.zeros((2, 2))
    env.row, env.apart = env.board[1], np.zeros(2)
    env.rows = [[0]] * 2
    env.inner = gym.Env()  # no wrapper: state of its own, whatever its name
    env.rng = env.np_random
    assert hidden_in(env) == ["Env.row", "Env.rows", "Env.inner"]
    env.__dict__["env"] = env.__dict__.pop("inner")
    assert "Env.env" in hidden_in(env)
    wrapper = gym.Wrapper(env)
    wrapper.seen = env.apart
    assert "Env.apart" in hidden_in(wrapper)


class Walk(gym.Env):
    """Counts its steps in a Counter and has a phase."""

    observation_space = gym.spaces.Box(-9.0, 9.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.counts, self.phase = Counter(), None
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.counts[int(action)] += 1
        self.phase = Phase.RISING
        place = self.counts[1] - self.counts[2]
        return np.array([place], np.float32), float(place), place == 7, False, {}


def test_an_environment_of_counters_and_enums_goes_on_as_if_undisturbed(tmp_path):
    def envs():
        return SyncVectorEnv([Walk, Walk], autoreset_mode=AutoresetMode.SAME_STEP)

    straight = PPO(envs(), CONFIG).learn(48)
    path = PPO(envs(), CONFIG).learn(48, lambda agent: agent.updates < 1).save(tmp_path / "agent")
    again = PPO.load(path, env=envs()).learn()
    for one, other in zip(straight.policy.parameters(), again.policy.parameters(), strict=True):
        assert one.equal(other)
