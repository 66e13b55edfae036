"""PPO, GRPO, RLOO and REINFORCE on whatever they are given: ids, environments, models, modules, SB3's helpers."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformReward
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import GRPO, PPO, REINFORCE, RLOO, TRPO, PPOConfig, load_agent
from agents.algorithms.text import TextAlgorithm
from agents.control.ppo import ControlPPO
from agents.interfaces import Evaluation
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import LoraOptions
from agents.runs.checkpoint import CheckpointError
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from agents.text.kl_controllers import AdaptiveKL, AnnealedKL
from textenvs.envs.scalar import TokenEnv
from textenvs.tokens.rows import PAD

PARTS = dict(rows=["good film", "the plot is", "a", "very"], max_new_tokens=4, beta=0.1)
SMALL = dict(num_envs=2, num_steps=8, minibatch_size=8, epochs=1, hidden=(4,), seed=3)


def bad_words(prompts, completions):
    return [float(text.split().count("bad")) for text in completions]


def text_envs(model_dir, num_envs=8, **changed):
    parts = PARTS | {"scorer": bad_words, "reference": str(model_dir)} | changed
    return gym.make_vec("textenvs/TextGeneration-v0", num_envs=num_envs, **parts)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class OwnController:
    start = None

    def updated(self, beta, kl, episodes):
        return beta


class LSTMPolicy(nn.Module):
    """A recurrent network over rows of tokens: what the docs say that a policy of one's own needs."""

    keeps_rows = True
    has_critic = True

    def __init__(self, vocab_size, eos_token_id, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.vocab_size, self.eos_token_id = vocab_size, eos_token_id
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.actor, self.critic = nn.Linear(width, vocab_size), nn.Linear(width, 1)

    @property
    def device(self):
        return self.actor.weight.device

    def _states(self, rows):
        return self.lstm(self.embedding(rows.clamp(min=0)))[0]

    def _last(self, rows):
        return self._states(rows)[torch.arange(len(rows)), (rows != PAD).sum(1) - 1]

    @torch.no_grad()
    def act(self, observations, *, deterministic=False, generator=None):
        logprobs = self.actor(self._last(observations)).log_softmax(-1)
        tokens = (
            logprobs.argmax(-1) if deterministic else torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0]
        )
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

    @torch.no_grad()
    def values(self, observations):
        return self.critic(self._last(observations))[:, 0]

    def evaluate(self, observations, actions, mask=None):
        lengths = (observations != PAD).sum(1)
        rows = nn.functional.pad(observations, (0, actions.shape[1]), value=PAD)
        columns = lengths[:, None] + torch.arange(actions.shape[1])
        rows = rows.scatter(1, columns, actions)
        states = self._states(rows).gather(1, (columns - 1)[..., None].expand(-1, -1, self.lstm.hidden_size))
        logprobs = self.actor(states).log_softmax(-1)
        chosen = logprobs.gather(2, actions.clamp(min=0)[..., None])[..., 0]
        return Evaluation(chosen, -(logprobs.exp() * logprobs).sum(-1), self.critic(states)[..., 0])


def test_the_environment_decides_what_ppo_is():
    control = PPO("CartPole-v1", **SMALL)
    assert isinstance(control, PPO)
    assert isinstance(control, ControlPPO)
    assert control.config == PPOConfig(**SMALL)
    scalar, vector = gym.make("CartPole-v1"), gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    for env, number in ((scalar, 1), (vector, 2)):
        assert isinstance(PPO(env, **SMALL | {"num_envs": number}), ControlPPO)
        with pytest.raises(ValueError, match=f"num_envs: expected {number}, as env has, or an id, received 3"):
            PPO(env, num_envs=3)


