import csv
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import agents.recipes.reward_model as script
from agents import cli
from agents.recipes.commands.reward_model import TrainRewardModelConfig
from agents.runs.checkpoint import load
from agents.runs.run_dir import RunDir
from reward_models import PreferencePair, RewardModel, write_pairs
from reward_models.data.movie_ratings import RatedSnippet
from reward_models.ensemble import RewardEnsemble
from reward_models.options import TrainingOptions
from reward_models.training import RewardLearner

RATINGS = {"good": (3, 2, 4), "fine": (1, 2, 1), "plain": (0, 1, -1), "dull": (-1, -2, 0), "bad": (-3, -2, -4)}
NOUNS = [f"noun{i}" for i in range(60)]
WORDS = [RatedSnippet(text=word, ratings=r) for word, r in RATINGS.items()]
SNIPPETS = [RatedSnippet(text=f"{noun} is {word}", ratings=r) for noun in NOUNS for word, r in RATINGS.items()]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    words = ["<end>", "<unknown>", *RATINGS, *NOUNS, "is"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<end>", "eos_token": "<end>", "unk_token": "<unknown>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def few_ratings(monkeypatch):
    def plant():
        monkeypatch.setattr(script, "load_rated_snippets", lambda: SNIPPETS)
        monkeypatch.setattr(script, "load_rated_words", lambda: WORDS * 4)
        monkeypatch.setattr(script, "judge_sentences", lambda: {"noun1 is plain"})
        monkeypatch.setattr(script, "VALIDATION_BATCH", 12)

    plant()
    return plant


def interrupt_at_gradient(monkeypatch, call):
    """Ctrl-C during the ``call``-th optimizer step of a run."""
    gradient, calls = RewardLearner.gradient, []

    def interrupt(self, batch):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return gradient(self, batch)

    monkeypatch.setattr(RewardLearner, "gradient", interrupt)


def assert_same_run(one, other):
    """The same weights and calibration, bit for bit, the same metrics and the same summary."""
    for file in sorted((one / "model").rglob("*.safetensors")):
        theirs = load_file(other / "model" / file.relative_to(one / "model"))
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, theirs[name]), name
    for file in (one / "model").rglob("reward_model.json"):
        assert file.read_text() == (other / "model" / file.relative_to(one / "model")).read_text()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    assert len({json.dumps(summary | {"wall_s": 0}) for summary in summaries}) == 1
    tables = []
    for run in (one, other):
        with open(run / "progress.csv") as file:
            rows = csv.DictReader(file)
            tables.append([{name: row[name] for name in row if name != "train/pairs_per_s"} for row in rows])
    assert tables[0] == tables[1]


@pytest.fixture
def pairs_file(tmp_path):
    write_pairs(
        tmp_path / "pairs.jsonl",
        [PreferencePair(prompt=f"{noun} is", chosen=" good", rejected=" bad") for noun in NOUNS],
    )
    return str(tmp_path / "pairs.jsonl")


def arguments(run, language_model, *more, epochs=6):
    fast = ["--training.learning-rate", "5e-3", "--training.epochs", str(epochs), "--training.eval-every", "10"]
    return ["--run-dir", str(run), "--model", language_model, "--group-size", "16", *fast, *more]


def test_ratings_end_in_a_summary_and_a_model_that_loads(few_ratings, language_model, tmp_path, pictures):
    run = tmp_path / "run"
    assert cli.run("train-reward-model", arguments(run, language_model)) == 0
    summary = json.loads((run / "summary.json").read_text())
    needed = "pair_accuracy pair_accuracy_gap1 human_pair_accuracy num_train_pairs num_heldout_pairs wall_s"
    assert set(needed.split()) <= summary.keys()
    assert summary["pair_accuracy_gap1"] > 0.9
    good, bad = RewardModel.load(run / "model")(["noun1 is", "noun1 is"], [" good", " bad"])
    assert good > bad
    assert (run / "progress.csv").exists()
    assert list(run.glob("events.out.tfevents*"))
    assert json.loads((run / "config.json").read_text())["seed"] == 0
    reliability = json.loads((run / "reliability.json").read_text())
    assert sum(row["share"] for row in reliability["bins"]) == pytest.approx(1)
    assert reliability["calibration_error"] == summary["calibration_error"]
    assert (run / "reliability.png").stat().st_size > 1000
    assert summary["longer_chosen_share"] is None  # all are three words long
    assert "disagreement" not in summary


