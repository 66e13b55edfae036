"""OpenEnv: dialogues with a server's environments, one that is gone, and ours served; on a stand-in, and for real."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.error import HTTPError

import gymnasium as gym
import numpy as np
import pytest
import torch

from textenvs import assets
from textenvs.dialogues.guess import GuessTheNumber
from textenvs.dialogues.sub_environments import DialogueError
from textenvs.dialogues.tools import ToolEnv
from textenvs.tasks import open_env

URL = "http://127.0.0.1:8000"
NAMES = {"done": {"type": "boolean"}, "reward": {"type": "number"}, "metadata": {"type": "object"}}


def schema(title, **fields):
    return {"title": title, "properties": {name: {"type": kind} for name, kind in fields.items()} | NAMES}


class Server:
    """The wire protocol over `Counting`, in this process: a session a socket."""

    def __init__(self):
        self.up, self.slow, self.most, self.shift, self.sessions = True, 0, 99, 0, []
        self.schemas = {
            "action": schema("WordAction", word="string"),
            "observation": schema("WordObservation", text="string"),
        }

    def connect(self, url, *, max_size, proxy="any"):
        assert (url, max_size, proxy) == ("ws://127.0.0.1:8000/ws", None, None)
        if not self.up:
            raise ConnectionRefusedError("refused")
        return self.session()

    @contextmanager
    def session(self):
        session = Session(self)
        self.sessions.append(session)
        try:
            yield session
        finally:
            self.sessions.remove(session)

    def kill(self):
        self.up = False
        for session in self.sessions:
            session.alive = False


class Closed(Exception):
    pass


class Session:
    """Counts up from the seed; the word "end" ends, "cut" cuts, "boom" raises, "bad" is invalid."""

    def __init__(self, server):
        self.server, self.alive, self.answers, self.count = server, True, [], None

    def send(self, message):
        if not self.alive:
            raise Closed
        self.answers.append(self.answer(**json.loads(message)))

    def recv(self, timeout):
        assert timeout == 60.0
        if not self.alive:
            raise Closed
        if self.server.slow:
            self.server.slow -= 1
            raise TimeoutError("timed out in 60.0 s")
        return json.dumps(self.answers.pop(0))

    def answer(self, type, data):
        if len(self.server.sessions) > self.server.most:
            return {"type": "error", "data": {"message": "at capacity", "code": "CAPACITY_REACHED"}}
        if type == "reset":
            self.count, word = data["seed"] % 7, data.get("first", "")
        else:
            word = data["word"]
            self.count += 1
        wrong = {"bad": ["word"], "inner": ["depth", 0]}.get(word)
        if wrong:
            errors = [{"loc": wrong, "msg": "not allowed", "type": "value_error"}]
            return {
                "type": "error",
                "data": {"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": errors},
            }
        if word == "boom":
            return {"type": "error", "data": {"message": "'no such word'", "code": "EXECUTION_ERROR"}}
        text = f"w{self.count + self.server.shift}"
        told = {"metadata": {"truncated": True, "state": self.count}} if word == "cut" else {}
        reward = None if type == "reset" else float(self.count)
        return {
            "type": "observation",
            "data": {"observation": {"text": text}, "reward": reward, "done": word in ("end", "cut"), **told},
        }


@pytest.fixture
def server(monkeypatch):
    """A stand-in for the package's modules, the HTTP request and the clock; what sleeps is in ``server.pauses``."""
    made = Server()
    client, faults = ModuleType("websockets.sync.client"), ModuleType("websockets.exceptions")
    client.connect, faults.ConnectionClosed, faults.WebSocketException = made.connect, Closed, Closed
    for module in (ModuleType("websockets"), ModuleType("websockets.sync"), client, faults):
        monkeypatch.setitem(sys.modules, module.__name__ if module is not client else "websockets.sync.client", module)
    made.now, made.pauses, made.back_after = 0.0, [], None

    def sleep(seconds):
        made.now += seconds
        made.pauses.append(seconds)
        made.up |= len(made.pauses) == made.back_after

    def schemas(url):
        if not made.up:
            raise ConnectionRefusedError("refused")
        return made.schemas

    monkeypatch.setattr(open_env, "time", type("Clock", (), {"sleep": sleep, "monotonic": lambda: made.now}))
    monkeypatch.setattr(open_env, "_schemas", schemas)
    return made