@pytest.mark.parametrize(
    ("kind", "critic", "group"), [(PPO, True, 1), (GRPO, False, 8), (RLOO, False, 4), (REINFORCE, False, 1)]
)
def test_a_token_environment_gets_its_language_model_and_the_batch_path(model_dir, kind, critic, group):
    envs = text_envs(model_dir)
    agent = kind(envs, seed=1)
    assert isinstance(agent, kind)
    assert isinstance(agent, TextAlgorithm)
    assert isinstance(agent.policy, CausalLMPolicy)
    assert isinstance(agent.collector, TextCollector)
    assert agent.policy.has_critic is critic
    assert envs.unwrapped.group_size == agent.config.group_size == group
    reference = AutoModelForCausalLM.from_pretrained(model_dir)
    assert same_weights(agent.policy.model, reference)
    assert agent.policy.model is not envs.reference.model
    agent.learn(16)
    assert agent.steps == agent.num_timesteps == 16
    assert not same_weights(agent.policy.model, reference)
    assert same_weights(envs.reference.model, reference)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_torchs_global_generator_stays_as_it_was(model_dir, tmp_path, critic):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    agent = PPO(text_envs(model_dir), critic=critic, seed=0).learn(8)
    agent.predict([1, 2])
    PPO.load(agent.save(tmp_path / "agent.safetensors"), env=text_envs(model_dir))
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_raises_the_score(model_dir):
    scores = []
    agent = PPO(text_envs(model_dir, num_envs=32, beta=0.0), seed=0, learning_rate=1e-2)
    agent.learn(32 * 20, callback=lambda agent: scores.append(agent.metrics["rollout/score"]))
    assert len(scores) == 20
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 1.0


def test_the_scalar_environment_trains_as_a_vector_of_what_was_registered(model_dir):
    env = gym.make("textenvs/TextGeneration-v0", **PARTS, scorer=bad_words, reference=str(model_dir))
    agent = PPO(env, batch_size=6)
    assert agent.env.num_envs == 6
    assert agent.env.unwrapped.max_new_tokens == 4


@pytest.mark.parametrize("made", [True, False])
def test_a_wrapper_of_the_scalar_environment_is_refused_and_not_lost(model_dir, made):
    parts = PARTS | {"scorer": bad_words, "reference": str(model_dir)}
    kind, one = "textenvs/TextGeneration-v0", {"num_envs": 1, "autoreset_mode": "Disabled"}
    env = gym.make(kind, **parts) if made else TokenEnv(gym.make_vec(kind, **one, **parts))
    assert PPO(env, batch_size=1).env.num_envs == 1
    for wrapped in (TransformReward(env, lambda reward: 2 * reward), TimeLimit(env, 2)):
        name = type(wrapped).__name__
        with pytest.raises(ValueError, match=f"expected none of Gymnasium's wrappers, received {name}"):
            PPO(wrapped, batch_size=1)


@pytest.mark.parametrize("policy", ["directory", "path", "model", "policy"])
def test_a_policy_is_a_directory_a_model_or_a_module(model_dir, policy):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    given = {
        "directory": str(model_dir), "path": model_dir, "model": model, "policy": CausalLMPolicy(copy.deepcopy(model)),
    }[policy]  # fmt: skip
    agent = PPO(text_envs(model_dir), policy=given)
    expected = AutoModelForCausalLM.from_pretrained(model_dir) if policy in ("directory", "path") else model
    assert same_weights(agent.policy.model, expected)


@pytest.mark.parametrize("options", [{}, {"lora": LoraOptions(rank=2)}], ids=["all weights", "adapters"])
def test_a_model_that_is_also_the_reference_is_refused_since_its_kl_would_stay_0(model_dir, options):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    envs = text_envs(model_dir, reference=model, tokenizer=str(model_dir))
    said = "expected another model than the environment's reference, received the same object"
    agent = REINFORCE(text_envs(model_dir), policy=model, **options)
    with pytest.raises(ValueError, match=said):
        agent.set_env(envs)
    with pytest.raises(ValueError, match=said):
        REINFORCE(envs, policy=agent.policy)
    assert REINFORCE(envs, policy=copy.deepcopy(model)).learn(8).steps == 8


