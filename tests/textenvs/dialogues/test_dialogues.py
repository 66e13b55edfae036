"""Dialogue environments: ends, bridges, errors, Gymnasium's contracts, resume (traps D4-D9)."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from textenvs import PAD, DialogueVectorEnv
from textenvs.dialogues.bridge import Bridge
from textenvs.dialogues.sub_environments import DialogueError

TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


class Guess(gym.Env):
    """Guess a word; the answer says where it is."""

    last = False
    limit = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = int(self.np_random.integers(0, 8))
        self.count = 0
        return "w1 w2", {}

    def step(self, action):
        self.count += 1
        hit = action.split() == [f"w{self.word}"]
        return (
            ("w9 w9" if hit else "w10 w11"),
            (1.0 if hit else -0.25),
            hit,
            self.limit and not hit,
            {"count": self.count},
        )


@pytest.fixture
def make(tokenizer):
    def build(num_envs=1, env=Guess, **options):
        options = {"max_turns": 3, "max_turn_tokens": 2, "max_tokens": 20} | options
        ids = gym.make_vec("textenvs/Dialogue-v0", num_envs=num_envs, env=env, tokenizer=tokenizer, **options)
        return ids

    return build


def word(number):
    return number + 2


def say(envs, *tokens):
    """Step one sub-environment; the last step's results."""
    for token in tokens:
        found = envs.step(np.array([token]))
    return found


def test_a_turn_is_answered_in_the_same_step_and_nothing_before_it_changes(make):
    envs = make()
    observation, _ = envs.reset(seed=0)
    rows = [observation[0]]
    for token in (word(30), 0, word(30), word(31)):
        observation, rewards, _terminated, _truncated, infos = envs.step(np.array([token]))
        before = rows[-1][rows[-1] != PAD]
        now = observation[0][observation[0] != PAD]
        assert now[: len(before)].tolist() == before.tolist()
        assert now[len(before)] == token
        rows.append(observation[0])
    # The second turn was cut by its budget: its end is written, once, by the environment.
    assert rows[2][rows[2] != PAD].tolist() == [0, word(1), word(2), word(30), 0, word(10), word(11)]
    assert rows[4][rows[4] != PAD].tolist()[-5:] == [word(30), word(31), 0, word(10), word(11)]
    assert (infos["turn_end"][0], rewards[0], infos["env_info"][0]) == ("length", -0.25, {"count": 2})


def test_five_ends_are_told_apart(make):
    wrong = (word(30), 0)

    class Limited(Guess):
        limit = True

    for options, tokens, reason, truncated in (
        ({}, None, "terminated", False),
        ({"env": Limited}, wrong, "truncated", True),
        ({"max_turns": 2}, wrong * 2, "turns", False),
        ({"max_turns": 2, "budget": "truncate"}, wrong * 2, "turns", True),
        ({"max_tokens": 7}, wrong, "length", False),
        ({"max_tokens": 7, "budget": "truncate"}, wrong, "length", True),
    ):
        envs = make(autoreset_mode="Disabled", **options)
        envs.reset(seed=3)
        hit = envs.unwrapped._stepped.envs._envs[0].word
        observation, _rewards, terminations, truncations, infos = say(envs, *(tokens or (word(hit), 0)))
        assert infos["stop_reason"][0] == reason
        assert (terminations[0], truncations[0]) == (not truncated, truncated)
        # The final observation has the last one of the environment, as far as it fits.
        assert observation[0][observation[0] != PAD][-1] in (word(9), word(11), word(10))


