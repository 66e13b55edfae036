"""Tools: calls in every format, what goes wrong told to the model, rewards with columns, TRL's shape, the bridge."""

import copy
import functools
import importlib.util
import itertools
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from textenvs import PAD, rewards
from textenvs.dialogues.bridge import Bridge
from textenvs.dialogues.sub_environments import DialogueError
from textenvs.dialogues.tool_calls import Call, parse_calls
from textenvs.dialogues.tools import ToolEnv


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first number.
        b: the second number.
    """
    return a + b


def search(query: str, site: str | None = None) -> dict:
    """Search for pages.

    Args:
        query: what to look for.
        site: where.
    """
    return {"found": [query, site]}


def broken(why: str) -> str:
    """Raise.

    Args:
        why: a reason.
    """
    raise KeyError(why)


def slow() -> str:
    """Never end."""
    time.sleep(30)
    return "late"


async def later(a: int) -> int:
    """Wait.

    Args:
        a: a number.
    """
    return a


TOOLS = [add, search, broken, slow, later]
ROWS = [{"prompt": f"{i} plus {i}", "answer": str(2 * i)} for i in range(50)]


def tool_env(**options):
    return ToolEnv(**{"tools": TOOLS, "rows": ROWS} | options)


HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        ("hermes", f"I add. {HERMES}", [Call("add", {"a": 1, "b": 2})]),
        ("hermes", HERMES.removesuffix("</tool_call>"), [Call("add", {"a": 1, "b": 2})]),
        ("hermes", HERMES + "\n" + HERMES.replace("add", "sub"), [Call(n, {"a": 1, "b": 2}) for n in ("add", "sub")]),
        ("json", '{"name": "add", "parameters": {"a": 1}}', [Call("add", {"a": 1})]),
        ("json", '<|python_tag|>{"type": "function", "function": {"name": "f", "parameters": {}}}', [Call("f", {})]),
        ("json", '{"name": "f", "arguments": {}}; {"name": "g", "arguments": {}}', [Call("f", {}), Call("g", {})]),
        ("json", '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', [Call("f", {}), Call("g", {})]),
        ("plain", 'I add.\nadd(1, b=2)\nsearch(query="x (y)")', [Call("add", {"b": 2}, (1,)),
                                                              Call("search", {"query": "x (y)"})]),
        ("plain", "[add(a=1), add(a=-2)]", [Call("add", {"a": 1}), Call("add", {"a": -2})]),
    ],
)  # fmt: skip
def test_each_format_is_parsed_and_found(form, text, calls):
    assert parse_calls(text, form, ["add", "search"]) == calls
    assert parse_calls(text, "auto", ["add", "search"]) == calls


@pytest.mark.parametrize(
    "text", ["", "4", "It is 4.", "{4}", "[1, 2]", '{"name": "Bob", "age": 3}', "sine(4)", "I call add(1, 2) now"]
)
def test_what_is_no_call_is_an_answer(text):
    assert parse_calls(text, "auto", ["add"]) == []
    assert parse_calls("4", "json", ["add"]) == parse_calls("4", "hermes", ["add"]) == []


def reply(text, **options):
    env = tool_env(**options)
    env.reset(seed=0)
    turns, reward, terminated, truncated, info = env.step(text)
    assert not terminated
    assert not truncated
    assert {turn["role"] for turn in turns} == {"tool"}
    return [turn["content"] for turn in turns], reward, info


def test_results_are_turns_in_the_order_of_the_calls():
    texts, reward, info = reply('add(1, 2)\nsearch(query="x")\nlater(7)\nadd(a="1")', error_reward=-0.5)
    assert texts[:3] == ["3", '{"found": ["x", null]}', "7"]
    assert (len(texts), reward, info) == (4, -0.5, {"calls": 4, "failed": 1})
    assert reply("add(1)", error_reward=-0.5)[1:] == (0.0, {"calls": 1, "failed": 0})
    assert reply('search(query="x", site=None)')[0] == ['{"found": ["x", null]}']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1</tool_call>', "error: malformed JSON: Expecting"),
        ("<tool_call></tool_call>", "error: malformed JSON"),
        ("<tool_call>" + "[" * 100_000, "error: malformed JSON"),
        ("<tool_call>[]</tool_call>", 'error: expected {"name": ..., "arguments": {...}}, received []'),
        ('<tool_call>{"arguments": {}}</tool_call>', 'error: expected {"name": ..., "arguments"'),
        ('<tool_call>{"name": "add", "arguments": 3}</tool_call>', 'error: expected {"name": ..., "arguments"'),
        ("add(a, b)", "error: malformed call: expected name(argument=value) with literal values"),
        ("add(1", None),
        ('<tool_call>{"name": "serch", "arguments": {}}</tool_call>', "error: no tool 'serch'; did you mean 'search'?"),
        (
            '<tool_call>{"name": "xyz", "arguments": {}}</tool_call>',
            "error: no tool 'xyz'; expected one of add, search",
        ),
        ("add()", "error: add: missing a required argument: 'a'; expected add(a: int, b: int = 0) -> int"),
        ("add(a=1, c=2)", "error: add: got an unexpected keyword argument 'c'"),
        ('add(a="1")', "error: add: a: expected integer, received '1'"),
        ("add(a=True)", "error: add: a: expected integer, received True"),
        ('broken(why="none")', "error: broken: KeyError: 'none'"),
        ("slow()", "error: slow: no result within 0.05 seconds"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(text, message):
    if message is None:  # no line of a call: an answer
        assert parse_calls(text, "auto", ["add"]) == []
        return
    begun = time.monotonic()
    (found,), reward, info = reply(text, error_reward=-1.0, time_limit=0.05 if "slow" in text else 10.0)
    assert found.startswith(message)
    assert (reward, info["failed"]) == (-1.0, 1)
    assert time.monotonic() - begun < 5


def test_no_result_of_a_call_stops_the_run():
    def power(a: int) -> int:
        """Raise ten to a power.

        Args:
            a: the power.
        """
        return 10**a

    def echo(text: str) -> str:
        """Say it again.

        Args:
            text: what.
        """
        return text

    half = r'<tool_call>{"name": "search", "arguments": {"query": "x", "site": "\ud800"}}</tool_call>'
    assert reply(half)[0] == [r'{"found": ["x", "\ud800"]}']
    assert reply(half.replace("search", r"\ud800"))[0][0].encode()
    assert reply(r"echo(text='a\ud800')", tools=[echo])[0] == ["a?"]
    assert reply("power(a=9999)", tools=[power])[0][0].startswith("error: power: ValueError: Exceeds the limit")


def test_the_answer_is_rewarded_with_the_columns_of_its_row():
    seen = []

    def right(prompts, completions, *, answer):
        seen.append((prompts, completions, answer))
        return [float(completions[0] == answer[0])]

    for reward in (right, rewards.exact()):
        env = tool_env(reward=reward)
        prompt, info = env.reset(seed=3)
        answer = info["row"]["answer"]
        assert {"prompt": prompt, "answer": answer} in ROWS
        assert env.step("add(1)")[1] == 0.0
        assert env.step(answer)[1:4] == (1.0, True, False)
        env.reset(seed=3)
        assert env.step("no")[1:4] == (0.0, True, False)
    assert seen == [([prompt], [answer], [answer]), ([prompt], ["no"], [answer])]
    none = tool_env(reward=lambda completions: [None])
    none.reset(seed=0)
    assert none.step("x")[1] == 0.0


def test_a_reward_may_be_a_coroutine_function_such_as_a_judge():
    async def ask(prompt, completion, answer):
        return float(completion == answer) if completion else None

    env = ToolEnv([add], rows=[{"prompt": "1 + 1?", "answer": "2"}], reward=rewards.judge(ask))
    for text, paid in (("2", 1.0), ("3", 0.0), ("", 0.0)):
        env.reset(seed=0)
        assert env.step(text)[1] == paid


def test_a_seed_draws_the_row():
    first, second = tool_env(), tool_env()
    drawn = [first.reset(seed=seed)[0] for seed in range(20)]
    assert drawn == [second.reset(seed=seed)[0] for seed in range(20)]
    assert len(set(drawn)) > 10


class Counter:
    """An environment as TRL's trainer takes them."""

    def reset(self, **row):
        self.count, self.start = 0, row.get("start", 0)
        return f"start at {self.start}"

    def increase(self, by: int) -> str:
        """Count on.

        Args:
            by: how far.
        """
        self.count += by
        return f"now {self.start + self.count}"

    def _private(self):
        raise AssertionError

    def get_reward(self) -> float:
        return self.count / 10


