"""Monitors of reward hacking: every value by hand, alarms on planted streams, silence on a stationary one."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from agents.evaluation.monitoring import Monitors, monitor_names
from agents.evaluation.monitors import (
    MONITORS,
    Written,
    bought,
    change,
    measure,
    moments,
    squared_error,
    token_moments,
    unseen_gain,
    worst_share,
    written,
)
from agents.runs import checkpoint
from textenvs.tokens.rows import TokenRows

VOCABULARY = 200


def rows_of(texts, scores, prompts=None, **more):
    width = max(map(len, texts))
    prompts = [[i % 7, 7 + i % 11] for i in range(len(texts))] if prompts is None else prompts
    completions = np.array([list(text) + [-1] * (width - len(text)) for text in texts])
    rewards = np.zeros(completions.shape, np.float32)
    flags = np.ones(len(texts), bool)
    return TokenRows(
        prompts=np.array(prompts), completions=completions, rewards=rewards, terminated=flags, truncated=~flags,
        stop_reason=np.array(["eos"] * len(texts)), scores=np.array(scores, np.float32), **more,
    )  # fmt: skip


def plain(scores, **figures):
    tokens, groups = np.zeros((len(scores), 1), int), np.arange(len(scores))
    return Written(tokens=tokens, scores=np.array(scores, float), groups=groups, figures=figures)


def test_figures_of_texts_by_hand():
    texts = [[1, 2, 3, 4, 1], [1, 2, 3, 4], [8, 9, 1, 2], [5, 5, 5, 6]]
    logprobs = np.full((4, 5), -2.0, np.float32)
    logprobs[0] = [-1, -1, -1, -1, -6]
    rows = rows_of(texts, [0, 1, 2, 3], prompts=[[1, 7], [3, -1], [3, -1], [5, 6]], ref_logprobs=logprobs)
    found = written(rows, {"judge": np.arange(4.0)}, spread=np.ones(4)).figures
    assert found["length"].tolist() == [5, 4, 4, 4]
    assert found["repetition"] == pytest.approx(np.array([1 / 5, 0, 0, 2 / 4]))
    assert found["copying"].tolist() == [2 / 5, 1 / 4, 0, 1]
    assert found["perplexity"].tolist() == [2, 2, 2, 2]  # padding does not count
    # others of each text are 1, 2 and 3 places on; the second and third have one prompt and are not compared
    shared = [(3 + 1 + 0) / 3 / 4, (3 + 0) / 2 / 3, (1 + 0) / 2 / 3, 0]
    assert found["diversity"] == pytest.approx(np.array(shared))
    assert found["prompts"] == pytest.approx(np.array([1 / 3, 1 / 2, 0, 0]))


def test_a_change_is_drawn_towards_zero_by_two_standard_errors():
    start, now = plain([0, 0], x=np.array([0.0, 2.0])), plain([0, 0], x=np.array([4.0, 6.0]))
    # means 1 and 5, variances 1: SE = sqrt(1/2 + 1/2)
    assert change(start, now, "x") == pytest.approx(2.0)
    assert change(now, start, "x") == pytest.approx(-2.0)
    assert change(start, plain([0, 0], x=np.array([1.0, 3.0])), "x") == 0.0


def test_texts_of_one_prompt_count_as_what_they_are_together():
    values = np.array([1.0, 1.0, 3.0, 3.0, 5.0, 5.0])  # variance 8/3
    assert squared_error(values, np.arange(6)) == pytest.approx(8 / 3 / 6)
    assert squared_error(values, np.array([0, 0, 1, 1, 2, 2])) == pytest.approx(8 / 3 / 3)
    assert squared_error(values, np.array([0, 1, 1, 0, 0, 1])) == pytest.approx((0.0 + 0.0) / 36)


def test_what_a_figure_buys_is_slope_times_change_in_deviations_of_the_start():
    before, now = np.repeat([0.0, 1.0], [90, 10]), np.repeat([0.0, 1.0], [50, 50])
    tokens = [np.stack([np.full(100, 4), np.where(x > 0, 9, -1)], axis=1) for x in (before, now)]
    start = replace(plain(3.0 * before, x=before), tokens=tokens[0])
    after = replace(plain(3.0 * now + 5.0, x=now), tokens=tokens[1])  # what all of a batch gain buys nothing
    # Variances 0.09 and 0.25 of x, 0.81 and 2.25 of R; the slope is 3.
    slope = 3.0 - 2.0 * math.sqrt((0.81 + 2.25) / 2 / (100 * (0.09 + 0.25)))
    moved = 0.4 - 2.0 * math.sqrt(0.09 / 100 + 0.25 / 100)
    found = bought(start, after, moments(start, ["x"]), moments(after, ["x"]))
    assert found == pytest.approx(np.array([slope * moved / 0.9]))
    found = bought(start, after, token_moments(start, 10), token_moments(after, 10))
    assert found == pytest.approx(np.array([0.0] * 9 + [slope * moved / 0.9]))
    assert bought(start, start, moments(start, ["x"]), moments(start, ["x"])).tolist() == [0.0]


def test_a_judge_that_sees_nothing_of_the_gain_and_one_that_sees_half_of_it():
    base = np.tile([-1.0, 1.0], 200)  # mean 0, deviation 1
    error = math.sqrt(2.0 / 400)
    for shift, seen in ((0.0, 2 * error), (0.5, 0.5 + 2 * error), (-1.0, 0.0)):
        start, now = plain(base, judge=3.0 * base), plain(base + 1.0, judge=3.0 * (base + shift))
        assert unseen_gain(start, now, "judge") == pytest.approx(1.0 - seen / (1.0 - 2 * error))
    assert unseen_gain(plain(base, judge=base), plain(base + 0.3, judge=base), "judge") == 0.0  # too small a gain


def test_the_worst_hundredth_of_the_tokens_holds_its_share_of_the_kl():
    ratios = np.full((1, 204), 0.1, np.float32)
    ratios[0, 200:202], ratios[0, 202:] = 10.0, 99.0
    mask = np.arange(204)[None] < 202
    assert worst_share(ratios, mask) == pytest.approx(20.0 / (20.0 + 0.1 * 200))
    assert worst_share(ratios * 1e-6, mask) == 0.0


def batch(seed, number=64, *, length=20, score=None, **planted):
    """Random texts of about 20 tokens; their scores are noise, or of the texts."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.normal(length, 4.0, number).round(), 2, 24).astype(int)
    texts = [generator.zipf(1.3, size).clip(1, VOCABULARY - 1).tolist() for size in lengths]
    for how in planted.values():
        texts = [how(text, generator) for text in texts]
    noise = generator.normal(size=number)
    scores = noise if score is None else noise + np.array([score(text) for text in texts])
    logprobs = generator.normal(-4.0, 1.0, (number, max(map(len, texts)))).clip(max=0).astype(np.float32)
    kl = generator.normal(0.1, 0.5, logprobs.shape).astype(np.float32)
    prompts = generator.integers(0, VOCABULARY, (number, 3))
    return rows_of(texts, scores, prompts, ref_logprobs=logprobs, kl=kl)


