"""Environments that are wrong: each message says whose code it is, what was expected and where in the run it was."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents import PPO, evaluate
from agents.recipes.commands.control import command_line

SETTINGS = {"num_steps": 8, "epochs": 1, "hidden": (4,)}
ZEROS = np.zeros(2, np.float32)


class Sound(gym.Env):
    """Episodes of 5 steps in which nothing happens."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return ZEROS, {}

    def step(self, action):
        self.steps += 1
        return self.see(), self.pay(), self.steps % 5 == 0, False, {}

    def see(self):
        return ZEROS

    def pay(self):
        return 1.0


def broken(**members):
    return type("Broken", (Sound,), members)


def third(value, otherwise):
    """A method that returns ``value`` in the third step."""
    return lambda self: value if self.steps == 3 else otherwise


def learn(*makers):
    return PPO(SyncVectorEnv(list(makers), autoreset_mode=AutoresetMode.SAME_STEP), **SETTINGS).learn(16)


PARTS = spaces.Dict({"place": spaces.Box(-1.0, 1.0, (2, 2)), "way": spaces.Discrete(3)})


NAN, INFINITE = np.array([0, np.nan], np.float32), np.array([np.inf, 0], np.float32)
SEEN, PAID = (
    "environment 1, after 3 steps of a rollout: expected a finite ",
    "environment 1, step 2 of a rollout: expected a ",
)


@pytest.mark.parametrize(
    "members, message",
    [
        ({"see": third(NAN, ZEROS)}, SEEN + r"observation\[1\], received nan"),
        ({"see": third(INFINITE, ZEROS)}, SEEN + r"observation\[0\], received inf"),
        ({"pay": third(float("nan"), 1.0)}, PAID + "finite reward, received nan"),
        ({"pay": third(None, 1.0)}, PAID + r"finite reward, received nan or None"),
        ({"reset": lambda self, seed=None, options=None: ZEROS}, r"Broken.reset: expected \(observation, info\), rec"),
        ({"step": lambda self, action: (ZEROS, 1.0, False, {})}, r"Broken.step: expected \(observation, reward, term"),
    ],
)
def test_what_an_environment_returned_is_named(members, message):
    with pytest.raises(ValueError, match=message):
        learn(Sound, broken(**members))


def test_the_key_of_a_number_that_is_not_finite_is_named():
    def see(self):
        return {"place": np.full((2, 2), np.nan if self.steps == 2 else 0, np.float32), "way": 0}

    def reset(self, seed=None, options=None):
        return see(self), {}

    kind = broken(observation_space=PARTS, see=see, reset=reset)
    with pytest.raises(ValueError, match=r"observation\['place'\]\[0\]\[0\], received nan"):
        learn(kind)


@pytest.mark.parametrize("choice", [-1, 3])
def test_a_choice_outside_its_space_is_refused(choice):
    def reset(self, seed=None, options=None):
        return 0, {}

    kind = broken(observation_space=spaces.Discrete(3), see=lambda self: choice, reset=reset)
    with pytest.raises(ValueError, match=r"expected choices of Discrete\(3\), received array\(\[.*" + str(choice)):
        learn(kind, kind)


def test_an_observation_outside_its_box_is_a_warning_once():
    with pytest.warns(UserWarning, match=r"observation\[0\] is 5, outside its space's \[-1, 1\]") as found:
        learn(broken(see=third(np.array([5, 0], np.float32), ZEROS)))
    assert len([each for each in found if "outside" in str(each.message)]) == 1


@pytest.mark.parametrize(
    "members, message",
    [
        ({"observation_space": None}, "Broken.observation_space: expected a gymnasium space, received None"),
        ({"action_space": 2}, "Broken.action_space: expected a gymnasium space, received 2"),
        ({"reset": lambda self: (ZEROS, {})}, r"Broken.reset: expected \(\*, seed=None, options=None\), received \(\)"),
    ],
)
def test_an_environment_without_what_gymnasium_asks_for_is_refused_at_the_door(members, message):
    with pytest.raises(ValueError, match=message):
        PPO(broken(**members)(), **SETTINGS)


def raising(error):
    def step(self, action):
        raise error

    return step


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("v"), RuntimeError("r"), OSError("o"), ZeroDivisionError()]
)
def test_an_exception_of_the_environments_code_stays_itself_and_says_where_it_was(error):
    kind = broken(step=raising(error))
    with pytest.raises(type(error)) as found:
        learn(Sound, kind)
    assert found.value is error
    assert "own code failed" in error.__notes__[0]
    assert "Sound, environment 1, step 0 of 8 of a rollout, after 0 steps of training" in error.__notes__[0]
    agent = PPO(Sound(), **SETTINGS)
    with pytest.raises(type(error)) as found:
        evaluate(agent, kind(), 1)
    assert "Broken, environment 0, step 0 of an episode of evaluation" in found.value.__notes__[-1]


