"""Our environments in TRL's shape: the same game, tools as methods, seeds, faults; and TRL's own trainer plays it."""

import functools
import inspect
import json
import re
from pathlib import Path

import gymnasium as gym
import pytest
from transformers.utils.chat_template_utils import get_json_schema

from textenvs import rewards
from textenvs.dialogues.environment_factory import environment_factory
from textenvs.dialogues.guess import GuessTheNumber
from textenvs.dialogues.sub_environments import DialogueError
from textenvs.dialogues.tools import ToolEnv


def halving(text: str, least: int = 1, most: int = 16) -> str:
    """The next guess, from all that was written so far."""
    for guess, answer in re.findall(r"(\d+)\D*?(higher|lower)", text):
        least, most = (int(guess) + 1, most) if answer == "higher" else (least, int(guess) - 1)
    return str((least + most) // 2)


def played(seed):
    """Observations and rewards of the game played directly by halving."""
    env, history, rewards_, over = GuessTheNumber(), "", [], False
    seen = [env.reset(seed=seed)[0]]
    while not over:
        guess = halving(history)
        text, reward, over, _, _ = env.step(guess)
        history += f"{guess} {text} "
        seen.append(text)
        rewards_.append(reward)
    return seen, rewards_


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first number.
        b: the second number.
    """
    return a + b


def test_the_class_plays_the_same_game():
    made = environment_factory(GuessTheNumber)
    assert made.__name__ == "GuessTheNumber"  # TRL's name of the reward
    for seed in range(8):
        env = made()
        seen, history = [env.reset(seed=seed, prompt="p")], ""
        while not seen[-1].startswith("right"):
            guess = halving(history)
            seen.append(env.answer(text=guess))
            history += f"{guess} {seen[-1]} "
        expected, paid = played(seed)
        assert seen == expected
        assert env.get_reward() == pytest.approx(sum(paid))
        with pytest.raises(ValueError, match="it is over"):
            env.answer("1")


def test_rollouts_of_a_group_begin_alike_and_rows_without_a_seed_are_refused():
    made = environment_factory(GuessTheNumber)
    twins = [made(), made()]
    assert len({twin.reset(seed=5) + twin.answer("8") for twin in twins}) == 1
    with pytest.raises(ValueError, match=r"a column seed, of integers, received columns \['prompt'\]"):
        made().reset(prompt="p")


def test_a_tool_environments_tools_are_methods_with_their_own_arguments():
    rows = [{"prompt": "What is 19 plus 23?", "answer": "42"}]
    made = environment_factory(
        functools.partial(ToolEnv, [add], rows=rows, reward=rewards.number(), error_reward=-0.25)
    )
    env = made()
    assert get_json_schema(env.add)["function"] == get_json_schema(add)["function"]
    public = {name for name, _ in inspect.getmembers(made, inspect.isfunction) if name[0] != "_"}  # as TRL looks
    assert public == {"reset", "get_reward", "answer", "add"}
    assert env.reset(seed=0, prompt="p") == "What is 19 plus 23?"
    assert env.add(a=19, b=23) == "42"
    assert env.add(b=23).startswith("error: add: missing a required argument: 'a'")
    assert env.get_reward() == -0.25
    assert env.answer("It is 42.") == ""
    assert env.get_reward() == 0.75
    named = functools.wraps(add)(lambda *args: add(*args))
    named.__name__ = "reset"
    with pytest.raises(ValueError, match="another name than 'reset'"):
        environment_factory(functools.partial(ToolEnv, [named], rows=rows))


class Failing(gym.Env):
    def reset(self, *, seed=None, options=None):
        return [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], {}

    def step(self, action):
        raise OSError("no disk")


def test_a_fault_of_the_environment_is_not_only_told_to_the_model():
    env = environment_factory(Failing)()
    assert env.reset(seed=1) == "a\nb"
    with pytest.raises(DialogueError, match="in turn 1: OSError: no disk"):
        env.answer("x")
    with pytest.raises(DialogueError, match=r"sub-environment 0 \(Failing\), in turn 1: OSError: no disk"):
        env.get_reward()
    env.reset(seed=1)
    assert env.get_reward() == 0.0
    with pytest.raises(ValueError, match="env: expected an id"):
        environment_factory(Failing())


def test_what_is_made_for_trl_is_taken_back_as_a_task():
    env = ToolEnv(task=environment_factory(GuessTheNumber), rows=[{"seed": 3}])
    text, _ = env.reset(seed=0)
    seen, paid = played(3)
    assert text == seen[0]
    history, got = "", []
    for expected in seen[1:]:
        guess = halving(history)
        [turn], reward, *_ = env.step(
            f'<tool_call>{{"name": "answer", "arguments": {{"text": "{guess}"}}}}</tool_call>'
        )
        history += f"{guess} {turn['content']} "
        assert turn["content"] == expected
        got.append(reward)
    assert got == pytest.approx(paid)


def byte_tokenizer(template):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = template
    return made


def test_trls_trainer_plays_it_and_is_paid_what_the_game_pays(tmp_path, monkeypatch):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    tokenizer = byte_tokenizer(template.read_text())
    sizes = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=4096, **sizes))
    scored = []

    class Scripted(trl.GRPOTrainer):
        """Halving, whatever the model: everything else is TRL's own."""

        def _generate_single_turn(self, prompt_ids, *_, **__):
            said = []
            for text in self.processing_class.batch_decode(prompt_ids):
                played_so_far = text.rpartition("<|im_start|>user\nPlay.")[2]
                call = {"name": "answer", "arguments": {"text": halving(played_so_far.replace("16 :", ""))}}
                over = "right" in played_so_far
                said.append("Done.<|im_end|>" if over else f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>")
            return [self.processing_class(text)["input_ids"] for text in said], None

        def _calculate_rewards(self, inputs, prompts, completions, *more):
            found = super()._calculate_rewards(inputs, prompts, completions, *more)
            scored.extend(zip(inputs, completions, found[:, 0].tolist(), strict=True))
            return found

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    rows = [{"prompt": [{"role": "user", "content": "Play. "}], "seed": seed} for seed in range(4)]
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=2, use_cpu=True,
        max_completion_length=1500, report_to=[], save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = Scripted(
        model=model, args=settings, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        environment_factory=environment_factory(GuessTheNumber),
    )  # fmt: skip
    trainer.train()
    assert trainer.reward_func_names == ["GuessTheNumber"]
    assert len(scored) == 8
    assert {row["seed"] for row, _, _ in scored} == {0, 1, 2, 3}
    for row, completion, score in scored:
        seen, paid = played(row["seed"])
        assert [turn["content"] for turn in completion if turn["role"] == "tool"] == seen[1:]
        assert score == pytest.approx(sum(paid))
    assert trainer.state.log_history[-1]["train_runtime"] > 0