def test_an_environment_that_ends_in_the_last_turn_has_ended_by_itself(make):
    """D7: also where the row is full; the reward is paid."""
    for options in ({"max_turns": 1}, {"max_tokens": 5}):
        envs = make(autoreset_mode="Disabled", **options)
        envs.reset(seed=3)
        hit = envs.unwrapped._stepped.envs._envs[0].word
        _, rewards, terminated, _, infos = say(envs, word(hit), 0)
        assert (rewards[0], bool(terminated[0]), infos["stop_reason"][0]) == (1.0, True, "terminated")


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_dialogues_that_end_at_different_turns_do_not_disturb_each_other(make, mode):
    """D8: each row is what it is alone."""
    script = np.random.default_rng(0).integers(1, 12, (14, 4))
    script[::2, 1] = script[:, 2] = 0

    def run(columns):
        envs = make(len(columns), autoreset_mode=mode)
        envs.reset(seed=0)
        envs.unwrapped._episodes = 1000  # later episodes are the same in both
        seen = []
        alive = np.ones(len(columns), dtype=bool)
        for actions in script[:, columns]:
            if mode == "Disabled" and not envs.unwrapped.running.all():
                envs.reset(options={"reset_mask": ~envs.unwrapped.running})
            observation, rewards, terminated, truncated, infos = envs.step(actions)
            seen.append([(o.tolist(), r) if a else None for o, r, a in zip(observation, rewards, alive, strict=True)])
            if mode == "SameStep":
                for i in np.flatnonzero(alive & (terminated | truncated)):
                    seen[-1][i] = infos["final_obs"][i].tolist(), rewards[i]
            alive &= ~(terminated | truncated)
        return seen

    together = run([0, 1, 2, 3])
    alone = run([0])
    assert [row[0] for row in together] == [row[0] for row in alone]
    assert len({sum(row[i] is not None for row in together) for i in range(4)}) > 1


def test_the_scalar_view_passes_gymnasiums_check(tokenizer):
    check_env(
        gym.make("textenvs/Dialogue-v0", env=Guess, tokenizer=tokenizer, max_tokens=20, max_turn_tokens=2).unwrapped,
        skip_render_check=True,
    )


def test_a_dialogue_goes_on_where_it_was_saved(make):
    envs = make(3, max_turns=5, max_tokens=60)
    envs.reset(seed=2)
    generator = np.random.default_rng(1)
    for _ in range(7):
        envs.step(generator.integers(0, 12, 3))
    state = envs.unwrapped.state_dict()
    script = generator.integers(0, 12, (20, 3))
    expected = [envs.step(actions) for actions in script]
    other = make(3, max_turns=5, max_tokens=60)
    other.unwrapped.load_state_dict(state)
    for actions, (observation, rewards, terminated, *_) in zip(script, expected, strict=True):
        found = other.step(actions)
        np.testing.assert_array_equal(found[0], observation)
        np.testing.assert_array_equal(found[1], rewards)
        np.testing.assert_array_equal(found[2], terminated)


def test_an_environment_that_cannot_be_played_again_is_not_resumed(make):
    class Careless(Guess):
        calls = 0

        def step(self, action):
            Careless.calls += 1
            return f"w{10 + Careless.calls}", 0.0, False, False, {}

    envs = make(env=Careless)
    envs.reset(seed=0)
    say(envs, word(30), 0)
    with pytest.raises(ValueError, match=r"sub-environment 0 .* expected what it wrote before"):
        make(env=Careless).unwrapped.load_state_dict(envs.unwrapped.state_dict())


def chat_tokenizer(tokenizer, template=TEMPLATE):
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<s>", "</s>"]})
    chat.add_tokens(["user", "assistant"])
    chat.chat_template = template
    return chat


def test_a_chats_bridge_closes_the_turn_once(tokenizer):
    """D5: as the template would write it, whether the model sampled the end or its budget cut it."""
    chat = chat_tokenizer(tokenizer)
    start, end, user, assistant = (chat.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "user", "assistant"))
    bridge = Bridge(chat, end, len(chat))
    assert bridge.first("w1").tolist() == [start, user, word(1), end, start, assistant]
    rest = [start, user, word(5), end, start, assistant]
    assert bridge.between(np.array([word(3), end]), "w5", answering=True).tolist() == rest
    assert bridge.between(np.array([word(3)]), "w5", answering=True).tolist() == [end, *rest]
    assert bridge.between(np.array([word(3)]), "w5", answering=False).tolist() == [end, *rest[:4]]
    assert bridge.action(np.array([word(3), end])) == "w3"


