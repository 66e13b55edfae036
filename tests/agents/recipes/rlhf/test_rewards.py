"""Several rewards in a text run: ensembles from folders and functions of a user's own, mixed, logged, found again."""

import csv
import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from agents.evaluation.curve import read_points
from agents.recipes import evaluate as evaluate_agent
from agents.recipes.rlhf.build import build_parts
from agents.recipes.rlhf.config import TrainTextConfig, command_line
from agents.recipes.rlhf.memory_plan import planned_bytes
from agents.recipes.rlhf.rewards import scorer_names
from reward_models import RewardClassifier, RewardModel
from reward_models.ensemble import RewardEnsemble, new_members

PROMPTS = ["sky is", "two plus two is", "grass and sky", "what is red", "blue", "three and four"]


def word_tokenizer(words):
    """A word's place is its id; no word but the end is special, so that decoding drops no other."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", words.index("<end>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<end>", eos_token="<end>", pad_token="<end>", unk_token="<end>"
    )


@pytest.fixture(scope="module")
def base(llama_dir, tmp_path_factory):
    """A model whose every word but the end stands in the decoded text, so that ids and text say the same."""
    folder = tmp_path_factory.mktemp("words") / "base"
    shutil.copytree(llama_dir, folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    ids = AutoTokenizer.from_pretrained(llama_dir).get_vocab()
    word_tokenizer(sorted(ids, key=ids.get)).save_pretrained(folder)
    return folder


@pytest.fixture
def own_reward(tmp_path, monkeypatch):
    """A module with functions that score; the text's words are counted."""
    (tmp_path / "own_rules.py").write_text(
        "import os, signal\n"
        "calls = 0\n"
        "def blues(prompts, completions):\n"
        "    return [float(text.split().count('blue')) for text in completions]\n"
        "def words(prompts, completions):\n"
        "    return [float(len(text.split())) for text in completions]\n"
        "def lengths(completions, answer):\n"
        "    return [100.0 * len(word) + len(text) for text, word in zip(completions, answer)]\n"
        "def interrupts(prompts, completions):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 3:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return words(prompts, completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_rules", None)
    importlib.invalidate_caches()
    yield "own_rules"
    sys.modules.pop("own_rules", None)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS * 4))
    return path


def save_ensemble(folder, base, *, num_members=2, lora_rank=None):
    """Unfitted members that disagree; adapters are drawn, since new ones change nothing."""
    members = []
    for seed, member in new_members(base, num_members, seed=0, lora_rank=lora_rank):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in member.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "head" in name):
                torch.nn.init.normal_(parameter, generator=generator)
        members.append(member)
    RewardEnsemble(members).save(folder)
    return folder


def config_of(base, prompts, *reward_models, **options):
    given = tuple(str(one) for one in reward_models)
    settings = dict(max_new_tokens=6, num_eval_rows=2, judge=False, batch_size=8, minibatch_size=8) | options
    return TrainTextConfig.preset(run_dir="none", model=str(base), rows=str(prompts), reward=given, **settings)


def run(base, prompts, folder, rewards, *flags):
    named = [part for one in rewards for part in ("--reward", str(one))]
    sizes = "--episodes 24 --batch-size 8 --minibatch-size 8 --epochs 1 --max-new-tokens 6 --num-eval-rows 4"
    fixed = ["--model", str(base), "--rows", str(prompts), "--run-dir", str(folder), "--no-judge"]
    return command_line([*fixed, *sizes.split(), "--checkpoint-every", "1", *named, *flags])


