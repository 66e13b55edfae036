"""What an object holds, as plain data and back."""

import numpy as np
import pytest

from agents import PPO, PPOConfig
from agents.control.env_state.plain_state import from_plain, is_hidden, plain

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
