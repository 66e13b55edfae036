"""Sub-environments in processes of their own answer as those in this one, and a process that ends is named."""

import os
import signal
from threading import Event
from time import sleep

import gymnasium as gym
import numpy as np
import pytest

from textenvs.dialogues.processes import ProcessEnvironments
from textenvs.dialogues.sub_environments import DialogueError, SubEnvironments


class Counter(gym.Env):
    """Counts its turns; the answer has the episode's own number in it."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.count = int(self.np_random.integers(100)), 0
        return f"w{self.number}", {"pid": os.getpid()}

    def step(self, action):
        self.count += 1
        if action == "fail":
            raise KeyError("in the third drawer")
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        info = {"lock": __import__("threading").Lock()} if action == "odd" else {"count": self.count}
        return f"{action} {self.number}", 0.5, self.count == 3, False, info


@pytest.fixture
def envs():
    made = ProcessEnvironments(Counter, 5, processes=2)
    yield made
    made.close()


def test_five_environments_in_two_processes_answer_as_in_one(envs):
    plain = SubEnvironments(Counter, 5)
    order, seeds = [3, 0, 4, 1, 2], [13, 10, 14, 11, 12]
    began = envs.reset(order, seeds)
    assert [text for text, _ in began] == [text for text, _ in plain.reset(order, seeds)]
    pids = {index: info["pid"] for index, (_, info) in zip(order, began, strict=True)}
    assert pids[0] == pids[2] == pids[4] != pids[1] == pids[3]
    assert os.getpid() not in pids.values()
    for some in ([4, 1], [1, 2, 3], [2]):
        assert envs.step(some, [f"to {index}" for index in some]) == plain.step(some, [f"to {index}" for index in some])
    assert envs.place(1) == plain.place(1) == "sub-environment 1 (Counter), in turn 2"


def test_faults_are_named_and_the_others_answers_are_not_mixed_up(envs):
    envs.reset(range(5), range(5))
    with pytest.raises(DialogueError, match=r"sub-environment 3 \(Counter\), in turn 1: KeyError: 'in the third"):
        envs.step([0, 3, 1], ["a", "fail", "b"])
    [reply] = envs.step([2], ["c"])
    assert reply.observation.startswith("c ")
    with pytest.raises(DialogueError, match=r"sub-environment 1 \(Counter\), in turn 1: .* can be pickled: .*lock"):
        envs.step([3, 1], ["even", "odd"])
    with pytest.raises(DialogueError, match="sub-environments 0, 2, 4: their process ended with exit code -9"):
        envs.step([0, 1], ["die", "d"])
    with pytest.raises(DialogueError, match="expected a reset"):
        envs.step([1], ["e"])
    assert len(envs.reset(range(5), range(5))) == 5  # in new processes


def test_a_signal_to_all_processes_is_the_main_ones_and_an_interrupted_call_leaves_no_answers_behind(envs, monkeypatch):
    envs.reset(range(5), range(5))
    for process, _ in envs._workers:
        for each in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, each)
    assert [reply.info["count"] for reply in envs.step(range(5), "abcde")] == [1] * 5

    def interrupted(worker):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(envs, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            envs.step(range(5), "fghij")
    assert [text for text, _ in envs.reset(range(5), range(5))] == [
        text for text, _ in SubEnvironments(Counter, 5).reset(range(5), range(5))
    ]


def test_a_call_in_threads_ends_when_all_have_ended_also_after_a_fault():
    ended = Event()

    class Slow(Counter):
        def step(self, action):
            if action == "slow":
                sleep(0.1)
                ended.set()
            return super().step(action)

    envs = SubEnvironments(Slow, 2, threads=2)
    envs.reset([0, 1], [0, 1])
    with pytest.raises(DialogueError, match="in the third drawer"):
        envs.step([0, 1], ["fail", "slow"])
    assert ended.is_set()


@pytest.mark.parametrize(
    "source, kind, message",
    [("textenvs/NoSuchGame-v0", DialogueError, "NoSuchGame"), (lambda: object(), ValueError, "with reset and step")],
)
def test_what_makes_no_environment_is_refused(source, kind, message):
    with pytest.raises(kind, match=message):
        ProcessEnvironments(source, 2, processes=1).reset([0], [0])


def test_dialogues_are_the_same_and_threads_beside_processes_are_refused(tokenizer):
    options = {"env": Counter, "tokenizer": tokenizer, "max_turns": 3, "max_turn_tokens": 2, "max_tokens": 40}

    def played(**more):
        envs = gym.make_vec("textenvs/Dialogue-v0", num_envs=3, **options, **more)
        found = [envs.reset(seed=4)[0], *(envs.step(np.array([2, 3, 2 + turn]))[:4] for turn in range(7))]
        envs.close()
        return found

    for mine, other in zip(played(), played(processes=2), strict=True):
        np.testing.assert_equal(mine, other)
    for wrong in ({"threads": 1, "processes": 1}, {"processes": -1}):
        with pytest.raises(ValueError, match=r"processes: expected (one of them|a whole number of 0 or more)"):
            gym.make_vec("textenvs/Dialogue-v0", num_envs=3, **options, **wrong)