def test_an_environment_in_trls_shape_is_taken_as_it_is():
    env = ToolEnv(task=Counter, rows=[{"prompt": [{"role": "user", "content": "Count."}], "start": 4}])
    prompt, info = env.reset(seed=0)
    assert prompt == [{"role": "user", "content": "Count.\nstart at 4"}]
    assert [tool["function"]["name"] for tool in info["tools"]] == ["increase"]
    turns, *first = env.step("increase(by=3)")
    assert (turns[0]["content"], first[:3]) == ("now 7", [0.3, False, False])
    assert env.step("increase(by=-1)")[1] == pytest.approx(-0.1)
    assert env.step("done")[1:4] == (0.0, True, False)  # 0.2 in all
    env.reset(seed=0)
    assert env.step("increase(by=5)")[1] == 0.5
    alone = ToolEnv(task=Counter, reward=lambda environments: [environments[0].count])
    assert alone.reset(seed=0)[0] == "start at 0"
    alone.step("increase(by=2)")
    assert alone.step("done")[1] == 2.0


def undocumented(a: int):
    return a


def test_bad_settings_are_refused():
    for options, message in (
        ({"tools": [undocumented]}, "tool 'undocumented': expected a function with type hints and a docstring"),
        ({"tools": []}, "tools: expected one or more, of different names, received \\[\\]"),
        ({"tools": [add, add]}, "of different names, received \\['add', 'add'\\]"),
        ({"rows": None}, "rows: expected rows with a prompt, or a task"),
        ({"rows": [{"question": "x"}]}, r"rows\[0\]: expected .*prompt"),
        ({"parse": "xml"}, "parse: expected one of auto, hermes, json, plain, received 'xml'"),
        ({"time_limit": 0}, "time_limit: expected a number of seconds above 0"),
        ({"time_limit": "1"}, "time_limit: expected a number of seconds above 0, or None, received '1'"),
        ({"error_reward": "x"}, "error_reward: expected a finite number, received 'x'"),
        ({"reward": 3}, "reward: expected a function, received 3"),
        ({"tools": add}, "tools: expected a list of functions, received <function add"),
        ({"rows": []}, "rows: expected at least one row, received none"),
        ({"reward": lambda prompts, completions, key: [0]}, "no row has 'key'"),
    ):
        with pytest.raises(ValueError, match=message):
            tool_env(**options)