def test_an_ensemble_and_a_function_in_a_mixture_are_paid_logged_and_evaluated_again(
    base, own_reward, prompts, tmp_path
):
    ensemble, folder = save_ensemble(tmp_path / "many" / "model", base), tmp_path / "run"
    flags = ["--reward-weights", "1", "-0.25"]
    assert run(base, prompts, folder, [ensemble, f"{own_reward}:words"], *flags) == 0
    with open(folder / "progress.csv") as file:
        rows = [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
    rollouts = [row for row in rows if not np.isnan(row["rollout/score"])]  # other rows are of evaluations
    assert len(rollouts) == 3
    for row in rollouts:
        members = [row["rollout/score/many/0"], row["rollout/score/many/1"], row["rollout/score/words"]]
        assert row["rollout/score"] == pytest.approx(np.mean(members[:2]) - 0.25 * members[2], abs=1e-4)
        assert row["rollout/score_disagreement"] > row["rollout/score_disagreement/many"] > 0
    summary = json.loads((folder / "summary.json").read_text())
    for side in ("before", "after"):
        mean = (summary[f"score/many/0_{side}"] + summary[f"score/many/1_{side}"]) / 2
        assert summary[f"score_{side}"] == pytest.approx(mean - 0.25 * summary[f"score/words_{side}"], abs=1e-4)
        assert summary[f"score_disagreement_{side}"] > 0
    points = read_points(folder / "frontier.csv")
    assert points[-1]["score_disagreement"] == pytest.approx(summary["score_disagreement_after"])
    assert points[-1]["score/words"] == pytest.approx(summary["score/words_after"])
    again = evaluate_agent.main(evaluate_agent.EvaluateAgentConfig(agent=folder, episodes=4))
    for name in ("score_after", "score_disagreement_after", "score/many/1_after"):
        assert again[name] == pytest.approx(summary[name])


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_members_scores_become_one_as_the_flag_says(base, own_reward, prompts, tmp_path, combine):
    ensemble = save_ensemble(tmp_path / "many", base)
    rewards = [ensemble, f"{own_reward}:blues"]
    priced = {"reward_uncertainty_coef": 0.5} if combine == "uncertainty" else {}
    parts = build_parts(config_of(base, prompts, *rewards, reward_combine=combine, **priced))
    samples = parts.task.assessor.write(parts.task.models.start)
    flags = [bool(row.any()) for row in samples.completions == parts.task.assessor.tokenizer.eos_token_id]
    loaded = RewardEnsemble.load(ensemble)
    of_members = loaded.score_each(samples.openings, samples.endings, finished=flags)
    blues = [ending.split().count("blue") for ending in samples.endings]
    each = np.stack([*of_members, np.array(blues, dtype=np.float64)])
    expected = {"mean": each.mean(0), "worst": each.min(0), "uncertainty": each.mean(0) - 0.5 * each.var(0)}[combine]
    judged = parts.task.assessor.score(samples)
    np.testing.assert_allclose(judged.scores, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(judged.std, each.std(0), rtol=1e-4, atol=1e-5)
    assert list(judged.members) == ["many/0", "many/1", "blues"]


def test_a_run_on_several_rewards_resumes_where_an_undisturbed_one_ends(base, own_reward, prompts, tmp_path):
    ensemble = save_ensemble(tmp_path / "many", base, lora_rank=2)
    flags = ["--memory", "adapters", "--lora-rank", "2", "--reward-combine", "worst"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(base, prompts, whole, [ensemble, f"{own_reward}:words"], *flags) == 0
    rewards = [ensemble, f"{own_reward}:interrupts"]
    assert run(base, prompts, stopped, rewards, *flags) == 130
    assert run(base, prompts, stopped, rewards, *flags, "--value-coef", "0.3", "--resume") == 2
    assert run(base, prompts, stopped, rewards, *flags, "--resume") == 0
    first, second = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (whole, stopped))
    assert first == second


def test_an_ensemble_of_adapters_lives_on_the_policys_trunk_and_scores_the_same_there(base, prompts, tmp_path):
    ensemble = save_ensemble(tmp_path / "many", base, lora_rank=2)
    shared, apart = (build_parts(config_of(base, prompts, ensemble, memory=m)) for m in ("adapters", "shared"))
    samples = shared.task.assessor.write(shared.task.models.start)
    there, here = shared.task.assessor.score(samples), apart.task.assessor.score(samples)
    np.testing.assert_array_equal(there.scores, here.scores)
    assert (there.std > 0).all()
    assert {"reward_0", "reward_1"} <= set(shared.policy.adapters.peft.peft_config)
    assert shared.policy.adapters.active == "policy"
    names = [name for name, parameter in shared.policy.model.named_parameters() if parameter.requires_grad]
    assert names
    assert not [name for name in names if "reward" in name]


def test_two_reward_adapters_of_different_folders_live_there_too(base, prompts, tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        model = RewardModel.from_backbone(base, lora_rank=2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        model.save(folder)
    shared, apart = (build_parts(config_of(base, prompts, *folders, memory=m)) for m in ("adapters", "shared"))
    samples = shared.task.assessor.write(shared.task.models.start)
    there, here = shared.task.assessor.score(samples), apart.task.assessor.score(samples)
    assert list(there.members) == ["first", "second"]
    for name in there.members:
        np.testing.assert_array_equal(there.members[name], here.members[name])
    assert not np.array_equal(there.members["first"], there.members["second"])


def test_an_ensemble_with_another_tokenizer_than_the_policys_reads_the_text(base, prompts, tmp_path):
    """Trap T16. The same networks, with their embeddings moved to the other ids, say the same of the same words."""
    ours = save_ensemble(tmp_path / "ours", base)
    ensemble = RewardEnsemble.load(ours)
    own = AutoTokenizer.from_pretrained(base)
    theirs = word_tokenizer(sorted(own.get_vocab(), reverse=True))
    order = own.convert_tokens_to_ids(theirs.convert_ids_to_tokens(range(len(theirs))))
    assert order != list(range(len(order)))
    for member in ensemble.members:
        embeddings = member.backbone.get_input_embeddings().weight
        embeddings.data = embeddings.data[order]
        member.tokenizer = theirs
    RewardEnsemble(ensemble.members).save(tmp_path / "theirs")
    parts, same = (build_parts(config_of(base, prompts, tmp_path / name)) for name in ("theirs", "ours"))
    samples = parts.task.assessor.write(parts.task.models.start)
    read, ids = parts.task.assessor.score(samples), same.task.assessor.score(samples)
    np.testing.assert_allclose(read.scores, ids.scores, rtol=1e-4, atol=1e-5)
    assert np.std(read.scores) > 0
    assert run(base, prompts, tmp_path / "run", [tmp_path / "theirs"], "--memory", "adapters") == 0


def test_chats_are_scored_bare_by_each_member_of_an_ensemble(llama_dir, prompts, tmp_path):
    ensemble = save_ensemble(tmp_path / "many", llama_dir)
    parts = build_parts(config_of(llama_dir, prompts, ensemble, chat_template=True))
    samples = parts.task.assessor.write(parts.task.models.start)
    flags = [bool(row.any()) for row in samples.completions == parts.task.assessor.tokenizer.eos_token_id]
    expected = RewardEnsemble.load(ensemble).score_each(samples.openings, samples.endings, finished=flags)
    judged = parts.task.assessor.score(samples)
    assert list(judged.members) == ["many/0", "many/1"]
    for index, scores in enumerate(judged.members.values()):
        np.testing.assert_allclose(scores, expected[index], rtol=1e-4, atol=1e-5)


def test_the_plan_counts_every_member_and_a_language_model_under_several_adapters_once(base, prompts, tmp_path):
    def reward_bytes(ensemble, memory):
        table = planned_bytes(config_of(base, prompts, ensemble))[memory]
        return next(size for role, size in table.items() if "reward" in role)

    def file_bytes(folder):
        return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))

    whole = save_ensemble(tmp_path / "whole", base, num_members=3)
    assert reward_bytes(whole, "full") == file_bytes(whole) == reward_bytes(whole, "adapters")
    light = save_ensemble(tmp_path / "light", base, num_members=3, lora_rank=2)
    assert reward_bytes(light, "adapters") == file_bytes(light)
    start = build_parts(config_of(base, prompts, light)).task.models.start.model
    language_model = sum(parameter.numel() * 4 for parameter in start.parameters())
    assert reward_bytes(light, "full") == pytest.approx(file_bytes(light) + language_model, rel=0.01)


def test_names_are_as_short_as_they_can_be(tmp_path):
    assert scorer_names(["runs/a/model"]) == ["a"]
    assert scorer_names(["runs/a/model", "runs/b", "rules:words"]) == ["a", "b", "words"]
    assert scorer_names(["runs/x/rm", "runs/y/rm"]) == ["x-rm", "y-rm"]
    assert scorer_names(["one:words", "two:words"]) == ["one-words", "two-words"]
    with pytest.raises(ValueError, match="twice"):
        scorer_names(["a:b", "a:b"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--reward-weights", "1"], "expected one for each of the 2 scorers"),
        (["--reward-weights", "1", "2", "--reward-combine", "worst"], "leave one of them out"),
        (["--reward-weights", "0", "0"], "not all 0"),
        (["--reward-uncertainty-coef", "-1"], "number >= 0"),
        (["--reward-combine", "best"], "best"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_the_door(base, prompts, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as refusal:
        run(base, prompts, tmp_path / "run", ["a:b", "c:d"], *flags)
    assert refusal.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_damaged_ensemble_is_named(base, prompts, tmp_path, capsys):
    folder = save_ensemble(tmp_path / "many", base)
    (folder / "member_1" / "reward_model.json").unlink()
    assert run(base, prompts, tmp_path / "run", [folder]) == 2
    assert "member_1 holds no reward model" in capsys.readouterr().err


def calibrated_reward(base, folder, *, lora_rank=None):
    """A reward model that is sure of something, whose calibration is not the identity."""
    torch.manual_seed(0)
    model = RewardModel.from_backbone(base, lora_rank=lora_rank)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.calibrate([[4, 5], [6, 7, 8], [9]])
    model.save(folder)
    return folder


@pytest.mark.parametrize(("memory", "lora_rank"), [("full", None), ("adapters", 2)])
def test_a_critic_that_begins_as_the_reward_model_says_what_that_says_of_unfinished_texts(
    base, prompts, tmp_path, memory, lora_rank
):
    """Stiennon et al. 2020, section 3.4."""
    folder = calibrated_reward(base, tmp_path / "reward", lora_rank=lora_rank)
    ranks = {} if lora_rank is None else {"lora_rank": lora_rank}
    parts = build_parts(config_of(base, prompts, folder, memory=memory, critic_start="reward-model", **ranks))
    text = torch.tensor([[0, 4, 5, 6, 7, 8]])  # begins with the tokenizer's first token, as every prompt here
    values = parts.policy.completion_values(text[:, :2], text[:, 2:])[0]
    for t, value in enumerate(values):
        (expected,) = RewardModel.load(folder).score_rows([text[0, : 2 + t].tolist()])
        assert float(value) == pytest.approx(float(expected), abs=1e-5)
    assert float(values.std()) > 0


def test_a_critic_that_reads_no_bos_where_the_reward_model_does_begins_near_it_and_says_so(
    base, prompts, tmp_path, recwarn
):
    def critic_and_reward(model):
        reward = calibrated_reward(model, tmp_path / f"reward of {model.name}")
        parts = build_parts(config_of(model, prompts, reward, memory="full", critic_start="reward-model"))
        return parts.policy, RewardModel.load(reward)

    critic_and_reward(base)
    assert not [one for one in recwarn if "critic_start" in str(one.message)]
    bare = tmp_path / "bare"  # a tokenizer that has a bos token and does not put it before a text, as GPT-2's
    shutil.copytree(base, bare)
    written = json.loads((bare / "tokenizer.json").read_text())
    (bare / "tokenizer.json").write_text(json.dumps(written | {"post_processor": None}))
    with pytest.warns(UserWarning, match="opens a text with '<end>', the prompts do not"):
        critic, reward = critic_and_reward(bare)
    text = torch.tensor([[4, 5, 6, 7, 8]])
    value = float(critic.values(text))
    assert value == pytest.approx(float(reward.score_rows(text.tolist())[0]), abs=1e-5)
    assert value != pytest.approx(float(reward.score_tokens(text[:, :2], text[:, 2:])[0]), abs=1e-3)


def test_a_run_whose_critic_begins_as_the_reward_model_resumes_like_any_other(base, own_reward, prompts, tmp_path):
    folder = calibrated_reward(base, tmp_path / "reward")
    flags = ("--memory", "full", "--critic-start", "reward-model")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(base, prompts, whole, [folder, f"{own_reward}:words"], *flags) == 0
    rewards = [folder, f"{own_reward}:interrupts"]
    assert run(base, prompts, stopped, rewards, *flags) == 130
    assert run(base, prompts, stopped, rewards, *flags, "--resume") == 0
    first, second = ((at / "model" / "model.safetensors").read_bytes() for at in (whole, stopped))
    assert first == second


@pytest.mark.parametrize(
    ("flags", "rewards", "said"),
    [
        (["--memory", "shared"], None, "needs a critic of its own, memory full or adapters"),
        (["--memory", "full", "--algorithm", "grpo"], None, "needs a critic of its own"),
        (["--memory", "full"], ["own_rules:words"], "must be one, not function"),
        (["--memory", "adapters"], None, "the reward model is one over the same trunk"),
    ],
)
def test_a_critic_start_that_does_not_fit_is_refused(base, own_reward, prompts, tmp_path, capsys, flags, rewards, said):
    rewards = rewards or [calibrated_reward(base, tmp_path / "reward")]
    try:
        code = run(base, prompts, tmp_path / "run", rewards, *flags, "--critic-start", "reward-model")
    except SystemExit as refusal:
        code = refusal.code
    assert code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_column_of_the_prompts_reaches_the_reward_in_training_and_evaluation(llama_dir, own_reward, tmp_path):
    """With a chat template, whose special tokens the decoded prompt has lost."""
    path = tmp_path / "asked.jsonl"
    answers = ["blue", "four", "red", "green"] * 3
    chats = [[{"role": "user", "content": text}] for text in ["sky is"] * 10 + ["what is red", "and"]]
    rows = [{"messages": chat, "answer": answer} for chat, answer in zip(chats, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(llama_dir, path, f"{own_reward}:lengths", batch_size=12, minibatch_size=12)
    parts = build_parts(config)
    parts.collector.collect(parts.policy)
    played, asked = parts.collector.last, [row["answer"] for row in parts.task.envs.unwrapped.drawn_columns]
    _, endings = parts.task.assessor.decode(played, 12)
    expected = [100.0 * len(word) + len(text) for word, text in zip(asked, endings, strict=True)]
    assert played.scores.tolist() == expected
    assert len({len(word) for word in asked}) == 3
    written = parts.task.assessor.write(parts.task.models.start)
    held_out = [row["answer"] for row in written.columns]
    expected = [100.0 * len(word) + len(text) for word, text in zip(held_out, written.endings, strict=True)]
    assert parts.task.assessor.score(written).scores.tolist() == expected
    assert run(llama_dir, path, tmp_path / "run", [f"{own_reward}:lengths"]) == 0


def test_a_sequence_classifier_of_transformers_is_a_reward_model(base, prompts, tmp_path):
    config = AutoConfig.from_pretrained(base, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "foreign")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "foreign")
    settings = config_of(base, prompts, tmp_path / "foreign")
    weights = (tmp_path / "foreign" / "model.safetensors").stat().st_size
    for roles in planned_bytes(settings).values():
        assert next(size for role, size in roles.items() if "reward" in role) == weights
    assessor = build_parts(settings).task.assessor
    written = assessor.write(build_parts(settings).task.models.start)
    flags = (written.completions == 0).any(axis=1).tolist()
    expected = RewardClassifier.load(tmp_path / "foreign")(written.openings, written.endings, finished=flags)
    np.testing.assert_allclose(assessor.score(written).scores, expected, rtol=1e-5)
    assert run(base, prompts, tmp_path / "run", [tmp_path / "foreign"], "--memory", "adapters") == 0