@pytest.mark.parametrize("kind", [["--lora-rank", "2"], []], ids=["adapters", "whole"])
def test_members_make_an_ensemble_whose_first_is_the_single_model(few_ratings, language_model, tmp_path, kind):
    assert (
        cli.run("train-reward-model", arguments(tmp_path / "many", language_model, "--members", "2", *kind, epochs=2))
        == 0
    )
    assert cli.run("train-reward-model", arguments(tmp_path / "one", language_model, *kind, epochs=2)) == 0
    ensemble = RewardEnsemble.load(tmp_path / "many" / "model")
    asked = (["noun1 is", "noun2 is"], [" good", " bad"])
    first, second = ensemble.score_each(*asked)
    np.testing.assert_array_equal(first, RewardModel.load(tmp_path / "one" / "model")(*asked))
    assert (first != second).all()
    many, one = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("many", "one"))
    assert many["members"] == 2
    assert many["member_0_pair_accuracy"] == one["pair_accuracy"]
    assert many["member_0_calibration_error"] == one["calibration_error"]
    assert many["disagreement"] > 0
    assert many["disagreement_gibberish"] > 0
    with open(tmp_path / "many" / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["train/member"] for row in rows} == {"0.0", "1.0"}
    steps = [float(row["time/steps"]) for row in rows if row["train/loss"]]
    assert steps == sorted(set(steps))


