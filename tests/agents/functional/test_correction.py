"""Importance weights between what sampled and what learns, by hand and as unbiased estimates."""

import math

import pytest
import torch

from agents.functional.correction import effective_sample_size, importance_weights

LOG2 = math.log(2.0)
OLD = torch.tensor([[0.0, 2 * LOG2, -LOG2], [LOG2, -3 * LOG2, math.nan]]) - 5.0
MU = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]) - 5.0
MASK = torch.tensor([[True, True, True], [True, True, False]])
# ratios of the tokens: 1, 4, 1/2 and 2, 1/8; of the rows: 2 and 1/4


@pytest.mark.parametrize(
    ("mode", "low", "high", "weights", "outside"),
    [
        ("none", 0.0, 3.0, [[1, 1, 1], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]),
        ("token_truncate", 0.0, 3.0, [[1, 3, 0.5], [2, 0.125, 0]], [[0, 1, 0], [0, 0, 0]]),
        ("token_truncate", 0.0, 2.0, [[1, 2, 0.5], [2, 0.125, 0]], [[0, 1, 0], [0, 0, 0]]),
        ("token_mask", 0.0, 3.0, [[1, 0, 0.5], [2, 0.125, 0]], [[0, 1, 0], [0, 0, 0]]),
        ("token_mask", 0.5, 5.0, [[1, 4, 0.5], [2, 0, 0]], [[0, 0, 0], [0, 1, 0]]),
        ("sequence_truncate", 0.0, 1.5, [[1.5, 1.5, 1.5], [0.25, 0.25, 0]], [[1, 1, 1], [0, 0, 0]]),
        ("sequence_mask", 0.0, 3.0, [[2, 2, 2], [0.25, 0.25, 0]], [[0, 0, 0], [0, 0, 0]]),
        ("sequence_mask", 0.5, 3.0, [[2, 2, 2], [0, 0, 0]], [[0, 0, 0], [1, 1, 0]]),
        ("sequence_mask", 0.0, 1.9, [[0, 0, 0], [0.25, 0.25, 0]], [[1, 1, 1], [0, 0, 0]]),
    ],
)
def test_weights_are_the_bounded_ratios_of_tokens_or_rows(mode, low, high, weights, outside):
    found, changed = importance_weights(OLD, MU, MASK, mode=mode, low=low, high=high)
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float32))
    assert changed.long().tolist() == outside


def test_the_rows_weight_makes_an_estimate_by_the_sampler_one_by_the_policy():
    # all 9 texts of two tokens; mu and pi differ in both, and the second token's distribution depends on the first
    torch.manual_seed(0)
    mu, pi = (torch.log_softmax(torch.randn(4, 3), -1) for _ in range(2))
    first, second = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)

    def logprobs(table):
        return torch.stack([table[3][first], table[first, second]], dim=1)

    value = torch.randn(9)
    weights, _ = importance_weights(
        logprobs(pi), logprobs(mu), torch.ones(9, 2, dtype=torch.bool), mode="sequence_truncate", high=1e9
    )
    by_mu = (logprobs(mu).sum(1).exp() * weights[:, 0] * value).sum()
    torch.testing.assert_close(by_mu, (logprobs(pi).sum(1).exp() * value).sum())


def test_the_effective_sample_size_is_that_of_kish():
    mask = torch.tensor([[True, True], [True, False]])
    weights = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    assert float(effective_sample_size(weights, mask)) == pytest.approx(36 / (3 * 14))
    assert float(effective_sample_size(torch.ones(2, 2), mask)) == 1.0
    assert float(effective_sample_size(torch.zeros(2, 2), mask)) == 0.0


def test_a_ratio_beyond_all_numbers_is_masked_or_cut_and_never_infinite():
    old, mu = torch.tensor([[0.0, 0.0]]), torch.tensor([[-1000.0, 1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert importance_weights(old, mu, mask, mode="token_mask", high=3.0)[0][0, 0] == 0.0
    assert importance_weights(old, mu, mask, mode="token_truncate", high=3.0)[0][0, 0] == 3.0