def test_the_servers_fields_become_a_dialogue(server, tokenizer):
    envs = gym.make_vec(
        "textenvs/OpenEnv-v0", num_envs=2, url=URL, tokenizer=tokenizer, max_turn_tokens=2, max_tokens=20
    )
    observations, _ = envs.reset(seed=0)
    first = [tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in observations]
    envs.step(np.array([3, 4]))
    observations, rewards, *_ = envs.step(np.array([0, 0]))
    for text, row, reward in zip(first, observations, rewards, strict=True):
        written = tokenizer.decode(row[row >= 0], skip_special_tokens=True).split()
        count = int(text[1:]) + 1
        assert (written[0], written[-1], reward) == (text, f"w{count}", count)
    envs.close()
    assert server.sessions == []


def test_ends_rewards_and_metadata(server):
    session = open_env.sessions(URL, settings={"first": "x"})()
    assert session.reset(seed=9) == ("w2", {})
    assert session.step("a") == ("w3", 3.0, False, False, {})
    assert session.step("cut") == ("w4", 4.0, False, True, {"state": 4})
    session.reset(seed=2)
    assert session.step("end") == ("w3", 3.0, True, False, {})
    with pytest.raises(RuntimeError, match="expected an episode that goes on after reset"):
        open_env.sessions(URL, settings={"first": "end"})().reset(seed=0)


def test_a_lost_session_is_begun_again_with_the_same_seed_and_turns(server):
    session = open_env.sessions(URL)()
    session.reset(seed=2)
    session.step("a"), session.step("bad")
    server.kill()
    server.back_after = 3
    assert session.step("b") == ("w5", 5.0, False, False, {})  # reset to 2, then a, bad and b
    assert server.pauses == [0.25, 0.5, 1.0]
    assert len(server.sessions) == 1
    server.slow = 1  # an answer that comes too late is never taken for that to the next question
    assert session.step("c") == ("w6", 6.0, False, False, {})
    server.kill()
    server.up, server.shift = True, 1
    with pytest.raises(RuntimeError, match=r"the session was lost, .* in turn 0 expected \('w2', .* received \('w3',"):
        session.step("d")
    assert session.reset(seed=2)[0] == "w3"


def test_a_server_that_is_gone_is_waited_for_and_then_named(server, tokenizer):
    envs = gym.make_vec(
        "textenvs/OpenEnv-v0", num_envs=3, url=URL, patience=20, tokenizer=tokenizer, max_turn_tokens=1, max_tokens=20
    )
    envs.reset(seed=0)
    server.kill()
    with pytest.raises(DialogueError) as caught:
        envs.step(np.array([3, 3, 3]))
    assert server.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    for said in (
        "sub-environment 0 (OpenEnvSession), in turn 1",
        f"OpenEnv server {URL}: gone",
        "again for 20 s",
        "refused",
    ):
        assert said in str(caught.value)
    server.up = True
    assert envs.reset(seed=1)[0].shape == (3, 20)
    server.up, server.back_after = False, None
    server.pauses.clear()
    with pytest.raises(ConnectionError, match=r"OpenEnv server http://127.0.0.1:8000: gone .* 1 seconds \(refused\)"):
        open_env.sessions(URL, patience=1)
    assert server.pauses == [0.25, 0.5]