def test_ctrl_c_in_a_later_member_keeps_those_before_it_and_resume_goes_on_with_it(
    few_ratings, language_model, tmp_path, monkeypatch
):
    flags = ["--members", "3", "--lora-rank", "2", "--training.eval-every", "4", "--training.dropout", "0.1"]
    run = arguments(tmp_path / "run", language_model, *flags, epochs=0.5)
    assert cli.run("train-reward-model", arguments(tmp_path / "whole", language_model, *flags, epochs=0.5)) == 0
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    interrupt_at_gradient(monkeypatch, whole["steps"] // 3 + 3)
    assert cli.run("train-reward-model", run) == 130
    assert len(RewardEnsemble.load(tmp_path / "run" / "model")) == 2
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    few_ratings()
    assert cli.run("train-reward-model", [*run, "--resume"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_margins_in_the_file_and_the_pull_to_zero_reach_the_loss(language_model, tmp_path):
    def raw_rewards(name, margin=0.0, *flags):
        pairs = [PreferencePair(prompt=f"{n} is", chosen=" good", rejected=" bad", margin=margin) for n in NOUNS]
        write_pairs(tmp_path / f"{name}.jsonl", pairs)
        more = ["--pairs", str(tmp_path / f"{name}.jsonl"), "--training.patience", "100", *flags]
        assert cli.run("train-reward-model", arguments(tmp_path / name, language_model, *more)) == 0
        model = RewardModel.load(tmp_path / name / "model")
        prompts = [f"{n} is" for n in NOUNS]
        return np.array([model(prompts, [said] * len(NOUNS)) for said in (" good", " bad")]) * model.std.item() + (
            model.mean.item()
        )

    (good, bad), (asked_good, asked_bad) = raw_rewards("plain"), raw_rewards("asked", 5.0)
    assert (asked_good - asked_bad > good - bad + 1).all()
    pulled = raw_rewards("pulled", 0.0, "--training.centering-coef", "10")
    free = raw_rewards("free", 0.0, "--training.centering-coef", "0")
    assert (pulled.sum(0) ** 2).mean() < (free.sum(0) ** 2).mean()
    with pytest.raises(SystemExit):
        raw_rewards("wrong", 0.0, "--training.centering-coef", "-1")


def test_pairs_of_a_users_own_go_through_the_same_loop(language_model, pairs_file, tmp_path):
    heldout = tmp_path / "heldout.jsonl"
    write_pairs(heldout, [PreferencePair(prompt="plain is", chosen=" good", rejected=" bad")])
    more = ["--pairs", pairs_file, "--heldout-pairs", str(heldout), "--model-dir", str(tmp_path / "mine")]
    assert cli.run("train-reward-model", arguments(tmp_path / "run", language_model, *more)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["pair_accuracy"] == 1
    assert summary["num_heldout_pairs"] == 1
    assert RewardModel.load(tmp_path / "mine").std > 0


def test_ctrl_c_keeps_the_best_so_far_and_resume_ends_where_an_undisturbed_run_ends(
    few_ratings, language_model, tmp_path, monkeypatch
):
    flags = arguments(tmp_path / "run", language_model, "--training.dropout", "0.1", epochs=2)
    whole = arguments(tmp_path / "whole", language_model, "--training.dropout", "0.1", epochs=2)
    assert cli.run("train-reward-model", whole) == 0
    interrupt_at_gradient(monkeypatch, 15)
    assert cli.run("train-reward-model", flags) == 130
    RewardModel.load(tmp_path / "run" / "model")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert load(tmp_path / "run" / "checkpoint.safetensors")["progress"]["step"] == 15
    monkeypatch.undo()
    few_ratings()
    assert cli.run("train-reward-model", [*flags, "--resume", "--group-size", "8"]) == 2
    assert cli.run("train-reward-model", [*flags, "--resume"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert cli.run("train-reward-model", [*flags, "--resume"]) == 2  # it is finished


def test_a_run_that_was_stopped_is_resumed_into_its_own_model_dir(few_ratings, language_model, tmp_path, monkeypatch):
    flags = arguments(tmp_path / "run", language_model, "--model-dir", str(tmp_path / "mine"), epochs=0.5)
    interrupt_at_gradient(monkeypatch, 3)
    assert cli.run("train-reward-model", flags) == 130
    RewardModel.load(tmp_path / "mine")
    monkeypatch.undo()
    few_ratings()
    assert cli.run("train-reward-model", [*flags, "--resume"]) == 0
    assert cli.run("train-reward-model", [*arguments(tmp_path / "other", language_model), *flags[-2:]]) == 2


def test_the_seed_is_given_in_one_place():
    with pytest.raises(ValueError, match=r"training.seed: expected --seed, which takes its place, received 3"):
        TrainRewardModelConfig(run_dir="run", training=TrainingOptions(seed=3))


def test_pairs_that_the_model_cannot_read_whole_are_refused_or_counted(language_model, tmp_path, capsys):
    """It has 32 positions; a text loses its prompt where its beginning is cut."""
    pairs = [PreferencePair(prompt=f"{noun} is", chosen=" good", rejected=" bad") for noun in NOUNS[:20]]
    long = [PreferencePair(prompt=f"{noun} is", chosen=" good" * 40, rejected=" bad") for noun in NOUNS[20:23]]
    write_pairs(tmp_path / "pairs.jsonl", pairs + long)

    def run(name, *flags):
        given = arguments(tmp_path / name, language_model, *flags, epochs=1)
        return cli.run("train-reward-model", [*given, "--pairs", str(tmp_path / "pairs.jsonl")])

    assert run("refused") == 2
    message = capsys.readouterr().err
    assert "3 of 23 pairs have a text of more tokens than the 32 that the model reads (the longest 44)" in message
    seen = {}
    for choice in ("skip", "cut"):
        assert run(choice, "--too-long", choice) == 0
        seen[choice] = json.loads((tmp_path / choice / "summary.json").read_text())
        assert seen[choice]["num_too_long_pairs"] == 3
    write_pairs(tmp_path / "pairs.jsonl", long)
    assert run("none", "--too-long", "skip") == 2


def test_held_out_pairs_that_are_the_training_pairs_are_refused(language_model, pairs_file, tmp_path, capsys):
    given = [*arguments(tmp_path / "run", language_model), "--pairs", pairs_file, "--heldout-pairs", pairs_file]
    assert cli.run("train-reward-model", given) == 2
    assert "received all of them" in capsys.readouterr().err


def test_bad_input_ends_with_exit_code_2_and_a_message(language_model, pairs_file, tmp_path, capsys):
    def refused(*args):
        assert cli.run("train-reward-model", list(args)) == 2
        return capsys.readouterr().err

    pairs = ["--pairs", pairs_file]
    bare = tmp_path / "bare"
    GPT2LMHeadModel.from_pretrained(language_model).save_pretrained(bare)
    assert "no tokenizer" in refused("--run-dir", str(tmp_path / "a"), "--model", str(bare), *pairs)
    assert "none of that name" in refused("--run-dir", str(tmp_path / "b"), "--model", str(tmp_path / "a"), *pairs)
    (tmp_path / "wrong.jsonl").write_text('{"prompt": 1}\n')
    message = refused("--run-dir", str(tmp_path / "c"), "--pairs", str(tmp_path / "wrong.jsonl"))
    assert "wrong.jsonl:1" in message
    with RunDir(tmp_path / "used", script="train_reward_model") as run:
        (run.path / "in_use.pid").write_text("1")
        assert "in use by process 1" in refused("--run-dir", str(run.path), *pairs)
    broken = GPT2LMHeadModel.from_pretrained(language_model)
    broken.transformer.ln_f.weight.data.fill_(math.nan)
    broken.save_pretrained(bare)
    AutoTokenizer.from_pretrained(language_model).save_pretrained(bare)
    message = refused("--run-dir", str(tmp_path / "d"), "--model", str(bare), *pairs)
    assert "received NaN or infinite ones in ln_f.weight" in message
    assert not (tmp_path / "d" / "summary.json").exists()
    assert not [name for name in "abc" if (tmp_path / name).exists()]


def test_bad_input_costs_neither_a_finished_run_nor_a_model_elsewhere(language_model, pairs_file, tmp_path, capsys):
    run, mine = tmp_path / "run", tmp_path / "mine"
    given = [*arguments(run, language_model, "--training.epochs", "1"), "--pairs", pairs_file]
    assert cli.run("train-reward-model", [*given, "--model-dir", str(mine)]) == 0

    def refused(*flags):
        before = {path: path.read_bytes() for path in (*run.rglob("*"), *mine.rglob("*")) if path.is_file()}
        capsys.readouterr()
        assert cli.run("train-reward-model", [*given, *flags]) == 2
        assert {path: path.read_bytes() for path in before} == before
        return capsys.readouterr().err

    assert "expected a model's folder" in refused("--overwrite", "--model", str(tmp_path / "typo"))
    assert "typo" in refused("--overwrite", "--pairs", str(tmp_path / "typo"))
    elsewhere = ["--run-dir", str(tmp_path / "other"), "--model-dir"]
    assert "mine holds a reward model: choose another --model-dir or pass --overwrite" in refused(*elsewhere, str(mine))
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("ten years of work")
    assert "holds files but no reward model" in refused(*elsewhere, str(thesis), "--overwrite")
    assert "lies in" in refused(*elsewhere, str(tmp_path), "--overwrite")
    assert not (tmp_path / "other").exists()
    flags = ["--members", "2", "--lora-rank", "2", "--overwrite"]
    assert cli.run("train-reward-model", [*given, *elsewhere, str(mine), *flags]) == 0
    assert len(RewardEnsemble.load(mine)) == 2
    assert not (mine / "reward_model.json").exists()  # of the single model that lay there


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"heldout_pairs": "h"}, "heldout_pairs needs pairs"),
        ({"pairs": "p", "words": False}, "words are of the movie ratings"),
        ({"group_size": 0}, "group_size: expected a number >= 1, received 0"),
        ({"members": 0}, "members: expected a number >= 1, received 0"),
        ({"lora_rank": 0}, "lora_rank: expected a number >= 1"),
    ],
)
def test_settings_that_nothing_would_read_or_that_are_out_of_range_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        script.TrainRewardModelConfig(run_dir="run", **options)
