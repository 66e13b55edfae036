"""A text agent that goes on in another environment is what one loaded into that environment is, or is refused."""

import gymnasium as gym
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import GRPO, PPO
from agents.lm.causal_lm import CausalLMPolicy
from agents.text.kl_controllers import AnnealedKL


def words(prompts, completions):
    return [float(len(text.split())) for text in completions]


class Echo(gym.Env):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "the film", {}

    def step(self, action):
        return "very", 1.0, False, False, {}


@pytest.fixture
def make(model_dir):
    def made(**changed):
        parts = {"rows": ["good film", "the plot is"], "max_new_tokens": 4, "scorer": words, "num_envs": 8}
        return gym.make_vec("textenvs/TextGeneration-v0", **parts | {"reference": str(model_dir)} | changed)

    return made


@pytest.fixture
def dialogues(model_dir):
    return gym.make_vec(
        "textenvs/Dialogue-v0", num_envs=8, env=Echo, reference=str(model_dir), max_turns=2, max_turn_tokens=2,
        max_tokens=20,
    )  # fmt: skip


@pytest.fixture
def other_model(model_dir):
    """Of the same shape, with other weights."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "kind, settings",
    [(PPO, {"branches": 2, "critic": "separate"}), (GRPO, {"kl_in": "loss", "kl_estimator": "full"})],
    ids=["branches", "exact KL"],
)
def test_the_new_environments_reference_is_the_one_that_counts(make, model_dir, other_model, kind, settings):
    """Until now its KL was charged, and branches and the exact KL were still measured against the first reference."""
    agent = kind(make(), **settings)
    agent.set_env(make(reference=other_model, tokenizer=str(model_dir)))
    rows = torch.tensor([[0, 1, 2, 3]])
    expected = CausalLMPolicy(other_model, eos_token_id=agent.policy.eos_token_id, critic="none")
    found, wanted = (each.completion_logprobs(rows[:, :2], rows[:, 2:]) for each in (agent.reference, expected))
    assert torch.equal(found[0], wanted[0])


def test_what_the_settings_do_not_go_with_is_refused_and_the_agent_stays_where_it_was(make, model_dir, dialogues):
    bare = make(reference=None, tokenizer=str(model_dir))
    for agent, envs, said in (
        (PPO(make(), branches=2), dialogues, "branches: expected texts of one turn"),
        (PPO(make(), branches=2), bare, "branches need an environment whose KLShaping"),
        (GRPO(make(), kl_in="loss"), bare, 'kl_in "loss": expected an environment with KLShaping'),
        (GRPO(make()), make(budget="truncate"), 'budget: expected "terminate"'),
        (GRPO(dialogues, credit="turn"), make(), 'credit "turn".*expected an environment of dialogues'),
        (PPO(make()), "textenvs/ExactSpelling-v0", "policy: expected the environment's vocabulary of 5 tokens"),
    ):
        before = agent.env, agent.env_id, agent.collector, agent.reference
        with pytest.raises(ValueError, match=said):
            agent.set_env(envs)
        assert (agent.env, agent.env_id, agent.collector, agent.reference) == before


def test_a_price_that_falls_goes_on_where_it_is(make):
    agent = PPO(make(), kl_controller=AnnealedKL(start=0.5, end=0.1, horizon=32)).learn(16)
    assert agent.env.beta == pytest.approx(0.5 - 0.4 * 16 / 32)
    agent.set_env(make())
    assert agent.learn(8).metrics["rollout/beta"] == pytest.approx(0.3)
    agent.set_env(make(beta=0.4))
    assert agent.learn(8).metrics["rollout/beta"] == pytest.approx(0.4)


def test_an_id_is_made_with_as_many_rows_as_were_trained_on(make):
    agent = PPO("textenvs/MovieReview-v0", batch_size=2, branches=0)
    agent.set_env(gym.make_vec("textenvs/MovieReview-v0", num_envs=2))
    agent.set_env("textenvs/MovieReview-v0")
    assert agent.env.num_envs == 2
