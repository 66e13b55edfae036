"""TextWorld's games: what is written, paid and kept, errors; on a stand-in, and on the package if it is there."""

import gc
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from textenvs.tasks.text_world import TextWorldGame, generate


class State(dict):
    __getattr__ = dict.__getitem__


class Chest:
    """Points for "w1", then for "w2", which wins; -1 for "w3", which loses."""

    def __init__(self, file, request_infos):
        self.wanted, self.said = request_infos, []
        self.load(file)

    def load(self, file):
        self.name = Path(file).stem

    def _found(self, feedback):
        facts = [f"has {self.score}"]
        ways = [["w1", "w2"], ["w2"], None][min(self.moves, 2)]
        self.state = State(
            feedback=feedback, score=self.score or None, max_score=3, won=self.moves == 2, lost=self.score < 0,
            admissible_commands=["w1", "w2"], policy_commands=ways, facts=facts, objective="Open w5.",
            description="\n\n w6 \n\n\n w7\n",
        )  # fmt: skip
        return self.state

    def reset(self):
        self.score = self.moves = 0
        return self._found("the banner")

    def step(self, command):
        self.said.append(command)
        if command == ("w1", "w2", "")[self.moves]:
            self.moves += 1
            self.score += self.moves
        self.score -= command == "w3"
        state = self._found(f"\n\n{command} {self.name}\n\n\n Would you like to RESTART, QUIT or UNDO?")
        return state, state.score, state.won or state.lost

    def close(self):
        self.said.append("closed")


@pytest.fixture
def package(monkeypatch):
    """Modules that have what is used of TextWorld; returns the games that were compiled, with what was drawn."""
    world, challenges, made = ModuleType("textworld"), ModuleType("textworld.challenges"), []

    class Options:
        def __init__(self):
            self.grammar = SimpleNamespace(__slots__=("theme", "include_adj"))

    def compile_game(game, options):
        if game.get("level") == 99:
            raise AssertionError("too many rooms")
        made.append((game, options.seeds, random.random(), np.random.random()))  # noqa: NPY002
        for ending in (".json", ".z8"):
            Path(options.path).with_suffix(ending).write_text(str(game))
        return options.path

    def flags(parser):
        parser.add_argument("--level", type=int, required=True)
        parser.add_argument("--goal", choices=["brief", "none"], default="brief")

    world.__version__, world.GameOptions = "1", Options
    world.EnvInfos, world.start = SimpleNamespace, lambda file, request_infos: Chest(file, request_infos)
    world.generator = SimpleNamespace(make_game=lambda options: dict(vars(options)), compile_game=compile_game)
    challenges.CHALLENGES = {"tw-chest": ("a chest", lambda settings, options: settings, flags)}
    monkeypatch.setitem(sys.modules, "textworld", world)
    monkeypatch.setitem(sys.modules, "textworld.challenges", challenges)
    return made


def chest(**options):
    return generate("tw-chest", **{"settings": {"level": 1}} | options)


def test_rewards_are_differences_of_the_score(package):
    game = TextWorldGame(chest())
    text, info = game.reset(seed=0)
    assert text == "Open w5.\nw6\nw7"
    assert (info["score"], info["policy_commands"]) == (0, ["w1", "w2"])
    assert game.step("w9")[1:3] == (0.0, False)
    assert game.step("w1")[1:3] == (1.0, False)
    assert game.step("w1")[1:3] == (0.0, False)  # the score is still 1
    news, reward, terminated, truncated, info = game.step("w2")
    assert (reward, terminated, truncated) == (2.0, True, False)  # 3 in all
    assert "RESTART" not in news
    assert news == news.strip()
    assert (info["score"], info["won"], info["policy_commands"]) == (3, True, [])
    game.reset(seed=0)
    assert game.step("w3")[1:3] == (-1.0, True)