def test_a_template_that_rewrites_history_is_refused_and_the_turn_named(tokenizer):
    rewriting = (
        "{% for m in messages %}<s> {{ m['role'] }} "
        "{% if m['role'] == 'assistant' and not loop.last %}{% else %}{{ m['content'] }}{% endif %} </s> {% endfor %}"
        "{% if add_generation_prompt %}<s> assistant {% endif %}"
    )
    chat = chat_tokenizer(tokenizer, rewriting)
    with pytest.raises(ValueError, match="leave turns as they are once a chat goes on; before turn 2 it wrote"):
        DialogueVectorEnv(1, env=Guess, tokenizer=chat, eos_token_id=0)
    DialogueVectorEnv(1, env=Guess, tokenizer=chat, eos_token_id=0, chat=False)


def converse(envs):
    envs.reset(seed=0)
    say(envs, word(30), 0)


def broken(**methods):
    return type("Broken", (Guess,), methods)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"step": lambda self, a: 1 / 0},
            r"sub-environment 0 \(Broken\), in turn 1: ZeroDivisionError: .*test_dialogues",
        ),
        ({"step": lambda self, a: ("w1", 0.0, True)}, "in turn 1: step: expected \\(observation, reward"),
        (
            {"step": lambda self, a: (7, 0.0, False, False, {})},
            "in turn 1: expected an observation that is text, received 7",
        ),
        (
            {"step": lambda self, a: ("", 0.0, False, False, {})},
            "in turn 1: expected an observation of a token or more",
        ),
        ({"step": lambda self, a: ("w1", float("nan"), False, False, {})}, "expected a finite reward, received nan"),
        ({"step": lambda self, a: ("w1", None, False, False, {})}, "expected a finite reward, received None"),
        ({"step": lambda self, a: ("w1", 0.0, True, True, {})}, "expected terminated or truncated, received both"),
        ({"reset": lambda self, seed=None, options=None: "w1"}, r"in reset: reset: expected \(observation, info\)"),
        ({"reset": lambda self: ("w1", {})}, "in reset: TypeError: .*seed"),
        (
            {"reset": lambda self, seed=None, options=None: ("w1 " * 40, {})},
            "fewer than max_tokens 20 tokens, received",
        ),
    ],
)
def test_an_environment_that_fails_is_named_with_its_turn(make, methods, message):
    envs = make(env=broken(**methods))
    with pytest.raises(DialogueError, match=message):
        converse(envs)


def test_bad_settings_are_refused(tokenizer):
    for settings, message in (
        ({"env": Guess()}, "env: expected an id, or a class or function"),
        ({"env": 3}, "env: expected an id, or a class or function"),
        ({"env": "textenvs.dialogues.guess:Nope"}, "env textenvs.dialogues.guess:Nope: .* no attribute 'Nope'"),
        ({"env": dict}, "expected an environment with reset and step"),
        ({"max_turns": 0}, "max_turns: expected a whole number of 1 or more, received 0"),
        ({"max_turns": 2.5}, "max_turns: expected a whole number of 1 or more, received 2.5"),
        ({"max_tokens": 1}, "max_tokens: expected a whole number of 2 or more, received 1"),
        ({"processes": "2"}, "processes: expected a whole number of 0 or more, received '2'"),
        ({"threads": True}, "threads: expected a whole number of 0 or more, received True"),
        ({"rows": ["a"]}, "rows: expected no env, or a class with reset and without step"),
        ({"weights": [1.0]}, "weights: expected a scorer beside it, received none"),
        ({"beta": 0.1, "charge": False}, "beta, charge: expected a reference beside it, received none"),
        ({"max_turn": 3}, "did you mean 'max_turns'"),
        ({"env": None}, "env: expected an environment's id"),
    ):
        with pytest.raises(ValueError, match=message):
            gym.make_vec("textenvs/Dialogue-v0", tokenizer=tokenizer, **({"env": Guess} | settings))


def test_what_was_not_said_cannot_be_played(make):
    envs = make(2)
    prompts = envs.draw_prompts(seed=0)
    with pytest.raises(ValueError, match="expected the 0 dialogues that were answered to their end, received 2"):
        envs.play(prompts, np.full((2, 3), 5))
    with pytest.raises(ValueError, match="row 1: expected a turn of 1 to 2 tokens"):
        envs.answer(np.array([1]), [np.array([5, 5, 5])])