def test_a_server_that_is_full_says_so(server):
    server.most = 1
    make = open_env.sessions(URL, patience=1)
    first, second = make(), make()
    first.reset(seed=0)
    with pytest.raises(ConnectionError, match="at capacity; each sub-environment is a session"):
        second.reset(seed=0)
    first.close()
    assert second.reset(seed=0)[0] == "w0"


def test_what_the_agent_gets_wrong_is_told_to_it_and_nothing_else(server):
    def word(text):
        if " " in text:
            raise ValueError("one word")
        return {"word": text}

    session = open_env.sessions(URL, action=word)()
    session.reset(seed=0)
    assert session.step("a b") == ("error: one word", 0.0, False, False, {})
    assert session.step("bad") == ("error: word: not allowed", 0.0, False, False, {})
    with pytest.raises(RuntimeError, match=r"127.0.0.1:8000: Invalid message \[\{'loc': \['depth', 0\]"):
        session.step("inner")
    with pytest.raises(RuntimeError, match=r"127.0.0.1:8000: 'no such word'"):
        session.step("boom")


def test_fields_are_named_where_there_is_not_just_one_of_text(server):
    server.schemas["action"] = schema("Point", x="integer", note="string")
    with pytest.raises(
        ValueError, match=r"^OpenEnv server http.*: action: .* Point has not .*: x \(integer\), note \(str"
    ):
        open_env.sessions(URL)
    with pytest.raises(ValueError, match="action: received 'nota'; did you mean 'note'"):
        open_env.sessions(URL, action="nota")
    server.schemas["observation"] = schema("Grid", x="integer")
    with pytest.raises(ValueError, match=r"observation: .* Grid has not just one field of text.*: x \(integer\)"):
        open_env.sessions(URL, action="note")
    server.schemas["observation"] = schema("Nothing")
    with pytest.raises(ValueError, match="its fields: none"):
        open_env.sessions(URL, action="note")
    server.schemas["action"] = schema("WordAction", word="string")
    session = open_env.sessions(URL, observation=lambda fields: [{"role": "user", "content": fields["text"] * 2}])()
    assert session.reset(seed=1)[0] == [{"role": "user", "content": "w1w1"}]


