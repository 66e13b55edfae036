"""``textenvs/OpenEnv-v0``: dialogues with environments that a running OpenEnv server holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from http.client import HTTPException
from operator import itemgetter
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import gymnasium as gym

from textenvs.dialogues.bridge import Observation
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.factories import dialogue_vec, scalar
from textenvs.tasks.extras import as_settings, check_name, load, refuse_own
from textenvs.tokens.row_files import at

Value = TypeVar("Value")
Fields = dict[str, Any]
ToAction = Callable[[str], Fields]
ToText = Callable[[Fields], Observation]
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PAUSES = (0.25, 8.0)
"""The first pause before a server that is gone is asked again, and the longest, seconds; each doubles the last."""


class OpenEnvSession(gym.Env[Any, str]):
    """A session of an OpenEnv server: one environment there, over a WebSocket of its own.

    | Observation | Text, or turns of a chat: what `observation` makes of the server's                                |
    | Action      | Text, of which `action` makes the server's                                                      |
    | Reward      | the server's; 0 where it sent none                                                              |
    | Termination | the server's done                                                                               |
    | Truncation  | done with ``truncated`` in the metadata, as `textenvs.tasks.open_env_server` writes it           |
    | Info        | the metadata                                                                                    |

    A turn of which `action` makes nothing (ValueError), or which the server finds invalid, is answered "error: ..." for
    the agent to read. A session that is lost is begun again, with the same seed and the same turns, and goes on if the
    server answers them as it did before. OpenEnv's own client is not used, since it connects again by itself, to a
    session in which nothing of the dialogue has happened.

    Args:
        url: of the server, "http://127.0.0.1:8000".
        action: fields of the server's Action, from the text of a turn.
        observation: from the fields of the server's Observation.
        settings: further arguments of the server's reset.
        patience: how long a server that is gone is asked again, with growing pauses, seconds.
        time_limit: of an answer, seconds; a server that takes longer is gone.

    Raises:
        ConnectionError: in `reset` and `step`: the server was gone for longer than that.
        RuntimeError: there: its environment raised; or a lost episode cannot be repeated.
    """

    def __init__(
        self,
        url: str,
        action: ToAction,
        observation: ToText,
        *,
        settings: Mapping[str, Any] | None = None,
        patience: float = 60.0,
        time_limit: float = 60.0,
    ) -> None:
        for name, value in (("patience", patience), ("time_limit", time_limit)):
            if not value >= 0:
                raise ValueError(f"{name}: expected seconds, 0 or more, received {value!r}")
        self.url, self.action, self.observation = url, action, observation
        self.settings, self.patience, self.time_limit = as_settings("settings", settings), patience, time_limit
        self._connect = load("websockets.sync.client", "openenv").connect
        self._faults = load("websockets.exceptions", "openenv")
        self._socket: Any = None
        self._connection = ExitStack()
        self._episode: list[tuple[Fields, Any]] = []
        """Messages of the episode, and what the answers came to."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._episode = []
        text, _, *ends, info = self._ask({"type": "reset", "data": {**self.settings, "seed": seed}})
        if any(ends):
            raise RuntimeError(f"{self.url}: expected an episode that goes on after reset, received one that is done")
        return text, info

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Send a turn."""
        try:
            message = {"type": "step", "data": self.action(action)}
        except ValueError as fault:
            return f"error: {fault}", 0.0, False, False, {}
        text, reward, terminated, truncated, info = self._ask(message)
        return text, reward, terminated, truncated, info

    def close(self) -> None:
        """End the session."""
        self._socket = None
        self._connection.close()

    def _ask(self, message: Fields) -> tuple[Any, ...]:
        def ask() -> tuple[Any, ...]:
            try:
                if self._socket is None:
                    self._begin_again()
                return self._exchange(message)
            except (OSError, self._faults.WebSocketException) as fault:
                self.close()
                raise ConnectionError(f"{type(fault).__name__}: {fault}") from fault

        answer = _patiently(ask, self.url, self.patience)
        self._episode.append((message, answer))
        return answer

    def _begin_again(self) -> None:
        """Connect, and bring a new session to where the lost one was."""
        local = urlsplit(self.url).hostname in LOOPBACK
        where = self.url.rstrip("/").replace("http", "ws", 1) + "/ws"
        connecting = self._connect(where, max_size=None, **({"proxy": None} if local else {}))
        self._socket = self._connection.enter_context(connecting)
        for turn, (message, before) in enumerate(self._episode):
            now = self._exchange(message)
            if now[:-1] != before[:-1]:
                self.close()
                raise RuntimeError(
                    f"{self.url}: the session was lost, and to the same seed and turns the server now answers "
                    f"otherwise: in turn {turn} expected {before[:-1]!r:.200}, received {now[:-1]!r:.200}"
                )

    def _exchange(self, message: Fields) -> tuple[Any, ...]:
        """Text, reward, terminated, truncated and info that the server answers."""
        with suppress(self._faults.ConnectionClosed):  # a server that is full says so and hangs up before it is asked
            self._socket.send(json.dumps(message))
        answer = json.loads(self._socket.recv(timeout=self.time_limit))
        data = answer["data"]
        if answer["type"] != "error":
            info = dict(data.get("metadata") or {})
            done, cut = bool(data["done"]), bool(info.pop("truncated", False))
            text, reward = self.observation(data["observation"]), float(data["reward"] or 0)
            return text, reward, done and not cut, done and cut, info
        if data.get("code") == "CAPACITY_REACHED":
            raise ConnectionError(f"{data['message']}; each sub-environment is a session: serve more, or take fewer")
        wrong = data.get("errors", [])
        blamed = {str(place) for each in wrong for place in each["loc"][:1]}
        forbidden = any(each["type"] == "extra_forbidden" for each in wrong)
        if message["type"] == "step" and wrong and blamed <= set(message["data"]) and not forbidden:
            told = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in wrong)
            return f"error: {'; '.join(told)}", 0.0, False, False, {}
        raise RuntimeError(f"{self.url}: {data['message']} {wrong or ''}".rstrip())


def sessions(
    url: str | None,
    *,
    action: ToAction | str | None = None,
    observation: ToText | str | None = None,
    patience: float = 60.0,
    **options: Any,
) -> Callable[[], OpenEnvSession]:
    """What makes sessions of the server at ``url``, which has to be running.

    Args:
        url, patience: see `OpenEnvSession`.
        action: as there, or the name of the field that takes the text. None: its only field, if that is a text.
        observation: as there, or the name of the field that has the text. None: its only field, if that is a text.
        **options: settings and time_limit of `OpenEnvSession`.

    Raises:
        ImportError: OpenEnv is not installed.
        ValueError: no URL, or not one of an OpenEnv server; several fields, and neither a name nor a function.
        ConnectionError: no server was there for as long as ``patience``.
    """
    if url is None or urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"url: expected that of a running OpenEnv server, http://127.0.0.1:8000, received {url!r}")
    source = partial(OpenEnvSession, url, patience=patience, **options)
    load("websockets.sync.client", "openenv")  # before a server is waited for
    schemas = _patiently(partial(_schemas, url), url, patience)
    with at(f"OpenEnv server {url}"):
        if not callable(action):
            action = partial(dict.fromkeys, (_field("action", schemas["action"], action),))
        if not callable(observation):
            observation = itemgetter(_field("observation", schemas["observation"], observation))
    return partial(source, action=action, observation=observation)


def open_env_vec(
    num_envs: int = 1,
    *,
    url: str | None = None,
    action: ToAction | str | None = None,
    observation: ToText | str | None = None,
    settings: Mapping[str, Any] | None = None,
    patience: float = 60.0,
    time_limit: float = 60.0,
    **options: Any,
) -> TokenVectorBase | TokenVectorWrapper:
    """``gym.make_vec("textenvs/OpenEnv-v0", url=..., ...)``: dialogues with the environments of an OpenEnv server.

    Each of ``num_envs`` is a session. Arguments are those of `sessions`, of `OpenEnvSession` and, as ``options``, of
    `textenvs.factories.dialogue_vec`; so are errors.
    """
    refuse_own(options, "env")
    source = sessions(
        url, action=action, observation=observation, settings=settings, patience=patience, time_limit=time_limit
    )
    return dialogue_vec(num_envs, env=source, **options)


open_env = partial(scalar, open_env_vec)
"""``gym.make("textenvs/OpenEnv-v0", ...)``."""


def _patiently(call: Callable[[], Value], url: str, patience: float) -> Value:
    """What ``call`` returns; after an OSError it is called again, until ``patience`` seconds are over."""
    pause, until = PAUSES[0], None
    while True:
        try:
            return call()
        except OSError as fault:
            until = time.monotonic() + patience if until is None else until
            if time.monotonic() + pause > until:
                raise ConnectionError(
                    f"OpenEnv server {url}: gone or full, and asked again for {patience:g} seconds ({fault})"
                ) from fault
        time.sleep(pause)
        pause = min(2 * pause, PAUSES[1])


def _schemas(url: str) -> Fields:
    """JSON schemas of the server's Action and Observation."""
    opener = build_opener(*([ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []))
    try:
        with opener.open(f"{url.rstrip('/')}/schema", timeout=10) as answer:
            found: Fields = json.load(answer)
            return {name: found[name] for name in ("action", "observation")}
    except HTTPException as fault:
        raise ConnectionError(f"{type(fault).__name__}: {fault}") from fault
    except (HTTPError, ValueError, LookupError, TypeError) as fault:
        if isinstance(fault, HTTPError) and fault.code >= 500:
            raise
        raise ValueError(
            f"url: expected an OpenEnv server, with schemas at /schema, received {url!r}: {fault}"
        ) from fault


def _field(what: str, schema: Fields, given: str | None) -> str:
    """The field of text that is ``given``, or the only one."""
    fields = {name: each for name, each in schema["properties"].items() if name not in ("done", "reward", "metadata")}
    if given is not None:
        check_name(what, given, fields)
        return given
    name = next(iter(fields), "")
    kinds = fields.get(name, {}).get("anyOf", [fields.get(name, {})])
    if len(fields) != 1 or not any(kind.get("type") == "string" for kind in kinds):
        listed = ", ".join(f"{name} ({each.get('type', 'of several types')})" for name, each in fields.items())
        raise ValueError(
            f"{what}: expected the name of a field or a function, since {schema.get('title', 'it')} has not just one "
            f"field of text, received none; its fields: {listed or 'none'}"
        )
    return name