def test_a_turn_is_one_command_of_the_game(package):
    game = TextWorldGame(chest())
    game.reset(seed=0)
    for text in ("w8  w9\nw1", "w8 w9. w1", "w8 w9 then w1", " w8 w9 \u65e5"):
        game.step(text)
    assert game._env.said == ["w8 w9"] * 4
    for text in ("", " ", "quit", "Save", "please restart", "undo", "tw-print state", "\u65e5"):
        assert game.step(text)[:3] == ("That is no command.", 0.0, False)
    assert game._env.said == ["w8 w9"] * 4
    env = game._env
    game.close()
    assert env.said[-1] == "closed"


def test_the_seed_draws_one_of_the_games_whose_facts_are_the_state(package):
    files = chest(games=4)
    games = [TextWorldGame(files) for _ in range(2)]

    def played(game, seed):
        state = game.reset(seed=seed)[1]["state"]
        return game.step("w1")[0], state, game.step("w2")[4]["state"]

    found = [played(games[0], seed) for seed in range(20)]
    assert [played(games[1], seed) for seed in reversed(range(20))] == found[::-1]
    assert len({name for name, _, _ in found}) == 4
    assert all(before != after for _, before, after in found)


def test_games_are_made_once_from_their_seeds_and_leave_the_global_generators_alone(package, tmp_path):
    random.seed(5), np.random.seed(5)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    files = chest(games=2, seed=3, folder=tmp_path / "kept", grammar={"theme": "house"})
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert [seed for _, seed, _, _ in package] == [3, 4]
    assert [file.endswith(f"-{seed}.z8") for file, seed in zip(files, (3, 4), strict=True)] == [True, True]
    chest(games=3, seed=3, folder=tmp_path / "kept", grammar={"theme": "house"})
    assert [seed for _, seed, _, _ in package] == [3, 4, 5]
    chest(seed=3, folder=tmp_path / "kept")  # another grammar is another game
    chest(seed=3, folder=tmp_path / "kept", settings={"level": 2})
    assert [(game["level"], seed) for game, seed, _, _ in package[3:]] == [(1, 3), (2, 3)]
    assert package[0][2:] == package[3][2:] != package[1][2:]  # what was drawn follows the game's seed
    assert sorted(path.suffix for path in (tmp_path / "kept").iterdir()) == [".json"] * 5 + [".z8"] * 5


def test_a_temporary_folder_is_removed_with_the_last_environment(package, tokenizer):
    envs = gym.make_vec(
        "textenvs/TextWorld-v0", num_envs=2, task="tw-chest", settings={"level": 1}, tokenizer=tokenizer, max_tokens=40
    )
    folder = Path(envs.unwrapped._make_envs.args[0].args[0][0]).parent
    envs.reset(seed=0)
    assert folder.is_dir()
    envs.close()
    assert folder.is_dir()  # it may be reset again
    del envs
    gc.collect()
    assert not folder.exists()


def test_a_game_is_a_dialogue(package, tokenizer):
    options = {"settings": {"level": 1}, "tokenizer": tokenizer, "max_turn_tokens": 2, "max_tokens": 40}
    envs = gym.make_vec("textenvs/TextWorld-v0", num_envs=1, task="tw-chest", **options)
    observations, _ = envs.reset(seed=0)
    assert tokenizer.decode(observations[0][observations[0] >= 0], skip_special_tokens=True).endswith("w6 w7")
    rewards = []
    for token in (3, 0, 4, 0):  # w1, the end of a turn, w2
        _, reward, terminated, _, infos = envs.step(np.array([token]))
        rewards.append(float(reward[0]))
    assert rewards == [0.0, 1.0, 0.0, 2.0]
    assert terminated[0]
    assert infos["final_info"]["env_info"][0]["won"]


