"""TextArena's games: what is written, paid and drawn, errors; on a stand-in, and on the package if it is there."""

import random
import sys
from enum import Enum, auto
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from textenvs.tasks.text_arena import TextArenaGame


class Kind(Enum):
    PROMPT = auto()
    PLAYER_ACTION = auto()
    GAME_MESSAGE = auto()


class SinglePlayerState:
    pass


class Wrapper:
    def __init__(self, env):
        self.env = env

    def reset(self, num_players, seed):
        self.env.reset(num_players=num_players, seed=seed)

    def step(self, action):
        return self.env.step(action=f"[{action}]")

    def get_observation(self):
        raise AssertionError("repeats the history")

    def close(self):
        return self.env.close()


class Word:
    """A word from the generators of everybody, drawn anew after each wrong guess; three guesses."""

    def __init__(self, words=8, players=1):
        self.words, self.state = words, SinglePlayerState() if players == 1 else object()

    def reset(self, num_players, seed):
        random.seed(seed)
        self.turn, self.news = 0, []
        self.draw()
        self.news.append((-1, "w1 w2", Kind.PROMPT))

    def draw(self):
        self.word = f"w{(random.randrange(self.words) + int(np.random.randint(self.words))) % self.words}"  # noqa: NPY002

    def get_observation(self):
        news, self.news = self.news, []
        return 0, news

    def step(self, action):
        print("noise")
        self.turn += 1
        self.news.append((0, action, Kind.PLAYER_ACTION))
        self.right = action == f"[{self.word}]"
        self.news.append((-1, f"w9 {self.word}", Kind.GAME_MESSAGE))
        self.draw()
        return self.right or self.turn == 3, {}

    def close(self):
        if self.turn == 3:  # as some games of the package
            return {0: "Bad move."}, {0: {"reason": "Invalid Move: 0.25"}}
        return {0: 1 if self.right else -0.5}, {0: {"turn_count": self.turn}}


@pytest.fixture
def package(monkeypatch):
    """A module that has what is used of TextArena."""
    arena = ModuleType("textarena")
    arena.ObservationType, arena.Wrapper, arena.SinglePlayerState = Kind, Wrapper, SinglePlayerState
    games = {"Word-v0": {}, "Word-v0-raw": {}, "Word-v0-hard": {"words": 30}, "Duel-v0": {"players": 2}}
    arena.envs = SimpleNamespace(registration=SimpleNamespace(ENV_REGISTRY=games))
    arena.make = lambda name, **settings: Wrapper(Word(**{**games[name], **settings}))
    monkeypatch.setitem(sys.modules, "textarena", arena)


@pytest.fixture
def make(package, tokenizer):
    def build(num_envs=1, **options):
        options = {"task": "Word-v0", "tokenizer": tokenizer, "max_turn_tokens": 2, "max_tokens": 32} | options
        return gym.make_vec("textenvs/TextArena-v0", num_envs=num_envs, **options)

    return build


def global_state():
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def play(game, seed, turns=3, action="w1", between=lambda: None):
    """What a game writes and pays, with something else going on between its turns."""
    seen = [game.reset(seed=seed)]
    for _ in range(turns):
        between()
        seen.append(game.step(action))
        if seen[-1][2]:
            break
    return seen


def disturb():
    random.seed(99), np.random.seed(99)  # noqa: NPY002


def test_a_game_follows_its_seed_alone_and_leaves_the_global_generators_as_they_were(package, capsys):
    games = [TextArenaGame("Word-v0") for _ in range(2)]
    disturb()
    before = global_state()
    seen = play(games[0], 3, action="w99")
    assert global_state() == before
    assert play(games[1], 3, action="w99", between=disturb) == seen
    # two games turn by turn are the same games
    assert play(games[1], 3, action="w99", between=lambda: play(games[0], 4, action="w99")) == seen
    assert play(games[1], 4, action="w99") != seen
    assert capsys.readouterr().out == ""