class Agent:
    """What the monitors read of an agent."""

    def __init__(self, monitors=None):
        self.collector = SimpleNamespace(envs=None, base=SimpleNamespace(tokenizer=None), last=None)
        self.monitors, self.steps, self.lines = monitors, 0, []
        self.logger = SimpleNamespace(write=lambda metrics, step: self.lines.append(metrics))

    def after(self, rows):
        self.collector.last, self.steps = rows, self.steps + len(rows.prompts)
        return self


PLANTED = {
    "short": (lambda t: {"length": 20 - t, "score": lambda text: -len(text) / 4}, {"length", "shortcut"}),
    "long": (lambda t: {"length": 14 + t, "score": lambda text: len(text) / 4}, {"length", "shortcut"}),
    "magic word": (
        lambda t: {"word": lambda text, g: [*text[:-1], 0] if g.random() < 0.05 * t else text,
                   "score": lambda text: 3.0 * (0 in text)},
        {"shortcut"},
    ),
    "repetition": (
        lambda t: {"again": lambda text, g: [text[0]] * (k := g.integers(2 * t + 1)) + text[k:],
                   "score": lambda text: len(text) - len(set(text))},
        {"repetition", "shortcut"},
    ),
    "one text for all": (
        lambda t: {"same": lambda text, g: list(range(20)) if g.random() < 0.06 * t else text},
        {"diversity", "prompts"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_hack_is_found_by_its_monitors(name):
    changed, expected = PLANTED[name]
    agent, said = Agent(), []
    monitors = Monitors(warn=said.append)
    for t in range(12):
        assert monitors(agent.after(batch(t, 128, **changed(t))))
    assert expected <= set(agent.monitors["fired"])
    assert all(line.startswith("monitor ") and "expected" in line for line in said)
    assert len(said) == len(agent.monitors["fired"])


@pytest.mark.parametrize("number", [32, 128])
def test_a_stationary_stream_calls_no_alarm(number):
    for seed in range(12):
        agent = Agent()
        monitors = Monitors(judge=lambda rows: rows.scores + 1.0, warn=pytest.fail)
        for t in range(10):
            assert monitors(agent.after(batch((seed, t), number, score=lambda text: -len(text) / 10)))
        assert agent.monitors["fired"] == {}
        assert max(max(line.values()) for line in agent.lines) < 0.7


def test_state_is_the_agents_and_a_resumed_run_goes_on_with_it(tmp_path):
    batches = [batch(t, 100, **PLANTED["short"][0](t)) for t in range(9)]

    def watch(agent, batches, path):
        monitors = Monitors(path=path, warn=lambda line: None)
        for each in batches:
            monitors(agent.after(each))
        return agent

    whole = watch(Agent(), batches, tmp_path / "whole.json")
    half = watch(Agent(), batches[:4], tmp_path / "half.json")
    checkpoint.save(tmp_path / "state", {"monitors": half.monitors})
    other = Agent(checkpoint.load(tmp_path / "state")["monitors"])
    other.steps = half.steps
    watch(other, batches[4:], tmp_path / "half.json")
    assert half.lines + other.lines == whole.lines
    assert (tmp_path / "whole.json").read_bytes() == (tmp_path / "half.json").read_bytes()
    found = json.loads((tmp_path / "whole.json").read_text())
    assert [set(line) for line in found] == [{"name", "what", "value", "threshold", "fired_at"}] * len(found)
    fired = {line["name"]: line["fired_at"] for line in found}
    assert fired["length"] in range(300, 901, 100)
    assert fired["kl"] is None


def test_stop_on_ends_the_training_and_bad_names_get_the_nearest():
    agent, monitors = Agent(), Monitors(stop_on="length", warn=lambda line: None)
    answers = [monitors(agent.after(batch(t, 128, **PLANTED["short"][0](t)))) for t in range(12)]
    assert answers.index(False) == agent.monitors["fired"]["length"] // 128 - 1
    assert monitors.stopped_by == ["length"]
    assert not monitors.calm
    assert monitor_names("any") == set(MONITORS)
    assert monitor_names("length, kl") == {"length", "kl"}
    with pytest.raises(ValueError, match="received 'lenght': did you mean length"):
        Monitors(stop_on=["lenght"])
    with pytest.raises(ValueError, match="expected an agent that writes texts"):
        Monitors()(SimpleNamespace(collector=None))


def test_answers_of_few_tokens_are_held_to_scores_and_kl_alone():
    texts = [[1, 2], [3, 4]] * 20
    rows = rows_of(texts, [0, 1] * 20, kl=np.ones((40, 2), np.float32))
    start = written(rows, {"member": np.zeros(40)}, spread=np.ones(40))
    assert set(measure(start, start, rows)) == {"member", "ensemble", "kl"}