@pytest.mark.parametrize(
    "options, message",
    [({"task": None}, "task: expected 'custom' or the name of a challenge"),
     ({"task": "tw-chess"}, "task: received 'tw-chess'; did you mean 'tw-chest'"),
     ({"settings": {"levle": 1}}, "settings of tw-chest: received 'levle'; did you mean 'level'"),
     ({"settings": {}}, "settings of tw-chest: expected level, received {}"),
     ({"settings": {"level": 1, "goal": "breif"}}, "tw-chest: goal: received 'breif'; did you mean 'brief'"),
     ({"settings": {"level": 99}}, "task tw-chest, seed 0: AssertionError: too many rooms"),
     ({"task": "custom", "settings": {"nb_room": 2}}, "settings of custom: .*did you mean 'nb_rooms'"),
     ({"grammar": {"them": "house"}}, "grammar: received 'them'; did you mean 'theme'"),
     ({"games": 0}, "games: expected a whole number of 1 or more"), ({"seed": -1}, "seed: .*received -1"),
     ({"settings": ["x"]}, "settings: expected a mapping of names to values"), ({"env": "x"}, "env: expected none"),
     ({"gruop_size": 2}, "did you mean 'group_size'")],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(package, tokenizer, options, message):
    options = {"task": "tw-chest", "settings": {"level": 1}, "tokenizer": tokenizer} | options
    with pytest.raises(ValueError, match=message):
        gym.make("textenvs/TextWorld-v0", **options)


def test_missing_files_are_named(package, tmp_path):
    with pytest.raises(ValueError, match=r"files: .*received none"):
        TextWorldGame([])
    with pytest.raises(ValueError, match=r"files: .*gone\.z8"):
        TextWorldGame([str(tmp_path / "gone.z8")])


def test_the_command_that_installs_the_extra_is_named(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(ImportError, match=r"pip install 'textenvs\[textworld\]'"):
        gym.make("textenvs/TextWorld-v0", task="custom", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def coins(tmp_path_factory):
    pytest.importorskip("textworld")
    return generate("tw-coin_collector", settings={"level": 3}, games=2, folder=tmp_path_factory.mktemp("coins"))


def test_the_packages_winning_policy_gets_the_highest_score(coins):
    game = TextWorldGame(coins)
    for seed in range(4):
        text, info = game.reset(seed=seed)
        assert "-= " in text
        assert "$" not in text  # of the banner
        total, over = 0.0, False
        while not over:
            command = info["policy_commands"][0]
            assert command in info["admissible_commands"]
            _, reward, over, truncated, info = game.step(command)
            total += reward
        assert (total, info["won"], truncated) == (info["max_score"], True, False)


def test_the_packages_games_follow_their_seeds_side_by_side(coins, tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = generate("tw-coin_collector", settings={"level": 3}, games=2, folder=tmp_path)
    games = [TextWorldGame(coins), TextWorldGame(again)]

    def played(game, seed):
        commands = ("look", "go north", "go south", "go east", "go west", "save", "take coin", "x" * 300, "inventory")
        return [game.reset(seed=seed), *(game.step(command) for command in commands)]

    one, other = [played(games[0], seed) for seed in range(4)], [played(games[1], seed) for seed in reversed(range(4))]
    assert one == other[::-1]
    assert one[0][0] != one[1][0] or one[1][0] != one[2][0]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_the_packages_custom_games_are_made_and_won(tmp_path):
    pytest.importorskip("textworld")
    settings = {"nb_rooms": 2, "nb_objects": 3, "quest_length": 2}
    game = TextWorldGame(generate("custom", settings=settings, grammar={"include_adj": True}, folder=tmp_path))
    _, info = game.reset(seed=0)
    total = 0.0
    while info["policy_commands"]:
        _, reward, over, _, info = game.step(info["policy_commands"][0])
        total += reward
    assert over
    assert total == info["max_score"] > 0


def test_the_packages_refusals_name_the_task(tmp_path):
    pytest.importorskip("textworld")
    with pytest.raises(ValueError, match=r"task tw-coin_collector, seed 0: .*within \[1-300\]"):
        generate("tw-coin_collector", settings={"level": 301}, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="did you mean 'tw-cooking'"):
        generate("tw-cookin")
