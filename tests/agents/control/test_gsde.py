import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import PPO, PPOConfig
from agents.control.heads import StateDependentHead

BOX = spaces.Box(-1.0, 1.0, (2,))


def head_and_outputs(rows: int = 5) -> tuple[StateDependentHead, torch.Tensor]:
    torch.manual_seed(0)
    head = StateDependentHead(BOX, 3)
    with torch.no_grad():
        head.log_std.normal_(-0.5, 0.3)
    return head, torch.randn(rows, 2 + 3)


def test_the_log_prob_is_that_of_the_marginal_normal():
    head, outputs = head_and_outputs()
    actions = torch.randn(5, 2)
    means, features = outputs.numpy()[:, :2], outputs.numpy()[:, 2:]
    std = head.log_std.detach().exp().numpy()
    expected, entropy = np.zeros(5), np.zeros(5)
    for i in range(5):
        for d in range(2):
            variance = 1e-6 + sum(features[i, k] ** 2 * std[k, d] ** 2 for k in range(3))
            gap = float(actions[i, d]) - means[i, d]
            expected[i] += -0.5 * gap**2 / variance - 0.5 * np.log(2 * np.pi * variance)
            entropy[i] += 0.5 * np.log(2 * np.pi * np.e * variance)
    found = head.evaluate(outputs, actions)
    np.testing.assert_allclose(found[0].detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(found[1].detach().numpy(), entropy, rtol=1e-5)


def test_what_is_sampled_has_the_variance_that_is_logged():
    head, outputs = head_and_outputs(1)
    noise = head.noise((100_000,), torch.Generator().manual_seed(1))
    actions = head.sample(outputs.expand(100_000, -1), noise)
    means, log_std = head.distribution(outputs)
    torch.testing.assert_close(actions.mean(0), means[0], atol=0.02, rtol=0)  # 6 standard errors of 1e5 draws
    torch.testing.assert_close(actions.std(0), log_std[0].exp(), atol=0, rtol=0.02)


def test_noise_lasts_as_many_steps_as_asked_and_differs_between_environments():
    noise = StateDependentHead(BOX, 3, sample_freq=2).noise((5, 4), torch.Generator().manual_seed(0))
    assert noise.shape == (5, 4, 6)
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(noise[2], noise[3])
    assert not torch.equal(noise[1], noise[2])
    assert not torch.equal(noise[0, 0], noise[0, 1])
    whole = StateDependentHead(BOX, 3, sample_freq=-1).noise((5, 4), torch.Generator().manual_seed(0))
    assert all(torch.equal(whole[0], step) for step in whole)


def test_no_gradient_reaches_the_hidden_layer_through_the_spread():
    head, outputs = head_and_outputs()
    outputs = outputs.requires_grad_()
    head.evaluate(outputs, torch.randn(5, 2))[1].sum().backward()
    assert head.log_std.grad is not None
    assert outputs.grad is None or not outputs.grad[:, 2:].any()


def test_ppo_learns_with_it_and_starts_at_ratio_one():
    config = PPOConfig(num_envs=4, num_steps=16, epochs=1, minibatch_size=64, sde_sample_freq=4, log_std=-1.0)
    agent = PPO("Pendulum-v1", config)
    agent.learn(64)
    assert agent.metrics["train/clip_fraction"] == 0.0
    assert abs(agent.metrics["train/approx_kl"]) < 1e-6
    action, _ = agent.predict(np.zeros(3, np.float32), deterministic=True)
    assert action.shape == (1,)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="sde_sample_freq"):
        StateDependentHead(BOX, 3, sample_freq=0)
    with pytest.raises(ValueError, match="sde_sample_freq needs Box actions"):
        PPO("CartPole-v1", PPOConfig(sde_sample_freq=4))
