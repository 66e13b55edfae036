"""PPO from Python starts its critic as the environment's reward model wherever ``textenvs train-text`` does."""

import dataclasses

import gymnasium as gym
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2Model

from agents import GRPO, PPO, REINFORCE
from agents.functional.schedules import Linear
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import LoraOptions
from agents.lm.policy_reference import PolicyReference
from agents.lm.sampling import TokenSampling
from agents.recipes.rlhf.build import build_parts
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.train import _agent
from agents.text.config import TextAgentConfig
from agents.text.kl_controllers import AdaptiveKL
from agents.text.presets import REWARD_CRITIC
from reward_models import RewardModel
from reward_models.ensemble import RewardEnsemble
from textenvs import KLShaping, PreferenceReward
from textenvs.wrappers.kl_shaping import BETA

PRICE = REWARD_CRITIC["beta"]
OPENINGS = ["good film", "the plot is", "a", "very", "the film", "bad", "is a good", "the plot"]


@pytest.fixture
def reward(model_dir):
    torch.manual_seed(4)
    model = RewardModel.from_backbone(model_dir)
    model.calibrate([[0, 1, 2], [0, 3], [0, 4, 5, 6]])
    return model.eval()


@pytest.fixture
def make(model_dir, reward):
    """Environments of ten words that the reward model pays in."""

    def made(num_envs=8, **changed):
        parts = {"rows": ["good film", "the plot is", "a", "very"], "max_new_tokens": 4, "scorer": reward}
        parts |= {"reference": str(model_dir)} | changed
        return gym.make_vec("textenvs/TextGeneration-v0", num_envs=num_envs, **parts)

    return made


def started(agent):
    return agent.config.branches == REWARD_CRITIC["branches"]


def equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    return True


def test_the_two_doors_have_the_same_settings():
    command = TrainTextConfig.preset(run_dir="x").settled(1)
    for env in ("textenvs/MovieReview-v0", gym.make("textenvs/MovieReview-v0")):
        agent = PPO(env, batch_size=command.batch_size)
        assert agent.config == dataclasses.replace(command.agent_config(), seed=agent.config.seed)
        assert agent.env.beta == command.beta == PRICE
        assert agent.policy.critic == command.critic(command.memory) == "separate"


