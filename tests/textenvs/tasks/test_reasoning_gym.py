"""reasoning-gym's tasks: rows, held-out seeds, verdicts, errors; on a stand-in, and on the package if it is there."""

import dataclasses
import json
import random
import sys
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from textenvs.tasks import reasoning_gym as tasks
from textenvs.tokens.rows import pad_rows


@dataclasses.dataclass
class Settings:
    words: int = 8
    length: int = 4
    seed: int | None = None
    size: int = 500


class Echo:
    """Asked for is the last word; draws from the generators of everybody, as some of the real data sets do."""

    def __init__(self, config):
        assert config.words >= 1, "words must be positive"
        self.config = config

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        own = random.Random(self.config.seed + index)
        shown = [f"w{own.randrange(self.config.words)}" for _ in range(self.config.length)]
        luck = random.random() + np.random.random()  # noqa: NPY002
        return {"question": " ".join(shown), "answer": shown[-1], "metadata": {"luck": luck}}

    def score_answer(self, answer, entry):
        np.random.seed(0)  # noqa: NPY002
        if answer == "w37":
            raise OverflowError("not expected")
        return 0.01 if answer is None else float(answer == entry["answer"])


class Curriculum:
    def set_global_level(self, level):
        self.level = level

    def generate_configuration(self):
        return Settings(words=2 + self.level)


@pytest.fixture
def package(monkeypatch):
    """A module that has what is used of reasoning-gym."""
    factory = ModuleType("reasoning_gym.factory")
    factory.DATASETS = dict.fromkeys(("last_word", "bare", "puzzle24", "ransom_note"), (Echo, Settings))
    factory.has_curriculum = lambda name: name == "last_word"
    factory.create_curriculum = lambda name: Curriculum()
    monkeypatch.setitem(sys.modules, "reasoning_gym", ModuleType("reasoning_gym"))
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)


@pytest.fixture
def make(package, tokenizer):
    def build(num_envs=4, **options):
        options = {"task": "last_word", "size": 40, "tokenizer": tokenizer, "max_new_tokens": 3} | options
        return gym.make_vec("textenvs/ReasoningGym-v0", num_envs=num_envs, **options)

    return build


def questions(found):
    return [row["_entry"]["question"] for row in found]


def test_a_text_is_paid_the_verdict_on_its_answer(make, tokenizer):
    envs = make()
    envs.reset(seed=0)
    prompts = envs.draw_prompts()
    columns = envs.unwrapped.drawn_columns
    right = [tokenizer(row["answer"], add_special_tokens=False)["input_ids"] for row in columns]
    texts = [[*right[0], 0], [5, *right[1], 0], [0], [39, 0]]  # w37 is what the verdict fails on
    rows = envs.play(prompts, pad_rows(texts), columns=columns)
    np.testing.assert_allclose(rows.scores, [1.0, 0.0, 0.0, 0.0])
    assert (rows.rewards.sum(1) == rows.scores).all()


def test_columns_reach_info_and_ready_rewards_may_be_added(make):
    from textenvs import rewards

    envs = make(scorer=[rewards.exact(), rewards.length(beyond=1)], weights=[1.0, 0.5, -0.25], chat=False)
    _, info = envs.reset(seed=0)
    assert all(answer.startswith("w") for answer in info["answer"])
    assert "_entry" not in info
    prompts, columns = envs.draw_prompts(), envs.unwrapped.drawn_columns
    rows = envs.play(prompts, [[int(row["answer"][1:]) + 2, 0] for row in columns], columns=columns)
    np.testing.assert_allclose(rows.scores, 1.0 + 0.5 - 0.25)
    assert list(rows.member_scores) == ["last_word", "exact", "length"]


@pytest.mark.parametrize(
    "answer, text, found",
    [("text", " w3\n", "w3"), ("tags", "<answer> w1 </answer> or <answer>\nw3 </answer>.", "w3"), ("tags", "w3", None),
     ("tags", "<answer> w1 <answer>w3</answer>", "w3"), ("line", "answer: w1\nFinal Answer : w3 \nbye", "w3"),
     ("line", "w3", None)],
)  # fmt: skip
def test_an_answer_is_read_where_it_is_looked_for(package, answer, text, found):
    assert tasks.READERS[answer](text) == found
    with pytest.raises(ValueError, match="_entry: expected an item"):
        tasks.scorer("last_word")(["w1"], _entry=["w1"])
    [score] = tasks.scorer("last_word", answer=answer)([text], _entry=[{"answer": "w3"}])
    assert score == (1.0 if found else 0.01)
    [score] = tasks.scorer("last_word", answer=answer, partial_credit=False)([text], _entry=[{"answer": "w3"}])
    assert score == (1.0 if found else 0.0)


def test_held_out_questions_are_never_among_those_to_train_on(package):
    train = tasks.rows("last_word", size=400, seed=3)
    heldout = tasks.rows("last_word", size=400, seed=3, held_out=50)
    assert len(train) == 400
    assert len(set(questions(heldout))) == 50
    assert not set(questions(train)) & set(questions(heldout))
    # what a neighboring seed would have given: the same questions, one place on
    assert questions(tasks.rows("last_word", size=400, seed=4))[:-1] == questions(train)[1:]
    with pytest.raises(ValueError, match="held_out: expected at least 50 of 200"):
        tasks.rows("last_word", size=400, settings={"words": 2}, held_out=50)


