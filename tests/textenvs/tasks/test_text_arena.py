"""TextArena's games: what is written, paid and drawn, errors; on a stand-in, and on the package if it is there."""

import random
import sys
from enum import Enum, auto
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from textenvs.tasks.text_arena import TextArenaGame, legal_moves


class Kind(Enum):
    PROMPT = auto()
    PLAYER_ACTION = auto()
    GAME_MESSAGE = auto()
    GAME_BOARD = auto()


class SinglePlayerState:
    current_player_id = 0


class TwoPlayerState:
    def __init__(self):
        self.current_player_id, self.observations = 0, {0: [], 1: []}

    def tell(self, text, kind, player=None):
        for each in (0, 1) if player is None else (player,):
            self.observations[each].append((-1, text, kind))


class Wrapper:
    def __init__(self, env):
        self.env = env

    def reset(self, num_players, seed):
        self.env.reset(num_players=num_players, seed=seed)

    def step(self, action):
        return self.env.step(action=action if "[" in action else f"[{action}]")

    def get_observation(self):
        raise AssertionError("repeats the history")

    def close(self):
        return self.env.close()


class Word:
    """A word from the generators of everybody, drawn anew after each wrong guess; three guesses."""

    def __init__(self, words=8):
        self.words, self.state = words, SinglePlayerState()

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


class Duel:
    """Players add 1 or 2 in turn; who reaches ``most`` wins, and who writes something else loses."""

    def __init__(self, most=5):
        self.most = most

    def reset(self, num_players, seed):
        assert num_players == 2, "The number of players has to be 2"
        random.seed(seed)
        self.state, self.sum, self.done = TwoPlayerState(), 0, False
        for player in (0, 1):
            self.state.tell(f"w{20 + player}", Kind.PROMPT, player)
        self.board()

    def board(self):
        self.state.tell(f"w{self.sum} available moves: [w1], '[w2]'", Kind.GAME_BOARD)

    def get_observation(self):
        player = self.state.current_player_id
        news, self.state.observations[player] = self.state.observations[player], []
        return player, news

    def step(self, action):
        player = self.state.current_player_id
        self.state.tell(action, Kind.PLAYER_ACTION)
        legal = action in ("[w1]", "[w2]")
        self.sum += int(action[2]) if legal else 0
        self.done = not legal or self.sum >= self.most
        winner = player if legal else 1 - player
        self.rewards = {winner: 1, 1 - winner: -1}
        self.board()
        if not self.done:
            self.state.current_player_id = 1 - player
        return self.done, {}

    def close(self):
        return self.rewards, {player: {"role": f"Player {player}"} for player in (0, 1)}


@pytest.fixture
def package(monkeypatch):
    """A module that has what is used of TextArena."""
    arena = ModuleType("textarena")
    arena.ObservationType, arena.Wrapper, arena.SinglePlayerState = Kind, Wrapper, SinglePlayerState
    arena.TwoPlayerState = TwoPlayerState
    games = {"Word-v0": {}, "Word-v0-raw": {}, "Word-v0-hard": {"words": 30}, "Duel-v0": {}}
    arena.envs = SimpleNamespace(registration=SimpleNamespace(ENV_REGISTRY=games))
    kinds = {"Word": Word, "Duel": Duel}
    arena.make = lambda name, **settings: Wrapper(kinds[name[:4]](**{**games[name], **settings}))
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


def twos(turns):
    return "w2"


def test_the_opponent_moves_until_it_is_the_players_turn_and_each_reads_its_own_news(package):
    seen = []

    def opponent(turns):
        seen.append([(turn["role"], turn["content"]) for turn in turns])
        return "w1"

    board = "w{} available moves: [w1], '[w2]'".format
    game = TextArenaGame("Duel-v0", opponent=opponent, player=1)
    assert game.reset(seed=0) == (f"w21\n{board(1)}", {})  # of the boards before and after the opponent's move
    assert game.step("w2") == (board(4), 0.0, False, False, {})
    assert game.step("w1") == (board(5), 1.0, True, False, {"role": "Player 1"})
    first = ("user", f"w20\n{board(0)}")
    assert seen == [[first], [first, ("assistant", "w1"), ("user", board(3))]]