def test_the_two_doors_train_the_same_weights(make, model_dir, reward, tmp_path):
    """Bit for bit, with the reference of the command; the environment's own differs from it by rounding."""
    reward.save(tmp_path / "reward")
    for name, rows in (("train", OPENINGS), ("held_out", ["is very good", "and the"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(rows) + "\n")
    files = {name: str(tmp_path / f"{name}.txt") for name in ("train", "held_out")}
    settings = {"minibatch_size": 4, "seed": 3}
    config = TrainTextConfig.preset(
        run_dir="x", model=str(model_dir), reward=(str(tmp_path / "reward"),), max_new_tokens=4, judge=False,
        rows=files["train"], eval_rows=files["held_out"], batch_size=8, **settings,
    ).settled(1)  # fmt: skip
    command = _agent(config, build_parts(config)).learn(16)

    start = CausalLMPolicy.from_pretrained(model_dir, critic="none")
    own = make(rows=files["train"])
    shared = make(rows=files["train"], reference=PolicyReference(start, own.base.tokenizer))
    agent = PPO(shared, **settings).learn(16)
    assert agent.updates == command.updates == 2
    assert equal(agent.policy, command.policy)

    first, theirs = PPO(own, **settings), _agent(config, build_parts(config))
    mine, theirs = (each.collector.collect(each.policy)[0] for each in (first, theirs))
    for field in ("observations", "actions", "logprobs", "values", "mask", "terminated"):
        assert torch.equal(getattr(mine, field), getattr(theirs, field)), field
    torch.testing.assert_close(mine.ref_logprobs, theirs.ref_logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.rewards, theirs.rewards, rtol=1e-5, atol=1e-5)


def test_the_critics_first_values_are_the_rewards_of_unfinished_texts(make, reward):
    agent = PPO(make())
    assert started(agent)
    text = torch.tensor([[0, 1, 2, 3, 4, 5]])
    values = agent.policy.completion_values(text[:, :2], text[:, 2:])[0]
    expected = reward.score_rows([text[0, : 2 + t].tolist() for t in range(4)])
    torch.testing.assert_close(values, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    before = [parameter.clone() for parameter in reward.parameters()]
    agent.learn(16)
    assert all(torch.equal(a, b) for a, b in zip(before, reward.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"critic": "shared"}, {"whiten_rewards": True},
        {"lora": LoraOptions(rank=2), "critic": "adapter"}, {"async_rollouts": 1}, {"correction": "token_truncate"},
        {"normalize_advantages": "none"}, {"policy_loss": "cispo", "clip": 1.0}, {"config": TextAgentConfig()},
        {"objective": lambda parts: {}}, {"sampling": TokenSampling(top_k=3)},
    ],
    ids=lambda settings: ", ".join(settings),
)  # fmt: skip
def test_a_setting_that_asks_for_another_way_gets_what_it_had(make, settings):
    agent = PPO(make(), **settings)
    assert agent.config.branches == 0
    assert agent.config.critic_lam is None
    assert agent.config.lam == 0.95
    assert agent.env.beta == BETA
    if agent.policy.has_critic:
        assert not agent.policy.value_head.weight.any()


def test_other_settings_are_the_users_and_the_rest_the_presets(make):
    agent = PPO(make(), critic="separate", lam=0.8, learning_rate=1e-3, sampling=TokenSampling(temperature=0.7))
    assert started(agent)
    assert PPO(make(), branches=2).config.critic_lam == REWARD_CRITIC["critic_lam"]
    assert (agent.config.lam, agent.config.learning_rate, agent.config.critic_lam) == (0.8, 1e-3, 1.0)
    assert PPO(make()).config.learning_rate == Linear(4e-4)


def test_only_one_reward_model_of_the_policys_shape_with_a_model_as_reference(make, model_dir, reward):
    assert not started(PPO(make(scorer=[reward, lambda completions: [0.0 for _ in completions]])))
    assert not started(PPO(make(scorer=lambda completions: [0.0 for _ in completions])))
    assert not started(PPO(make(scorer=RewardEnsemble([reward, reward]))))
    assert not started(PPO(make(), policy=CausalLMPolicy.from_pretrained(model_dir)))
    assert not started(PPO(make(reference=None, tokenizer=str(model_dir)), policy=model_dir))
    assert not started(PPO(make(weights=[2.0])))  # pays twice what such a critic says
    assert started(PPO(make(), policy=model_dir))
    assert started(PPO(make(), policy=AutoModelForCausalLM.from_pretrained(model_dir)))
    assert started(PPO(make(scorer=RewardEnsemble([reward]))))
    adapter = RewardModel.from_backbone(model_dir, lora_rank=2)
    assert not started(PPO(make(scorer=adapter)))
    for changed in ({"n_layer": 2}, {"n_head": 4}, {"n_inner": 8}):
        backbone = GPT2Model(GPT2Config(**reward.backbone.config.to_dict() | changed))
        assert not started(PPO(make(scorer=RewardModel(backbone, reward.tokenizer).eval())))


def test_the_price_is_the_presets_where_nobody_chose_one_and_each_algorithm_keeps_its_own(make):
    envs = make()
    assert PPO(envs).env.beta == PRICE
    assert GRPO(envs).env.beta == BETA
    assert PPO(envs).env.beta == PRICE
    assert PPO(make(), beta=0.3).env.beta == 0.3
    assert PPO(make(beta=BETA)).env.beta == BETA
    assert PPO(make(), kl_controller=AdaptiveKL(target=1.0, horizon=64)).env.beta == PRICE
    assert PPO(gym.make("textenvs/MovieReview-v0", beta=0.1), batch_size=2).env.beta == 0.1


def test_agents_in_one_environment_each_go_on_at_their_own_price_and_charge(make):
    """The one that was made last set both for all of them."""
    envs = make()
    ppo, reinforce, in_the_loss = PPO(envs, seed=0), REINFORCE(envs, seed=0), REINFORCE(envs, seed=0, kl_in="loss")
    for agent, price, charged in ((ppo, PRICE, True), (reinforce, BETA, True), (in_the_loss, BETA, False)):
        agent.learn(8)
        assert agent.metrics["rollout/beta"] == price
        assert envs.charge is charged
    envs.beta = 0.3  # chosen, for all
    assert [agent.learn(8).metrics["rollout/beta"] for agent in (ppo, reinforce)] == [0.3, 0.3]


def test_another_environment_goes_on_at_its_own_price_or_else_at_the_one_so_far(make):
    agent = PPO(make())
    agent.set_env(make(beta=0.1))
    assert agent.env.beta == 0.1
    agent.set_env(make())
    assert agent.env.beta == 0.1
    in_the_loss = GRPO(make(), kl_in="loss")
    in_the_loss.set_env(make())
    assert in_the_loss.env.charge is False


def test_a_loaded_agent_goes_on_bit_for_bit_and_needs_no_reward_model_to_start_from(make, tmp_path):
    agent = PPO(make(), policy=None).learn(16)
    path = agent.save(tmp_path / "agent.safetensors")
    expected = agent.learn(16)
    loaded = PPO.load(path, env=make())
    assert loaded.env.beta == PRICE
    assert loaded.policy.critic == "separate"
    assert equal(loaded.learn(16).policy, expected.policy)
    moved = PPO.load(path, env=make(scorer=lambda completions: [0.0 for _ in completions]))
    assert moved.learn(8).steps == 24


def test_a_critics_start_can_be_asked_for_and_is_refused_where_there_is_none(make, model_dir, reward):
    agent = PPO(make(scorer=[reward, lambda completions: [0.0 for _ in completions]]), critic_start="reward-model")
    assert agent.config.branches == 0
    assert agent.env.beta == BETA
    assert equal(agent.policy.critic_trunk, reward.backbone)
    plain = PreferenceReward(make(scorer=None, reference=None, tokenizer=str(model_dir)), lambda completions: [0.0] * 8)
    for envs in (plain.env, plain, KLShaping(plain, str(model_dir), 0.1)):
        with pytest.raises(ValueError, match="critic_start reward-model: "):
            PPO(envs, policy=model_dir, critic_start="reward-model")
    with pytest.raises(ValueError, match="own weights, received 'shared'"):
        PPO(make(), critic="shared", critic_start="reward-model")
