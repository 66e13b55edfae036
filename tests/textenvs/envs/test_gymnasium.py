"""The registered ids, Gymnasium's and Stable-Baselines3's checkers, and how light the import is."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import textenvs
from textenvs import KLShaping, PreferenceReward, TokenEnv
from textenvs.tokens.prompts import load_prompts

REVIEW, GENERATION = "textenvs/MovieReview-v0", "textenvs/TextGeneration-v0"
PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]


def length_score(prompts, completions):
    return [float(len(text)) for text in completions]


@pytest.fixture
def parts(tokenizer, tiny_gpt2):
    return {
        "rows": PROMPTS,
        "tokenizer": tokenizer,
        "scorer": length_score,
        "reference": tiny_gpt2(),
        "beta": 0.1,
        "max_new_tokens": 5,
        "eos_token_id": 0,
    }


@pytest.fixture
def shipped(tmp_path, monkeypatch, tiny_gpt2, tokenizer):
    """Stands for the shipped models: a language model in the right place, and a reward model that needs none."""
    tiny_gpt2(positions=128).save_pretrained(tmp_path / "language_model")
    tokenizer.save_pretrained(tmp_path / "language_model")
    monkeypatch.setenv("TEXTENVS_ASSETS", str(tmp_path))
    monkeypatch.setattr("reward_models.movie_review.load_scorer", lambda: length_score)


@pytest.mark.parametrize("name", [REVIEW, GENERATION])
def test_both_checkers_pass_without_a_warning(parts, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(name, **parts)  # with the default wrappers
        env.reset(seed=0)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
        check_env(gym.make(name, **parts).unwrapped)
        check_env(gym.make(name, **parts, disable_env_checker=True).unwrapped, skip_close_check=True)
        sb3_check_env(gym.make(name, **parts))


def test_the_scalar_environments_data_are_plain_numbers(parts):
    env = gym.make(GENERATION, **parts)
    observation, info = env.reset(seed=0)
    assert info == {"stop_reason": ""}
    assert observation.dtype == np.int64
    _, reward, terminated, truncated, info = env.step(np.int64(5))
    assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]
    assert info.keys() == {"stop_reason", "kl"}
    _, _, terminated, _, info = env.step(0)
    assert terminated
    assert info["stop_reason"] == "eos"
    assert info["score"] == 3.0  # " w3", the end-of-text token is no text
    assert type(info["score"]) is float


def test_make_vec_builds_the_native_vector_environment_with_the_parts_given(parts):
    envs = gym.make_vec(GENERATION, num_envs=4, autoreset_mode="NextStep", **parts)
    assert isinstance(envs, KLShaping)
    assert isinstance(envs.env, PreferenceReward)
    assert isinstance(envs.unwrapped, textenvs.TokenVectorEnv)
    assert (envs.num_envs, envs.beta, envs.metadata["autoreset_mode"]) == (4, 0.1, AutoresetMode.NEXT_STEP)
    assert envs.spec.id == GENERATION
    sync = gym.make_vec(GENERATION, num_envs=2, vectorization_mode="sync", **parts)
    assert sync.reset(seed=0)[0].shape == (2, 4 + 5)


def test_make_vec_builds_groups_whose_kl_the_loss_charges(parts):
    envs = gym.make_vec(GENERATION, num_envs=4, group_size=2, charge=False, **parts)
    assert (envs.charge, envs.unwrapped.group_size) == (False, 2)
    prompts = envs.unwrapped.draw_prompts(seed=0)
    assert (prompts[::2] == prompts[1::2]).all()


def test_make_vec_takes_several_scorers_and_how_they_are_combined():
    def total(**options):
        scorers = [lambda p, c: [1.0], lambda p, c: [4.0]]
        tokens = {"rows": [[1]], "vocab_size": 5, "eos_token_id": 0, "max_new_tokens": 1}
        scorers = [type("Scorer", (), {"score_tokens": staticmethod(one)})() for one in scorers]
        envs = gym.make_vec(GENERATION, num_envs=1, scorer=scorers, **tokens, **options)
        envs.reset(seed=0)
        return envs.step(np.array([2]))[1].item()

    assert total() == 2.5
    assert total(combine="worst") == 1
    assert total(combine="uncertainty", uncertainty_coef=1.0) == 2.5 - 1.5**2
    assert total(weights=(2.0, -0.5)) == 0


def test_no_episode_limit_is_registered_because_the_budget_is_the_tasks():
    for name in (REVIEW, GENERATION):
        assert gym.spec(name).max_episode_steps is None


def test_generation_without_scorer_and_reference_pays_nothing():
    envs = gym.make_vec(GENERATION, num_envs=2, rows=[[1], [2]], vocab_size=5, eos_token_id=0, max_new_tokens=2)
    assert isinstance(envs, textenvs.TokenVectorEnv)
    with pytest.raises(ValueError, match="rows: expected a list of rows or of prompts, a data set or the path"):
        gym.make_vec(GENERATION, num_envs=2)
    with pytest.raises(gym.error.NameNotFound):
        gym.make("textenvs/NoSuchEnv-v0")


def test_the_movie_reviews_work_with_no_arguments_at_all(shipped):
    envs = gym.make_vec(REVIEW, num_envs=3)
    assert isinstance(envs, KLShaping)
    assert envs.unwrapped.max_new_tokens == 24
    envs.reset(seed=0)
    assert envs.step(np.array([5, 0, 5]))[4]["score"].shape == (3,)
    assert gym.make(REVIEW).reset(seed=0)[0].ndim == 1


def test_a_reference_directory_brings_its_tokenizer(shipped):
    from textenvs import assets

    folder = assets.language_model_dir()
    envs = gym.make_vec(GENERATION, num_envs=2, rows=PROMPTS, reference=folder)
    assert envs.unwrapped.tokenizer is not None
    assert envs.unwrapped.eos_token_id == 0
    assert gym.make_vec(GENERATION, num_envs=2, rows=PROMPTS, tokenizer=str(folder)).vocab_size == 40


def test_missing_assets_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTENVS_ASSETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected the shipped language_model at"):
        gym.make_vec(REVIEW, num_envs=1)


def test_sb3s_own_ppo_trains_on_the_scalar_environment(parts):
    env = gym.make(GENERATION, **parts, acting=lambda observations, actions: np.full(len(actions), -1.0))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1, device="cpu", seed=0)
    model.learn(total_timesteps=64)
    assert model.num_timesteps == 64
    assert len(model.ep_info_buffer) > 5


def test_a_scalar_view_needs_one_environment_without_autoreset(make_envs):
    with pytest.raises(ValueError, match="received 2 and"):
        TokenEnv(make_envs(2, autoreset_mode="Disabled"))
    with pytest.raises(ValueError, match="SAME_STEP"):
        TokenEnv(make_envs(1))


@pytest.mark.parametrize("option", [{"num_envs": 2}, {"autoreset_mode": "NextStep"}])
def test_what_only_several_environments_have_is_refused_for_one(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}: gym.make makes a single .*call gym.make_vec"):
        gym.make("textenvs/TextGeneration-v0", rows=[[1]], vocab_size=4, **option)


def test_the_openings_are_many_short_lower_case_and_different():
    from textenvs.assets import OPENINGS

    lines = OPENINGS.read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 200
    assert len(set(lines)) == len(lines)
    assert all(line == line.lower().strip() and 2 <= len(line.split()) <= 6 for line in lines)
    assert len(load_prompts(OPENINGS, lambda text: {"input_ids": [1]}, vocab_size=2)) == len(lines)


def test_importing_the_package_loads_no_heavy_library():
    heavy = ("torch", "transformers", "stable_baselines3", "tokenizers", "reward_models", "agents")
    program = f"import sys, textenvs; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("env_id", [GENERATION, REVIEW, "textenvs/ExactRandom-v0"])
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_an_unknown_option_of_an_id_is_refused_with_the_nearest_name(env_id, make):
    with pytest.raises(ValueError, match="'group_sice' is no option of this environment; did you mean 'group_size'"):
        make(env_id, group_sice=2)
