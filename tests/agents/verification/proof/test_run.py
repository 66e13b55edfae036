"""verify passes on what is right, and, above all, fails on what is wrong, with the offending numbers."""

from __future__ import annotations

import copy
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tokenizers import Tokenizer, models
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedTokenizerFast

from agents import PPO, PPOConfig
from agents.lm.causal_lm import CausalLMPolicy
from agents.verification.checks import Check, at_most, joint, near, not_applicable, run
from agents.verification.environments.contract import env_checks
from agents.verification.environments.subject import Subject
from agents.verification.models.profile import ENDS, LOGITS, POSITIONS, TEMPLATE, profile_checks
from agents.verification.proof import core as verify_core
from agents.verification.proof import training as verify_training
from agents.verification.proof.command import command_line
from agents.verification.proof.core import core_checks, tiny_models
from agents.verification.proof.run import checks_of_model, tokenizer_fits


class Walk(gym.Env):
    """A walk that ends far from 0; ``fault`` names what is wrong with it."""

    fault = ""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-9, 9, (2,)), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        source = np.random.default_rng() if self.fault == "seed" else self.np_random
        self.place, self.clock = source.normal(size=2).astype(np.float32), 0
        if self.fault == "resets itself":
            self.place[:] = 0
        return self.place.copy(), {}

    def step(self, action):
        self.clock += 1
        self.place = np.add(self.place, [action - 1, 0.1]).astype(np.float32).clip(-9, 9)
        reward = float("nan") if self.fault == "nan" and self.clock == 7 else float(self.place[0])
        over = self.clock == 11
        seen = self.place + 20 if self.fault == "outside" and self.clock == 5 else self.place.copy()
        if over and self.fault == "resets itself":
            seen = self.reset()[0]
        if self.fault == "raises" and self.clock == 3:
            raise RuntimeError("the wheel came off")
        return seen, reward, over, False, {}


class WrongFinal(SyncVectorEnv):
    """Hands over the next episode's first observation as the last one."""

    def __init__(self, num_envs: int, autoreset_mode=AutoresetMode.SAME_STEP, fault: str = "final_obs") -> None:
        super().__init__([Walk] * num_envs, autoreset_mode=autoreset_mode)
        self.fault = fault

    def step(self, actions):
        seen, rewards, terminated, truncated, info = super().step(actions)
        truncated, terminated = terminated.copy(), truncated.copy()  # this one's clock is a time limit
        if "final_obs" in info and self.fault == "final_obs":
            info["final_obs"] = np.array([*seen, None], dtype=object)[:-1]
        return seen, rewards, terminated, truncated, info


FAULTS = {
    "seed": "same seed and actions",
    "nan": "observations and rewards are finite",
    "outside": "lie in their space",
    "resets itself": "not the next episode's first",
    "raises": "reset and step keep their contract",
}
for _fault in ("", *FAULTS):
    _kind = type("Walk_" + _fault.replace(" ", "_"), (Walk,), {"fault": _fault})
    gym.register(f"Walk-{_fault.replace(' ', '-') or 'right'}-v0", _kind)
gym.register("FinalRight-v0", vector_entry_point=lambda **options: WrongFinal(**options, fault=""))
gym.register("FinalWrong-v0", vector_entry_point=WrongFinal)


def failures(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.passed is False]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Walk-right-v0", "FinalRight-v0"])
def test_right_environments_pass(env_id):
    checks = run(env_checks(Subject(env_id)))
    assert failures(checks) == []
    assert sum(check.passed is True for check in checks) >= 9


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_environment_is_caught(fault):
    found = failures(run(env_checks(Subject(f"Walk-{fault.replace(' ', '-')}-v0"))))
    assert any(FAULTS[fault] in check.claim for check in found), found
    if fault == "raises":
        assert any("the wheel came off" in check.measured for check in found)


def test_a_vector_environment_with_the_wrong_final_observation_is_caught():
    found = failures(run(env_checks(Subject("FinalWrong-v0"))))
    assert any("not the next episode's first" in check.claim for check in found)


def test_a_wrong_bootstrap_is_caught(monkeypatch):
    from agents.control.collector import StepCollector

    monkeypatch.setattr(StepCollector, "_finals", lambda self, seen, info, index: list(seen[index]))
    found = failures(run(env_checks(Subject("Pendulum-v1"))))
    assert any("V after a time limit" in check.claim for check in found)