def conftest_tokenizer():
    place = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("textenvs_conftest", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.word_tokenizer


VOCABULARY = ["what", "is", "add(1,2)", "add(1,'x')", "3", "4", "one", "plus", "two", "error:", "user", "tool",
              "system", "assistant", "<s>", "</s>", "schemas"]  # fmt: skip


@pytest.fixture(scope="module")
def words():
    return conftest_tokenizer()(VOCABULARY)


ROW = [{"prompt": "what is one plus two", "answer": "3"}]


def play(envs, words, *turns):
    envs.reset(seed=0)
    for turn in turns:
        for token in (*words.convert_tokens_to_ids(turn.split()), 0):
            found = envs.step(np.full(envs.num_envs, token))
    return found


@pytest.mark.parametrize("mode", ["Disabled"])
def test_an_episode_through_the_front_door(words, mode):
    envs = gym.make_vec(
        "textenvs/Dialogue-v0", num_envs=2, tools=[add], rows=ROW, reward=rewards.exact(), system="schemas",
        tokenizer=words, max_turns=3, max_turn_tokens=4, max_tokens=32, autoreset_mode=mode,
    )  # fmt: skip
    observation, reward, terminated, _, infos = play(envs, words, "add(1,2)", "3")
    text = words.decode(observation[0][observation[0] != PAD])
    assert " ".join(text.replace("<end>", "|").split()) == "| schemas what is one plus two add(1,2) | 3 3 |"
    assert (reward.tolist(), terminated.tolist(), infos["stop_reason"][0]) == ([1.0, 1.0], [True, True], "terminated")
    assert infos["env_info"][0] == {"calls": 0, "failed": 0}
    assert play(envs, words, "add(1,2)", "4")[1].tolist() == [0.0, 0.0]


def test_groups_share_their_row(words):
    rows = [{"prompt": " ".join(pair)} for pair in itertools.pairwise(VOCABULARY)]
    envs = gym.make_vec("textenvs/Dialogue-v0", num_envs=12, tools=[add], rows=rows, system="", tokenizer=words,
                        group_size=3)  # fmt: skip
    drawn = envs.draw_prompts(seed=0).tolist()
    groups = [drawn[start : start + 3] for start in range(0, 12, 3)]
    assert all(group == group[:1] * 3 for group in groups)
    assert len({str(group[0]) for group in groups}) > 1


def test_the_front_door_takes_trls_shape_and_names_what_fails(words):
    for options in ({"env": Counter}, {"env": functools.partial(Counter), "rows": [{"start": 1}]}):
        envs = gym.make_vec("textenvs/Dialogue-v0", tokenizer=words, **options)
        envs.reset(seed=0)
    with pytest.raises(ValueError, match="did you mean 'tools'"):
        gym.make_vec("textenvs/Dialogue-v0", tokenizer=words, tool=[add], rows=ROW)
    wrong = gym.make_vec("textenvs/Dialogue-v0", tokenizer=words, tools=[add], rows=ROW, reward=lambda completions: "a")
    with pytest.raises(DialogueError, match=r"sub-environment 0 .*in turn 1: .*rows\[0\]: reward: expected numbers"):
        play(wrong, words, "3")


LOOP = "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
END = "{% if add_generation_prompt %}<s> assistant {% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% endfor %}"
)
SKIPS = LOOP.replace("<s> {{", "{% if m.role != 'tool' %}<s> {{").replace("</s> {%", "</s> {% endif %}{%")
TAKES = "{% if tools %}<s> system {{ tools[0].function.name }} </s> {% endif %}"