def test_a_part_of_a_model_that_is_frozen_stays_frozen(model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    agent = REINFORCE(text_envs(model_dir), policy=model, seed=0).learn(8)
    changed = {name for name, value in agent.policy.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in model.named_parameters() if value is not frozen}
    whole = REINFORCE(text_envs(model_dir), policy=copy.deepcopy(model).requires_grad_(False))
    assert all(parameter.requires_grad for parameter in whole.policy.parameters())


def test_any_module_that_implements_the_protocol_learns(model_dir):
    envs = text_envs(model_dir, num_envs=32, beta=0.0)
    policy = LSTMPolicy(envs.unwrapped.vocab_size, envs.unwrapped.eos_token_id)
    scores, drift = [], []

    def note(agent):
        scores.append(agent.metrics["rollout/score"])
        drift.append(agent.metrics["train/logprob_drift"])

    PPO(envs, policy=policy, learning_rate=2e-2, seed=0).learn(32 * 20, note)
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 1.0
    assert max(drift) < 1e-5  # what acted is what is trained


def test_small_networks_on_token_ids_only_when_asked_for(model_dir):
    agent = PPO(text_envs(model_dir, num_envs=2), policy="MlpPolicy", **SMALL)
    assert isinstance(agent, ControlPPO)
    assert agent.learn(16).steps == 16


def test_an_environment_without_a_language_model_says_what_to_pass(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    envs = text_envs(model_dir, reference=None, beta=None, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"names no language model.*pass policy=.*MlpPolicy"):
        PPO(envs)
    assert PPO(envs, policy=model_dir).learn(8).steps == 8


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda d: PPO("MlpPolicy", "CartPole-v1"), r"the environment comes first: PPO\(env, policy='MlpPolicy'\)"),
        (lambda d: PPO("CartPole-v1", learning_rte=1), "no setting of PPOConfig; did you mean 'learning_rate'"),
        (lambda d: PPO("CartPole-v1", PPOConfig(), policy="CnnPolicy"), "expected a module or 'MlpPolicy'"),
        (lambda d: TRPO("CartPole-v1", PPOConfig()), "expected a TRPOConfig, received PPOConfig"),
        (lambda d: GRPO(text_envs(d), TextAgentConfig()), "expected one of grpo, received one of ppo"),
        (lambda d: PPO(text_envs(d), group_sizes=3), "did you mean 'group_size'"),
        (lambda d: PPO(text_envs(d), policy=nn.Linear(2, 2)), "received Linear, which lacks act and evaluate"),
        (lambda d: PPO(text_envs(d), PPOConfig()), "expected a TextAgentConfig, received PPOConfig"),
        (lambda d: GRPO(text_envs(d), preset="reinforce++"), "preset: expected one of grpo, dr_grpo, dapo, .*received"),
        (lambda d: GRPO(text_envs(d), TextAgentConfig.for_algorithm("grpo"), preset="dapo"), "without config"),
        (lambda d: PPO("CartPole-v1", preset="dapo"), "'preset' is no setting of PPOConfig"),
        (lambda d: GRPO("CartPole-v1"), "expected the id of a token environment.*'CartPole-v1'"),
        (lambda d: GRPO(text_envs(d, num_envs=6)), "expected a divisor of num_envs 6, received 8"),
        (lambda d: PPO(text_envs(d, reference=None, beta=None, tokenizer=str(d)), policy=d, beta=0.1), "no KLShaping"),
        (lambda d: PPO(text_envs(d)).learn(float("nan")), "expected a whole number of 1 or more, received nan"),
        (lambda d: PPO(text_envs(d)).learn(8, log_interval=0), "expected 1 or more updates, received 0"),
        (lambda d: PPO(text_envs(d)).learn(8, callback="x"), "expected a function"),
        (lambda d: PPO(text_envs(d), logger="runs/mine"), "logger: expected a sink such as .*'runs/mine'"),
        (lambda d: PPO(text_envs(d), device="nosuch"), "device nosuch"),
        (lambda d: PPO(text_envs(d), batch_size=4), "batch_size: expected 8, the environment's .* received 4"),
        (lambda d: PPO(text_envs(d), critic_start="reward"), "critic_start: expected one of model, reward-model, rec"),
        (lambda d: PPO(text_envs(d), sampling={"top_k": 3}), "sampling: expected TokenSampling or None, received"),
        (lambda d: PPO(text_envs(d), kl_controller="adaptive"), "kl_controller: expected KLController or None, rec"),
        (lambda d: PPO(text_envs(d), missing_eos_penalty="1"), "missing_eos_penalty: expected a finite number, rec"),
        (lambda d: GRPO(text_envs(d, budget="truncate")), 'budget: expected "terminate" for grpo.*"truncate"'),
        (lambda d: PPO(text_envs(d)).generate("good film"), "prompts: expected a list of texts.*'good film'"),
        (lambda d: PPO(text_envs(d)).generate(["good film"], max_new_tokens=0), "max_new_tokens: .*received 0"),
        (lambda d: PPO(text_envs(d)).predict([1, 9999]), "observation: token id 9999 is outside the vocabulary"),
        (lambda d: PPO(text_envs(d)).predict([1, -2]), "observation: token id -2 is outside the vocabulary"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_would(model_dir, build, said):
    with pytest.raises(ValueError, match=said):
        build(model_dir)


OPTIONS = {
    "plain": (PPO, {}),
    "lora and a controller": (
        PPO, dict(lora=LoraOptions(rank=2), critic="adapter", kl_controller=AdaptiveKL(target=1.0, horizon=64)),
    ),
    "a falling price": (PPO, dict(kl_controller=AnnealedKL(start=0.5, end=0.1, horizon=50))),
    "separate": (PPO, dict(critic="separate", missing_eos_penalty=0.5, max_concurrent_rows=3)),
    "grpo": (GRPO, dict(kl_estimator="full")),
    "rloo": (RLOO, {}),
    "reinforce": (REINFORCE, dict(baseline="moving")),
    "dapo": (GRPO, dict(preset="dapo", group_size=2, beta=0.0, overlong_penalty=0.5, overlong_cache=2)),
    "reinforce++": (REINFORCE, dict(preset="reinforce++")),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_a_loaded_agent_goes_on_bit_for_bit(model_dir, tmp_path, case):
    kind, options = OPTIONS[case]
    agent = kind(text_envs(model_dir), policy=str(model_dir), **options).learn(16)
    path = agent.save(tmp_path / "agent.safetensors")
    expected = copy.deepcopy(agent.learn(16).policy.state_dict())
    for load in (kind.load, load_agent):
        loaded = load(path, env=text_envs(model_dir))
        assert type(loaded) is type(agent)
        assert loaded.steps == 16
        loaded.learn(16)
        assert all(torch.equal(loaded.policy.state_dict()[name], value) for name, value in expected.items())


def test_what_cannot_be_built_again_says_what_to_pass(model_dir, tmp_path):
    agent = PPO(text_envs(model_dir), policy=AutoModelForCausalLM.from_pretrained(model_dir))
    path = agent.save(tmp_path / "agent.safetensors")
    with pytest.raises(CheckpointError, match="pass env="):
        PPO.load(path)
    with pytest.raises(CheckpointError, match="pass policy="):
        PPO.load(path, env=text_envs(model_dir))
    with pytest.raises(CheckpointError, match="'ppo', not 'grpo'"):
        GRPO.load(path, env=text_envs(model_dir))
    path = GRPO(text_envs(model_dir), kl_controller=OwnController()).save(tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match=r"expected one of agents.text.kl_controllers, received OwnController"):
        GRPO.load(path, env=text_envs(model_dir))


def test_writing_predicting_and_saving_for_transformers(model_dir, tmp_path):
    agent = PPO(text_envs(model_dir)).learn(8)
    written = agent.generate(["the film", "a"], deterministic=True)
    assert len(written) == 2
    agent.save_pretrained(tmp_path / "tuned")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"),
        AutoTokenizer.from_pretrained(tmp_path / "tuned"),
    )
    assert same_weights(model, agent.policy.model)
    rows = tokenizer("the film", return_tensors="pt")
    theirs = model.generate(**rows, do_sample=False, max_new_tokens=4, pad_token_id=0)[0, rows["input_ids"].shape[1] :]
    assert tokenizer.decode(theirs, skip_special_tokens=True).strip() == written[0].strip()
    env = gym.make("textenvs/TextGeneration-v0", **PARTS, scorer=bad_words, reference=str(model_dir))
    mean, _ = evaluate_policy(agent, Monitor(env), n_eval_episodes=3)
    assert np.isfinite(mean)


def test_sb3s_helpers_work_on_control(tmp_path):
    agent = PPO("CartPole-v1", **SMALL)
    check = EvalCallback(
        Monitor(gym.make("CartPole-v1")), n_eval_episodes=2, eval_freq=16, verbose=0, best_model_save_path=str(tmp_path)
    )
    calls = []
    agent.learn(total_timesteps=64, callback=[check, lambda agent: calls.append(agent.steps)], progress_bar=True)
    assert check.n_calls == 32  # 64 steps of two environments
    assert len(calls) == 4
    assert PPO.load(tmp_path / "best_model").steps > 0
    assert evaluate_policy(agent, Monitor(gym.make("CartPole-v1")), n_eval_episodes=2)[0] > 0


def test_a_callback_ends_training():
    agent = PPO("CartPole-v1", **SMALL)
    agent.learn(1000, callback=lambda agent: np.bool_(agent.updates < 2))
    assert agent.updates == 2


def test_another_environment_of_the_same_spaces_is_gone_on_with(model_dir):
    agent = PPO("CartPole-v1", **SMALL).learn(16)
    before = copy.deepcopy(agent.policy.state_dict())
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    agent.set_env(envs)
    assert agent.get_env() is envs
    assert all(torch.equal(agent.policy.state_dict()[name], value) for name, value in before.items())
    assert agent.learn(24).steps == 16 + 24
    with pytest.raises(ValueError, match="expected the spaces"):
        agent.set_env("Pendulum-v1")
    text = PPO(text_envs(model_dir)).learn(8)
    text.set_env(text_envs(model_dir, num_envs=4))
    assert text.learn(4).steps == 12


def test_an_agent_loaded_without_its_environment_normalizes_as_with_it(tmp_path):
    config = PPOConfig(**SMALL, normalize_observations=True)
    path = PPO(gym.make("CartPole-v1"), config).learn(64).save(tmp_path / "agent.safetensors")
    alone, together = PPO.load(path), PPO.load(path, env=gym.make("CartPole-v1"))
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert (alone.normalizer(observations) == together.normalizer(observations)).all()
    assert not np.allclose(alone.normalizer(observations), observations)
    assert (
        alone.predict(observations, deterministic=True)[0] == together.predict(observations, deterministic=True)[0]
    ).all()


def test_a_paper_is_an_algorithm_as_its_config_has_it(model_dir):
    config = TextAgentConfig.for_algorithm("grpo", group_size=4, minibatch_size=8)
    envs = text_envs(model_dir)
    agent = GRPO(envs, config)
    assert agent.config == config
    assert envs.charge is False  # the loss charges the KL
    agent.learn(8)


def test_a_preset_by_name_is_the_papers_variant_and_reaches_the_collector(model_dir):
    agent = GRPO(text_envs(model_dir), preset="dapo", group_size=4, clip=0.1)
    config = agent.config
    assert (config.algorithm, config.clip, config.clip_high, config.average) == ("grpo", 0.1, 0.28, "token")
    assert (config.group_size, agent.collector.dynamic_sampling, config.minibatch_size) == (4, 9, 2)
    assert GRPO(text_envs(model_dir, num_envs=16), preset="dapo").config.group_size == 16
    gspo = GRPO(text_envs(model_dir), preset="gspo").learn(8)
    assert gspo.config.policy_loss == "gspo"


@pytest.mark.parametrize("kind", ["control", "text"])
def test_load_refuses_a_keyword_that_it_does_not_know(model_dir, tmp_path, kind):
    agent = PPO("CartPole-v1", **SMALL) if kind == "control" else PPO(text_envs(model_dir), policy=str(model_dir))
    path = agent.save(tmp_path / "agent.safetensors")
    env = "CartPole-v1" if kind == "control" else text_envs(model_dir)
    with pytest.raises(TypeError, match="polcy"):
        PPO.load(path, env=env, polcy=None)


def test_a_text_policy_that_remembers_is_refused(model_dir):
    class Remembers(LSTMPolicy):
        state = None

        def _states(self, rows):
            states, self.state = self.lstm(self.embedding(rows.clamp(min=0)), self.state)
            return states

    envs = text_envs(model_dir)
    with pytest.raises(ValueError, match="received a Remembers that answers otherwise"):
        PPO(envs, policy=Remembers(envs.unwrapped.vocab_size, envs.unwrapped.eos_token_id))
