"""OpenEnv servers to test against: reads "NAME PORT" lines, serves each in a process of its own, and prints its id.

The processes are forks, so that what the package imports, many seconds of it, is imported once.
"""

import os
import sys
from functools import partial

import gymnasium as gym
import uvicorn
from openenv.core import Action, Environment, Observation, State, create_app

from textenvs import rewards
from textenvs.dialogues.guess import GuessTheNumber
from textenvs.dialogues.tools import ToolEnv
from textenvs.tasks.open_env_server import open_env_app


class EchoAction(Action):
    message: str


class EchoObservation(Observation):
    echoed: str
    length: int


class Echo(Environment):
    """Says what it is told; the seed is the first message, three messages end it."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, drawn=False):
        super().__init__()
        self.drawn, self._state = drawn, State()

    def reset(self, seed=None, episode_id=None, greeting="w1", **_):
        self._state = State(episode_id=episode_id)
        return EchoObservation(echoed=f"{greeting} w{seed % 5}", length=0)

    def step(self, action, timeout_s=None, **_):
        self._state.step_count += 1
        if action.message == "boom":
            raise KeyError("no such word")
        text = f"{action.message} {os.getpid()}" if self.drawn else action.message
        done = self._state.step_count == 3
        return EchoObservation(echoed=text, length=len(text), reward=len(text) / 4, done=done)

    @property
    def state(self):
        return self._state


class Point(Action):
    x: int
    y: int = 0


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first number.
        b: the second number.
    """
    return a + b


class Wrong(gym.Env):
    def reset(self, *, seed=None, options=None):
        return "w1", {}

    def step(self, action):
        return 7, 0.0, False, False, {}


class Unlike(Echo):
    """Answers otherwise in another process."""

    def __init__(self):
        super().__init__(drawn=True)


ROWS = [{"prompt": f"{n} plus {n}", "answer": str(2 * n)} for n in range(9)]
SOURCES = {
    "guess": GuessTheNumber,
    "limited": lambda: gym.wrappers.TimeLimit(GuessTheNumber(), 2),
    "tools": partial(ToolEnv, [add], rows=ROWS, reward=rewards.number(), error_reward=-0.5),
    "wrong": Wrong,
}


def app_of(name):
    if name in SOURCES:
        return open_env_app(SOURCES[name])
    kind = Unlike if name == "unlike" else Echo
    action, most = Point if name == "point" else EchoAction, 1 if name == "one" else 8
    return create_app(kind, action, EchoObservation, max_concurrent_envs=most)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        name, port = line.split()
        child = os.fork()
        if not child:
            uvicorn.run(app_of(name), host="127.0.0.1", port=int(port), log_level="critical")
            os._exit(0)
        print(child, flush=True)
