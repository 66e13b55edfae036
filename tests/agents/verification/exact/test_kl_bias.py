import numpy as np
import pytest
import torch

from agents.functional.kl import k3
from agents.verification.exact.kl_bias import KLBiasConfig, command_line, kl_biases, main
from textenvs.exact.envs import random, spelling


@pytest.fixture(scope="module")
def biases():
    return kl_biases(random(), 0.6)


def test_k1_k3_and_the_full_kl_have_the_enumerated_mean_and_k2_has_not(biases):
    task = random()
    policy = 0.4 * task.ref_logprobs + 0.6 * task.optimum.logprobs
    policy = torch.log_softmax(torch.from_numpy(policy), -1).numpy()
    truth = task.outcome(policy).kl.mean()
    for name in ("k1", "k3", "full"):
        np.testing.assert_allclose(biases[name].value, truth, rtol=1e-9)
        assert abs(biases[name].value_error) < 1e-9
    assert abs(biases["k2"].value_error) > 0.01


def test_k1_as_a_loss_has_no_gradient_and_k2_and_full_have_each_tokens(biases):
    assert biases["k1"].token_gradient_error == pytest.approx(1.0, abs=1e-9)
    assert biases["k2"].token_gradient_error < 1e-9
    assert biases["full"].token_gradient_error < 1e-9
    assert biases["k3"].token_gradient_error > 0.05


def test_only_k1_in_the_reward_has_the_gradient_of_whole_sequences(biases):
    assert biases["k1 in the reward"].sequence_gradient_error < 1e-9
    for name in ("k1", "k2", "k3", "full"):
        assert biases[name].sequence_gradient_error > 0.05


def test_k3_as_a_loss_has_the_gradient_of_the_reversed_kl():
    # d/dz E_pi[k3] with constant samples is d/dz KL(pi_ref || pi) = pi - pi_ref for a softmax
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    (logprobs.detach().exp() * k3(logprobs, ref)).sum().backward()
    torch.testing.assert_close(logits.grad, (logprobs.exp() - ref.exp()).detach())


def test_at_the_reference_there_is_nothing_to_estimate(capsys):
    with pytest.raises(ValueError, match="share"):
        kl_biases(spelling(), 0.0)
    assert command_line(["--task", "spelling", "--share", "0"]) == 2
    assert "share" in capsys.readouterr().err


def test_main_prints_a_line_for_each_estimator(capsys):
    summary = main(KLBiasConfig(task="random"))
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("k1", "k2", "k3", "full", "k1 in the reward"))
    assert summary["k2_token_gradient_error"] < 1e-9
