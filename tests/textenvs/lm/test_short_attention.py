"""Attention of short rows equals its definition, forward and backward."""

import pytest
import torch

from textenvs.lm.short_attention import LONGEST, MOST_SCORES, causal_attention, is_short


def by_definition(query, key, value, scale):
    """softmax(scale q k^T) v of each position over itself and those before, one by one."""
    out = []
    for t in range(query.shape[2]):
        scores = scale * (query[:, :, t, None] * key[:, :, : t + 1]).sum(-1)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out.append((weights[..., None] * value[:, :, : t + 1]).sum(2))
    return torch.stack(out, dim=2)


def inputs(dtype=torch.float64, strided=False):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 5, 3, 4) if strided else (2, 3, 5, 4)
    leaves = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]
    return leaves, [leaf.transpose(1, 2) if strided else leaf for leaf in leaves]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_definition(dtype, strided):
    weights = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    results = []
    for attention, number in ((causal_attention, dtype), (by_definition, torch.float64)):
        leaves, parts = inputs(torch.float64, strided)
        parts = [part.to(number) for part in parts]
        out = attention(*parts, 0.7)
        (out * weights.to(number)).sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    leaves, _ = inputs(strided=True)
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*(part.transpose(1, 2) for part in x), 0.5), leaves)


def test_rows_are_short_while_their_scores_fit():
    meta = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731
    assert not is_short(meta(1, 1, 9, 4))  # no CPU's
    rows = lambda batch, width: torch.empty(1).expand(batch, 1, width, 1)  # noqa: E731
    assert is_short(rows(1, LONGEST))
    assert not is_short(rows(1, LONGEST + 1))
    assert not is_short(rows(9, 1))  # one query a row: nothing to multiply
    most = MOST_SCORES // 64**2
    assert is_short(rows(most, 64))
    assert not is_short(rows(most + 1, 64))