@pytest.mark.parametrize(
    "options, message",
    [({"url": None}, "url: expected that of a running OpenEnv server, .* received None"),
     ({"url": "localhost:8000"}, "received 'localhost:8000'"), ({"patience": -1.0}, "patience: expected seconds, 0 or"),
     ({"time_limit": float("nan")}, "time_limit: expected"), ({"gruop_size": 2}, "did you mean 'group_size'")],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(server, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        gym.make_vec("textenvs/OpenEnv-v0", **({"url": URL, "tokenizer": tokenizer} | options))


def test_an_address_without_schemas_is_no_openenv_server(monkeypatch):
    class Opener:
        def open(self, url, timeout):
            raise HTTPError(url, 404, "Not Found", {}, None)

    monkeypatch.setattr(open_env, "build_opener", lambda *handlers: Opener())
    with pytest.raises(ValueError, match=r"url: expected an OpenEnv server, with schemas at /schema, received .*404"):
        open_env._schemas(URL)


def test_the_command_that_installs_the_extra_is_named(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "websockets", None)
    monkeypatch.delitem(sys.modules, "websockets.sync.client", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'textenvs\[openenv\]'"):
        gym.make("textenvs/OpenEnv-v0", url=URL, tokenizer=tokenizer)


# The package itself: servers in processes of their own.


@pytest.fixture(scope="module")
def start():
    """``start(name, port=None)`` serves an application of `open_env_servers`: its URL and the process."""
    pytest.importorskip("openenv.core")
    pytest.importorskip("uvicorn")
    script = Path(__file__).with_name("open_env_servers.py")
    paths = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as parent:  # fmt: skip
        assert parent.stdout.readline() == "ready\n"
        running = []

        def serve(name, port=None):
            if port is None:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
            parent.stdin.write(f"{name} {port}\n")
            parent.stdin.flush()
            running.append(int(parent.stdout.readline()))
            return f"http://127.0.0.1:{port}", running[-1]

        yield serve
        for child in running:
            os.kill(child, signal.SIGKILL)  # still there, if dead: the parent has not asked after it
        parent.stdin.close()


def port_of(url):
    return int(url.rpartition(":")[2])


def trace(env, seed, turns):
    """What an environment writes and pays, with info as JSON has it."""
    seen = [env.reset(seed=seed)]
    for turn in turns:
        seen.append(env.step(turn))
        if any(seen[-1][2:4]):
            break
    return json.loads(json.dumps(seen))


def test_an_environment_of_openenvs_own_is_played(start, tokenizer):
    url, _ = start("echo")
    with pytest.raises(
        ValueError, match=r"observation: .*EchoObservation has not .*: echoed \(string\), length \(integer"
    ):
        open_env.sessions(url)
    session = open_env.sessions(url, observation="echoed", settings={"greeting": "w9"})()
    assert session.reset(seed=7) == ("w9 w2", {})
    assert session.step("w1 w2") == ("w1 w2", 1.25, False, False, {})
    with pytest.raises(RuntimeError, match="no such word"):
        session.step("boom")
    assert session.step("w1 w") == ("w1 w", 1.0, True, False, {})
    session.close()
    envs = gym.make_vec(
        "textenvs/OpenEnv-v0", num_envs=4, url=url, observation="echoed", tokenizer=tokenizer, max_turn_tokens=1,
        max_tokens=32, group_size=2, threads=2,
    )  # fmt: skip
    first, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(first[::2], first[1::2])
    _, rewards, *_ = envs.step(np.full(4, 5))
    np.testing.assert_allclose(rewards, 0.5)  # "w3": two letters
    envs.close()


@pytest.mark.parametrize("name", ["guess", "limited", "tools"])
def test_our_environment_served_is_the_environment(start, name):
    url, _ = start(name)
    direct = {
        "guess": GuessTheNumber,
        "limited": lambda: gym.wrappers.TimeLimit(GuessTheNumber(), 2),
        "tools": lambda: _tools(),
    }[name]()
    session = open_env.sessions(url)()
    turns = {"tools": ["add(a=2, b=3)", "add(a=2)", "It is 8."]}.get(name, ["8", "x", "4", "12", "14", "2"])
    for seed in range(4):
        assert trace(session, seed, turns) == trace(direct, seed, turns)
    session.close()


def _tools():
    from textenvs import rewards

    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the first number.
            b: the second number.
        """
        return a + b

    rows = [{"prompt": f"{n} plus {n}", "answer": str(2 * n)} for n in range(9)]
    return ToolEnv([add], rows=rows, reward=rewards.number(), error_reward=-0.5)


def test_dialogues_over_our_server_are_those_with_the_environment_itself(start):
    url, _ = start("guess")
    options = dict(num_envs=4, tokenizer=None, reference=assets.language_model_dir(), max_turns=3, max_turn_tokens=4)
    here = gym.make_vec("textenvs/Dialogue-v0", env=GuessTheNumber, max_tokens=96, **options)
    there = gym.make_vec("textenvs/OpenEnv-v0", url=url, max_tokens=96, **options)
    actions = np.random.default_rng(0).integers(0, int(here.single_action_space.n), (40, 4))
    np.testing.assert_array_equal(here.reset(seed=3)[0], there.reset(seed=3)[0])
    for action in actions:
        for mine, theirs in zip(here.step(action)[:4], there.step(action)[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    there.close()


def test_openenvs_own_client_plays_our_server(start):
    from openenv.core import GenericEnvClient

    url, _ = start("guess")
    open_env.sessions(url)  # waits for it
    env = GuessTheNumber()
    with GenericEnvClient(base_url=url).sync() as client:
        assert client.reset(seed=3).observation["text"] == env.reset(seed=3)[0]
        for guess in ("8", "4", "12"):
            text, reward, done, _, info = env.step(guess)
            result = client.step({"text": guess})
            assert (result.observation["text"], result.reward, result.done) == (text, reward, done)
            assert result.metadata == {"state": list(info["state"])}
        assert client.state()["step_count"] == 3


def test_a_fault_of_a_served_environment_is_not_the_agents(start):
    url, _ = start("wrong")
    session = open_env.sessions(url)()
    session.reset(seed=0)
    with pytest.raises(RuntimeError, match="expected an observation of text or of turns, received 7"):
        session.step("a")
    session.close()


def test_actions_that_the_server_finds_invalid_are_told(start):
    url, _ = start("point")
    session = open_env.sessions(
        url, action=lambda text: dict(zip("xy", text.split(), strict=False)), observation="echoed"
    )()
    session.reset(seed=0)
    assert session.step("1 b")[0].startswith("error: y: Input should be a valid integer")
    with pytest.raises(RuntimeError, match="missing"):  # left out by the function
        session.step("")
    with pytest.raises(RuntimeError, match="extra_forbidden"):
        open_env.sessions(url, action=lambda text: {"x": 1, "z": 2}, observation="echoed")().step("1")
    session.close()


def test_a_server_with_one_session_is_full(start):
    url, _ = start("one")
    make = open_env.sessions(url, observation="echoed")
    first, second = make(), make()
    second.patience = 0.5
    first.reset(seed=0)
    with pytest.raises(ConnectionError, match=r"capacity.*serve more, or take fewer"):
        second.reset(seed=0)
    first.close()
    second.patience = 20
    assert second.reset(seed=0)[0] == "w1 w0"
    second.close()


def test_a_server_that_is_killed_and_comes_back_is_played_on(start):
    url, child = start("guess")
    session, direct = open_env.sessions(url)(), GuessTheNumber()
    assert session.reset(seed=11)[0] == direct.reset(seed=11)[0]
    assert session.step("8")[:2] == direct.step("8")[:2]
    os.kill(child, signal.SIGKILL)
    start("guess", port_of(url))
    for guess in ("4", "12", "14"):
        assert session.step(guess)[:4] == direct.step(guess)[:4]
    session.close()


def test_a_server_that_comes_back_another_is_refused(start):
    url, child = start("unlike")
    session = open_env.sessions(url, observation="echoed")()
    session.reset(seed=0)
    session.step("w1")
    os.kill(child, signal.SIGKILL)
    start("unlike", port_of(url))
    with pytest.raises(RuntimeError, match=r"the session was lost, .* in turn 1 expected"):
        session.step("w2")
    session.close()


def test_an_agent_whose_server_was_gone_is_as_before_and_learns_on_bit_for_bit(start):
    from agents import GRPO

    def build(**options):
        envs = gym.make_vec(
            "textenvs/OpenEnv-v0", num_envs=4, url=url, reference=assets.language_model_dir(), max_turns=2,
            max_turn_tokens=4, max_tokens=64, group_size=2, **options,
        )  # fmt: skip
        return GRPO(envs, group_size=2, seed=0)

    url, child = start("guess")
    undisturbed = build().learn(24, progress_bar=False)
    agent = build(patience=0.5)
    killed = []

    def kill(agent):
        if not killed:
            os.kill(child, signal.SIGKILL)
            killed.append(agent.steps)
        return True

    with pytest.raises(DialogueError, match=r"sub-environment \d \(OpenEnvSession\), in .*OpenEnv server http.*gone"):
        agent.learn(24, progress_bar=False, callback=kill)
    assert agent.steps == killed[0] < 24
    start("guess", port_of(url))
    open_env.sessions(url)  # waits for it
    agent.learn(progress_bar=False)
    first, second = undisturbed.policy.state_dict(), agent.policy.state_dict()
    assert undisturbed.steps == agent.steps
    assert all(torch.equal(first[name], second[name]) for name in first)