def test_a_saved_agent_can_be_the_one_that_acts(tmp_path, capsys):
    path = PPO("CartPole-v1", PPOConfig(num_envs=2, num_steps=16, hidden=(8,))).save(tmp_path / "agent")
    assert failures(run(env_checks(Subject("CartPole-v1", checkpoint=path)))) == []
    assert command_line(["--env", "Pendulum-v1", "--policy", str(path)]) == 2
    assert "spaces" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_right_models_pass_from_their_directory(name, tmp_path, capsys):
    tiny_models()[name].save_pretrained(tmp_path / "model")
    assert command_line(["--model", str(tmp_path / "model"), "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["failed"] == 0
    assert summary["passed"] >= 25
    assert (tmp_path / "run" / "verify.md").read_text().count("| pass |") == summary["passed"]
    assert "claim" in capsys.readouterr().out


def model_failures(model) -> list[str]:
    return [check.claim for check in failures(run(checks_of_model(model)))]


def test_dropout_that_stays_on_is_caught():
    class Stubborn(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, 0.1, training=True)

    model = tiny_models()["GPT-2"]
    model.transformer.drop = Stubborn()
    assert any("the same twice (T9)" in claim for claim in model_failures(model))


def test_dropout_that_wakes_up_in_training_mode_is_caught(monkeypatch):
    monkeypatch.setattr(CausalLMPolicy, "train", torch.nn.Module.train)
    assert any("after train() (T9)" in claim for claim in model_failures(tiny_models()["GPT-2"]))


def test_a_model_that_sees_the_future_is_caught():
    model = tiny_models()["Llama"]

    def look_ahead(module, args, output):
        states = output.last_hidden_state
        late = states[:, 4:] + states[:, 4:].mean(1, keepdim=True)  # behind what is tried when a model is loaded
        output.last_hidden_state = torch.cat([states[:, :4], late], 1)
        return output

    model.model.register_forward_hook(look_ahead)
    found = model_failures(model)
    for trap in ("(T1)", "(T2)", "at or before t (T3)"):
        assert any(trap in claim for claim in found), found


def test_nan_weights_are_caught():
    model = copy.deepcopy(tiny_models()["GPT-2"])
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = float("nan")
    assert "logits that are not finite" in model_failures(model)


def test_the_core_passes():
    checks = run(core_checks())
    assert failures(checks) == []
    assert len(checks) >= 50


def test_a_planted_fault_fails_and_the_exit_code_says_so(monkeypatch, tmp_path, capsys):
    from agents.functional import losses

    short = core_checks()[:1]
    monkeypatch.setattr(verify_core, "core_checks", lambda: short)
    assert command_line(["--rooms", "core"]) == 0
    monkeypatch.setattr(losses, "value_loss", lambda values, returns, mask, *rest: (values - returns).square().mean())
    assert command_line(["--rooms", "core", "--run-dir", str(tmp_path / "run")]) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["passed"], summary["failed"]) == (0, 1)
    assert "| FAIL |" in (tmp_path / "run" / "verify.md").read_text()
    assert "numpy" in capsys.readouterr().err


def test_the_whole_proof_has_gaps_of_all_that_is_trained_there():
    quick, full = (verify_training.gap_checks(full=full) for full in (False, True))
    assert 4 <= len(quick) < len(full)
    assert len({claim for claim, _ in full}) == len(full)


@pytest.mark.slow
def test_a_resumed_run_is_compared_in_a_new_process():
    assert failures(list(verify_training.resumed())) == []


def test_bad_input_is_said(capsys, tmp_path):
    assert command_line(["--env", "NoSuchTask-v0"]) == 2
    assert command_line(["--model", str(tmp_path / "nothing")]) == 2
    assert "expected a model's folder" in capsys.readouterr().err
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert command_line(["--model", str(tmp_path / "adapter")]) == 2
    assert "expected a whole model, received a LoRA adapter" in capsys.readouterr().err


def test_a_tokenizer_of_more_tokens_than_the_model_embeds_fails():
    model = tiny_models()["GPT-2"]
    embedded = model.get_input_embeddings().num_embeddings
    assert tokenizer_fits("fits", None, model).passed is None
    for count, fits in ((embedded, True), (embedded + 1, False)):
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1")
        assert tokenizer_fits("fits", tokenizer, model).passed is fits


def test_a_model_is_described_by_what_was_found_in_it(chat_tokenizer):
    config = GraniteConfig(
        vocab_size=len(chat_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=24, logits_scaling=4.0,
        eos_token_id=[0, 7],
    )  # fmt: skip
    model, tokenizer = GraniteForCausalLM(config).eval(), copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }} <new> {% endfor %}"
    found = {check.claim: check for check in run(profile_checks(model, tokenizer))}
    assert "0 <end> (config.json" in found[ENDS].measured
    assert "4 <new> (chat template)" in found[ENDS].measured
    assert found[TEMPLATE].passed
    assert found[LOGITS].measured == "scale 0.25, no cap"
    assert found[POSITIONS].measured == "24 tokens"
    tokenizer.chat_template = (
        "{{ messages | length }}{% for turn in messages %}{{ turn['content'] }} <new> {% endfor %}"
    )
    (rewriting,) = (check for check in run(profile_checks(model, tokenizer)) if check.claim == TEMPLATE)
    assert rewriting.passed is None
    assert "turn 2 rewrites what was before" in rewriting.measured


def test_checks_say_nan_is_a_failure_and_errors_are_failures():
    def breaks():
        raise KeyError("gone")

    nan = float("nan")
    checks = run(
        [("a", lambda: at_most("a", nan, 1.0)), ("b", lambda: near("b", [1, nan], [1, 1], 9.0)), ("c", breaks)]
    )
    assert [check.passed for check in checks] == [False, False, False]
    assert checks[2].measured == "KeyError: 'gone'"
    parts = [at_most("", 1.0, 2.0), not_applicable("", "no"), at_most("", 3.0, 2.0)]
    assert joint("j", parts).passed is False
    assert joint("j", parts[:2]).passed is True
    assert joint("j", parts[1:2]).passed is None