def test_the_players_words_are_not_written_again_and_the_end_is_paid(package):
    game = TextArenaGame("Word-v0", {"words": 1})
    assert game.reset(seed=0) == ("w1 w2", {})
    assert game.step("w5") == ("w9 w0", 0.0, False, False, {})
    assert game.step("w0") == ("w9 w0", 1.0, True, False, {"turn_count": 2})


def test_a_reward_and_a_reason_in_the_place_of_one_another_are_told_apart(package):
    assert play(TextArenaGame("Word-v0"), 3, action="w99")[-1][1:] == (0.25, True, False, {"reason": "Bad move."})


def test_a_game_is_a_dialogue(make, tokenizer):
    envs = make(settings={"words": 1}, group_size=1)
    observations, _ = envs.reset(seed=0)
    assert tokenizer.decode(observations[0][observations[0] >= 0], skip_special_tokens=True) == "w1 w2"
    for token in (2, 0):  # w0, and the end of the turn
        _, rewards, terminated, _, infos = envs.step(np.array([token]))
    assert (rewards[0], terminated[0]) == (1.0, True)
    assert infos["final_info"]["env_info"][0] == {"turn_count": 1}


@pytest.mark.parametrize(
    "options, message",
    [({"task": None}, "task: expected the id"), ({"task": "Wrod-v0"}, "^task: received .*did you mean 'Word-v0'"),
     ({"task": "Word-v0-raw"}, "did you mean 'Word-v0-hard' or 'Word-v0'"),
     ({"task": "Duel-v0"}, "task Duel-v0: expected a game for one player, received Word"),
     ({"settings": {"wrods": 2}}, "task Word-v0: TypeError: .*wrods"),
     ({"gruop_size": 2}, "did you mean 'group_size'")],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_command_that_installs_the_extra_is_named(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ImportError, match=r"pip install 'textenvs\[textarena\]'"):
        gym.make("textenvs/TextArena-v0", task="GuessTheNumber-v0", tokenizer=tokenizer)


GAMES = [
    "2048-v0-easy", "Bandit-v0", "Blackjack-v0", "Countdown-v0", "Cryptarithm-v0", "FifteenPuzzle-v0",
    "FrozenLake-v0-random", "GuessTheNumber-v0", "LightsOut-v0", "LogicPuzzle-v0", "Mastermind-v0",
    "Minesweeper-v0-small", "PegJump-v0", "Secretary-v0", "Set-v0", "Slitherlink-v0", "Sudoku-v0-easy",
    "ThreeCardMonte-v0", "TowerOfHanoi-v0",
]  # fmt: skip


@pytest.mark.parametrize("name", GAMES)
def test_games_of_the_package_follow_their_seeds(name):
    pytest.importorskip("textarena")
    disturb()
    before = global_state()
    seen = play(TextArenaGame(name), 3, turns=6, action="[1]")
    assert global_state() == before
    assert play(TextArenaGame(name), 3, turns=6, action="[1]", between=disturb) == seen
    assert len(seen) > 1
    assert all(isinstance(text, str) and text for text in [seen[0][0], *(step[0] for step in seen[1:-1])])


def test_the_packages_guessing_game_is_won_by_halving():
    pytest.importorskip("textarena")
    for seed in range(20):
        game, least, most = TextArenaGame("GuessTheNumber-v0"), 1, 20
        rules, _ = game.reset(seed=seed)
        assert "between 1 and 20" in rules
        over = False
        while not over:
            guess = (least + most) // 2
            text, reward, over, _, info = game.step(str(guess))  # the package adds the brackets
            assert rules not in text
            least, most = (guess + 1, most) if "higher" in text else (least, guess - 1)
        assert reward == 1.0
        assert 1 <= info["turn_count"] <= 5


def test_the_packages_game_for_two_is_refused(tokenizer):
    pytest.importorskip("textarena")
    with pytest.raises(ValueError, match="task TicTacToe-v0: "):
        gym.make("textenvs/TextArena-v0", task="TicTacToe-v0", tokenizer=tokenizer)