MODULE = """
import gymnasium as gym
import numpy as np

class Mine(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        raise ValueError("a bug of mine")

gym.register("Mine-v0", Mine)
"""


@pytest.mark.parametrize(
    "change, line, traceback",
    [
        (("", ""), "environments_of_mine_0.py", "ValueError: a bug of mine"),
        (("class Mine(", "class Mine[("), "environments_of_mine_1:Mine-v0, while it was made", "SyntaxError"),
        (
            ("import numpy", "import nump"),
            "environments_of_mine_2:Mine-v0, while it was made",
            "No module named 'nump'",
        ),
        (
            ("    def reset", "    def __init__(self, size):\n        pass\n\n    def reset"),
            "while it was made",
            "'size'",
        ),
    ],
)
def test_the_command_shows_the_traceback_of_a_users_code_below_its_place(
    change, line, traceback, tmp_path, monkeypatch, capsys, request
):
    module = f"environments_of_mine_{request.node.callspec.indices['change']}"
    (tmp_path / f"{module}.py").write_text(MODULE.replace(*change))
    monkeypatch.syspath_prepend(tmp_path)
    assert command_line(["--run-dir", str(tmp_path / "run"), "--env", f"{module}:Mine-v0", "--quiet"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: the environment's own code failed")
    rest = printed.partition("\n")[2]
    assert rest.startswith("Traceback")
    assert line in printed
    assert traceback in rest


def test_an_unknown_module_or_id_needs_no_traceback(tmp_path, capsys):
    for env in ("no_such_module:Mine-v0", "CartPol-v1"):
        assert command_line(["--run-dir", str(tmp_path / "run"), "--env", env]) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("observation", [np.zeros(3), np.zeros((2, 2, 2)), np.full(2, np.nan), None, "x"])
def test_predict_refuses_what_is_no_observation(observation):
    agent = PPO(Sound(), **SETTINGS)
    with pytest.raises(ValueError, match=r"observation: expected finite numbers of Box"):
        agent.predict(observation)


@pytest.mark.parametrize("total", ["ten", 16.5, float("inf"), 0])
def test_learn_refuses_what_is_no_number_of_steps(total):
    with pytest.raises(ValueError, match="total_timesteps: expected a whole number of 1 or more, received"):
        PPO(Sound(), **SETTINGS).learn(total)


def test_evaluate_takes_ids_and_environments():
    agent = PPO("CartPole-v1", **SETTINGS)
    for env in ("CartPole-v1", gym.make("CartPole-v1")):
        returns, lengths = evaluate(agent, env, 2, seed=0)
        assert (returns == lengths).all()


def test_images_are_scaled_to_the_unit_interval():
    def reset(self, seed=None, options=None):
        return self.see(), {}

    for shape, expected in (((4, 3, 1), 51 / 255), ((2,), 51.0)):  # one axis is a memory, say, and no image
        pixels = np.full(shape, 51, np.uint8)
        space = spaces.Box(0, 255, shape, np.uint8)
        agent = PPO(broken(observation_space=space, see=lambda self, p=pixels: p, reset=reset)(), **SETTINGS)
        observations = agent.collector.collect(agent.policy)[0].observations
        torch.testing.assert_close(observations, torch.full((1, 8, pixels.size), expected))


def test_a_checkpoint_of_another_device_is_restored_and_loaded(tmp_path):
    agent = PPO(Sound(), **SETTINGS).learn(8)
    state = agent.state_dict()
    state["config"]["device"] = "cuda:7"
    other = PPO(Sound(), **SETTINGS)
    other.load_state_dict(state)
    assert other.steps == 8
    with pytest.raises(ValueError, match=r"device cuda:7: .*(pass cpu|the last CUDA)"):
        PPO.from_state(agent.state_dict() | {"config": state["config"]}, Sound())
    assert PPO.from_state(state, Sound(), device="cpu").steps == 8


@pytest.mark.parametrize("hidden", [64, (0,), (6.5,), "ab"])
def test_hidden_layers_are_widths(hidden):
    with pytest.raises(ValueError, match="hidden: expected"):
        PPO(Sound(), hidden=hidden)