def test_a_lost_game_is_paid_and_written_to_the_player(package):
    game = TextArenaGame("Duel-v0", {"most": 4}, opponent=twos, player=0)
    game.reset(seed=0)
    board = "w4 available moves: [w1], '[w2]'"
    assert game.step("w2") == (board, -1.0, True, False, {"role": "Player 0"})
    game.reset(seed=0)
    assert game.step("w3")[1:3] == (-1.0, True)


def test_sides_and_random_legal_moves_follow_the_seed(package):
    def played(game, seed, between=lambda: None):
        seen, over = [game.reset(seed=seed)], False
        while not over:
            between()
            seen.append(game.step("w1"))
            over = seen[-1][2]
        return seen

    games = [TextArenaGame("Duel-v0", {"most": 20}, opponent="random") for _ in range(2)]
    before = global_state()
    runs = [played(games[0], seed) for seed in range(12)]
    assert global_state() == before
    assert [played(games[1], seed, between=disturb) for seed in range(12)] == runs
    assert {run[0][0][:3] for run in runs} == {"w20", "w21"}
    assert len({tuple(step[0] for step in run) for run in runs}) > 6


@pytest.mark.parametrize(
    "text, moves",
    [("Valid moves: [Up]\nboard\nAvailable Moves: '[1]', '[2]'\n[3]", ["[1]", "[2]"]), ("moves: [1]", []),
     ("Legal moves now: [a b], [c]", ["[a b]", "[c]"]), ("valid moves: [1], [2] X | 3 valid moves: '[3]' 4", ["[3]"]),
     ("Valid moves: [1]\nAvailable moves: ", [])],
)  # fmt: skip
def test_legal_moves_are_the_last_that_are_listed(text, moves):
    assert legal_moves(text) == moves


@pytest.mark.parametrize(
    "options, message",
    [({"opponent": "randon"}, "opponent: received 'randon'; did you mean 'random'"),
     ({"opponent": twos, "player": 2}, "player: expected 0, 1 or None.*received 2"),
     ({"player": 0}, "player: .*None without an opponent, received 0"),
     ({"task": "Word-v0", "opponent": twos}, "task Word-v0: expected a game for two players, received Word"),
     ({"opponent": lambda turns: None, "player": 1}, "opponent: expected the text of its turn, received None"),
     ({"opponent": lambda turns: "w9", "player": 1}, "opponent: expected moves up to the player's turn")],
)  # fmt: skip
def test_wrong_opponents_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**{"task": "Duel-v0"} | options)


def test_a_game_without_listed_moves_has_no_random_opponent(make, monkeypatch):
    monkeypatch.setattr(Duel, "board", lambda self: self.state.tell("w3", Kind.GAME_BOARD))
    with pytest.raises(ValueError, match="task Duel-v0: opponent: expected a game that lists legal moves, received"):
        make(task="Duel-v0", opponent="random", player=1)


@pytest.mark.parametrize(
    "options, message",
    [({"task": None}, "task: expected the id"), ({"task": "Wrod-v0"}, "^task: received .*did you mean 'Word-v0'"),
     ({"task": "Word-v0-raw"}, "did you mean 'Word-v0-hard' or 'Word-v0'"),
     ({"task": "Duel-v0"}, "task Duel-v0: AssertionError: The number of players has to be 2"),
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


@pytest.mark.parametrize("name", ["Crusade-v0", "SimpleTak-v0", "TicTacToe-v0", "WildTicTacToe-v0"])
@pytest.mark.parametrize("player", [0, 1])
def test_the_packages_games_for_two_are_played_to_their_end(name, player):
    pytest.importorskip("textarena")
    draw, game, rewards = random.Random(0), TextArenaGame(name, opponent="random", player=player), []
    for seed in range(8):
        news, over = game.reset(seed=seed)[0], False
        while not over:
            news, reward, over, _, info = game.step(draw.choice(legal_moves(news)))
            assert over or reward == 0
        rewards.append(reward)
        assert info["reason"]
        assert not info["invalid_move"]
    assert {-1.0, 1.0} <= set(rewards) <= {-1.0, 0.0, 1.0}
