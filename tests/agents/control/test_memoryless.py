"""A policy that remembers is refused; one that reads a sequence inside an observation is not."""

import gymnasium as gym
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation
from torch import nn

from agents import PPO
from agents.interfaces import Evaluation

SETTINGS = {"num_steps": 16, "epochs": 1}


class Recurrent(nn.Module):
    """An LSTM over the last ``frames`` observations, which keeps its state between calls if ``remembers``."""

    keeps_rows = False

    def __init__(self, frames, remembers):
        super().__init__()
        self.frames, self.remembers, self.state = frames, remembers, None
        self.lstm, self.heads = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def _outputs(self, observations):
        rows = observations.reshape(-1, self.frames, 4)
        hidden, state = self.lstm(rows, self.state)
        self.state = state if self.remembers else None
        outputs = self.heads(hidden[:, -1]).view(*observations.shape[:-1], 3)
        return outputs[..., :2].log_softmax(-1), outputs[..., 2]

    @torch.no_grad()
    def act(self, observations, *, deterministic=False, generator=None):
        logprobs, _ = self._outputs(observations)
        actions = torch.multinomial(logprobs.exp(), 1, generator=generator)
        return actions[:, 0], logprobs.gather(1, actions)[:, 0]

    def values(self, observations):
        return self._outputs(observations)[1]

    def evaluate(self, observations, actions, mask=None):
        logprobs, values = self._outputs(observations)
        chosen = logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return Evaluation(chosen, -(logprobs.exp() * logprobs).sum(-1), values)


def test_a_policy_that_answers_otherwise_the_second_time_is_refused():
    with pytest.raises(ValueError, match="received a Recurrent that answers otherwise"):
        PPO(gym.make("CartPole-v1"), policy=Recurrent(1, remembers=True), **SETTINGS)


def test_a_recurrent_network_over_stacked_observations_is_trained_on_the_probabilities_that_it_acted_with():
    env = FrameStackObservation(gym.make("CartPole-v1"), 3)
    agent = PPO(env, policy=Recurrent(3, remembers=False), **SETTINGS).learn(16)
    assert agent.metrics["train/logprob_drift"] < 1e-6