@pytest.fixture
def chat(words):
    def build(template):
        found = copy.deepcopy(words)
        found.chat_template = template + END
        return Bridge(found, found.convert_tokens_to_ids("</s>"), len(found)), found

    return build


TURNS = [{"role": "tool", "content": "3"}, {"role": "tool", "content": "4"}]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LOOP, "<s> tool 3 </s> <s> tool 4 </s> <s> assistant"),
        (ALTERNATE + LOOP, "<s> user 3 4 </s> <s> assistant"),
        (SKIPS, "<s> user 3 4 </s> <s> assistant"),
    ],
)
def test_results_are_turns_of_the_user_where_a_template_has_none_of_tools(chat, template, expected):
    bridge, words = chat(template)
    said = np.array(words.convert_tokens_to_ids(["add(1,2)", "</s>"]))
    assert words.decode(bridge.between(said, TURNS, answering=True)).split() == expected.split()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TAKES + LOOP, "<s> system add(1,2) </s> <s> user what </s> <s> assistant"),
        (LOOP, "<s> system schemas </s> <s> user what </s> <s> assistant"),
        (NO_SYSTEM + LOOP, "<s> user schemas what </s> <s> assistant"),
    ],
)
def test_tools_are_told_as_the_template_takes_them(chat, template, expected):
    bridge, words = chat(template)
    tools = [{"type": "function", "function": {"name": "add(1,2)"}}]
    assert words.decode(bridge.first("what", tools, "schemas")).split() == expected.split()
    with_system = [{"role": "system", "content": "is"}, {"role": "user", "content": "what"}]
    if template == LOOP:
        assert "<s> system schemas is </s>" in words.decode(bridge.first(with_system, tools, "schemas"))


def test_without_a_template_a_result_is_a_line():
    class Characters:
        def __call__(self, text, **_):
            return {"input_ids": [ord(character) for character in text]}

        def decode(self, ids, **_):
            return "".join(map(chr, ids))

    bridge = Bridge(Characters(), 0, 256)
    found = bridge.between(np.array([ord("x"), 0]), TURNS, answering=True)
    assert "".join(map(chr, found)) == "\n3\n4\n"
    assert "".join(map(chr, bridge.first("what", [], "schemas"))) == "schemas\nwhat"