def test_neither_questions_nor_verdicts_touch_the_global_generators(package):
    random.seed(1), np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = tasks.rows("last_word", size=5)
    tasks.scorer("last_word")(["w1"], _entry=[found[0]["_entry"]])
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    random.seed(2), np.random.seed(2)  # noqa: NPY002
    assert tasks.rows("last_word", size=5) == found


def test_levels_settings_and_the_prompts_form(package):
    assert {word for text in questions(tasks.rows("last_word", level=0)) for word in text.split()} == {"w0", "w1"}
    both = tasks.rows("last_word", level=0, settings={"length": 1}, prompt="Q: {question} {x}\nA:", size=9)
    assert {row["prompt"] for row in both} == {"Q: w0 {x}\nA:", "Q: w1 {x}\nA:"}
    [chat] = tasks.rows("last_word", chat=True, size=1)
    assert chat["messages"] == [{"role": "user", "content": chat["_entry"]["question"]}]


@pytest.mark.parametrize(
    "options, message",
    [({"task": None}, "task: expected the name"), ({"task": "last_words"}, "did you mean 'last_word'"),
     ({"task": "?"}, "expected one of bare, last_word"), ({"settings": {"lenght": 2}}, "did you mean 'length'"),
     ({"settings": {"words": 0}}, "task last_word: AssertionError: words must be positive"),
     ({"settings": {"seed": 1}}, "settings of last_word: received 'seed'"),
     ({"task": "bare", "level": 1}, "expected no level"), ({"size": 0}, "size: .* 1 or more, received 0"),
     ({"seed": -1}, "seed: .* 0 or more, received -1"), ({"seed": 2**30}, r"seed: expected a number below 2\*\*30"),
     ({"held_out": "3"}, "held_out: expected a whole number of 0 or more, received '3'"),
     ({"level": 1.5}, "level: expected a whole number of 0 or more, received 1.5"),
     ({"settings": [1]}, r"settings: expected a mapping of names to values, received \[1\]"),
     ({"partial_credit": "no"}, "partial_credit: expected True or False, received 'no'"),
     ({"rows": ["w1"]}, "rows: expected none, since the task has its own"),
     ({"answer": "tag"}, "did you mean 'tags'"), ({"prompt": "hello"}, "prompt: expected a text with '{question}'"),
     ({"task": "puzzle24"}, "expected allow_eval=True"), ({"gruop_size": 2}, "did you mean 'group_size'")],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_command_that_installs_the_extra_is_named(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ImportError, match=r"pip install 'textenvs\[reasoning-gym\]'"):
        gym.make("textenvs/ReasoningGym-v0", task="chain_sum", tokenizer=tokenizer)


def test_the_scalar_environment_passes_gymnasiums_checker(package, tokenizer):
    env = gym.make("textenvs/ReasoningGym-v0", task="last_word", size=5, tokenizer=tokenizer, max_new_tokens=2)
    check_env(env.unwrapped, skip_render_check=True)


def test_a_task_whose_questions_differ_between_processes_warns(package, monkeypatch, recwarn):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.warns(UserWarning, match="ransom_note: other processes make other questions"):
        tasks.rows("ransom_note", size=2)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    recwarn.clear()
    assert len(tasks.rows("ransom_note", size=2)) == 2
    assert not recwarn.list


def real():
    return pytest.importorskip("reasoning_gym.factory")


def test_every_offline_task_of_the_package_gives_rows_and_verdicts():
    names = sorted(set(real().DATASETS) - {"composite"})
    assert len(names) == 105
    for name in names:
        found = tasks.rows(name, size=2, seed=5)
        again = tasks.rows(name, size=2, seed=5)
        assert found == again, name
        judge = tasks.scorer(name, allow_eval=True)
        answers = [row["answer"] or "" for row in found]
        scores = judge(answers, _entry=[row["_entry"] for row in found])
        assert all(score == 1.0 for score, row in zip(scores, found, strict=True) if row["answer"] is not None), name
        wrong = judge(["?"] * 2, _entry=[row["_entry"] for row in found])
        assert name == "game_of_life_halting" or all(0 <= score < 1 for score in wrong), name  # that one pays any text


def test_the_tasks_that_run_answers_are_those_whose_verdict_does(monkeypatch):
    import builtins

    real()
    from sympy.parsing import sympy_parser

    ran, evaluate, parse = [], eval, sympy_parser.eval_expr
    monkeypatch.setattr(builtins, "eval", lambda text, *more: (ran.append(text), evaluate(text, *more))[1])
    monkeypatch.setattr(sympy_parser, "eval_expr", lambda *given: (ran.append("probe77"), parse(*given))[1])
    found = set()
    for name in sorted(set(real().DATASETS) - {"composite"}):
        [row] = tasks.rows(name, size=1, seed=3)
        for text in ("probe77", "[probe77]", "probe77 + 1"):
            ran.clear()
            tasks.scorer(name, allow_eval=True)([text], _entry=[row["_entry"]])
            found |= {name} if any("probe77" in str(each) for each in ran) else set()
    assert found == tasks.RUNS_ANSWERS


def test_rows_of_the_package_may_be_written_to_a_file():
    real()
    for name in ("chain_sum", "leg_counting", "word_sorting"):
        found = tasks.rows(name, size=3, level=1)
        entries = [json.loads(json.dumps(row))["_entry"] for row in found]
        assert tasks.scorer(name, level=1)([row["answer"] for row in found], _entry=entries) == [1.0] * 3
