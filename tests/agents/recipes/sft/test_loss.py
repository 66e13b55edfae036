"""The fine-tuning loss against transformers' own, and batches cut every way with the same gradient."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.lm.causal_lm import CausalLMPolicy
from agents.recipes.sft.loss import BatchLimits, FineTuning, epoch_of, loss_sum, mean_loss, microbatches, pad_rows
from agents.recipes.sft.rows import TokenRow


def row_of(tokens, *spans):
    return TokenRow(tokens=np.array(tokens, dtype=np.int32), spans=spans, opening=1, prompt="", place="my.jsonl:1")


ROWS = [
    row_of([1, 5, 6, 2, 7, 0], (3, 6)),
    row_of([1, 9, 0], (1, 3)),
    row_of([3, 4, 8, 2, 11, 0, 4, 1, 5, 2, 12, 13, 0], (4, 6), (10, 13)),
    row_of([1, 14, 2, 15, 0], (3, 5)),
]
NUM_LEARNT = 12


def policy_of(folder, **options):
    return CausalLMPolicy(AutoModelForCausalLM.from_pretrained(folder), critic="none", **options)


def gradients(policy, **limits):
    FineTuning(policy, ROWS, [], limits=BatchLimits(rows=4, **limits), seed=0).gradient(ROWS)
    found = {
        name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None
    }
    policy.zero_grad()
    return found


def test_the_loss_is_transformers_own_with_labels_on_what_is_learned(chat_model_dir):
    policy = policy_of(chat_model_dir)
    theirs = 0.0
    for row in ROWS:
        tokens = torch.from_numpy(row.tokens).long()[None]
        labels = torch.full_like(tokens, -100)
        for begin, end in row.spans:
            labels[:, begin:end] = tokens[:, begin:end]
        theirs += policy.model(input_ids=tokens, labels=labels).loss * row.num_learned
    torch.testing.assert_close(loss_sum(policy, ROWS), theirs)
    assert sum(row.num_learned for row in ROWS) == NUM_LEARNT
    assert mean_loss(policy, ROWS, BatchLimits(rows=4)) == pytest.approx(theirs.item() / NUM_LEARNT, rel=1e-5)


def test_the_gradient_is_that_of_the_mean_over_learned_tokens_not_over_rows(chat_model_dir):
    policy = policy_of(chat_model_dir)
    (loss_sum(policy, ROWS) / NUM_LEARNT).backward()
    mean = {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}
    policy.zero_grad()
    figures = FineTuning(policy, ROWS, [], limits=BatchLimits(rows=4), seed=0).gradient(ROWS)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, mean.get(name), msg=name)
    assert figures.loss == pytest.approx(loss_sum(policy, ROWS).item() / NUM_LEARNT)
    assert figures.size == sum(len(row.tokens) for row in ROWS)


@pytest.mark.parametrize("limits", [{"micro_rows": 1}, {"micro_rows": 3}, {"micro_positions": 12}])
def test_microbatches_of_ragged_rows_add_up_to_the_whole_batch(chat_model_dir, limits):
    policy = policy_of(chat_model_dir)
    whole, parts = gradients(policy), gradients(policy, **limits)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], msg=name)


def test_layers_that_are_computed_again_give_the_same_gradient(chat_model_dir):
    kept, again = gradients(policy_of(chat_model_dir)), gradients(policy_of(chat_model_dir, recompute=True))
    for name in kept:
        torch.testing.assert_close(again[name], kept[name], msg=name)


def test_a_row_cannot_judge_its_first_token(llama_dir):
    with pytest.raises(ValueError, match="first token of a row"):
        loss_sum(policy_of(llama_dir), [row_of([1, 2], (0, 2))])


def test_rows_are_padded_to_the_right_and_masked_where_nothing_is_learned():
    tokens, mask = pad_rows(ROWS[:2])
    assert tokens.tolist() == [[1, 5, 6, 2, 7, 0], [1, 9, 0, -1, -1, -1]]
    assert mask.long().tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0]]


def test_microbatches_keep_their_limits_and_every_row():
    lengths = [
        [len(row.tokens) for row in part] for part in microbatches(ROWS, BatchLimits(rows=4, micro_positions=12))
    ]
    assert lengths == [[3, 5], [6], [13]]
    lengths = [[len(row.tokens) for row in part] for part in microbatches(ROWS, BatchLimits(rows=4, micro_rows=3))]
    assert lengths == [[3, 5, 6], [13]]
    assert [len(part) for part in microbatches(ROWS, BatchLimits(rows=4))] == [4]


@pytest.mark.parametrize("limits", [BatchLimits(rows=3), BatchLimits(tokens=9)])
def test_an_epoch_has_every_row_once_in_batches_within_their_limit(limits):
    rows = [row_of([1] * length, (1, length)) for length in (2, 3, 4, 5, 6, 7, 12, 2, 3, 4)]
    batches = epoch_of(rows, limits, random.Random(0))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    for batch in batches:
        if limits.rows is not None:
            assert 2 <= len(batch) <= 3
        else:
            assert sum(len(row.tokens) for row in batch) <= 9 or len(batch) == 1
    assert epoch_of(rows, limits, random.Random(1)) != batches


def test_the_fingerprint_tells_rows_and_what_is_learned_of_them(llama_dir):
    policy = policy_of(llama_dir)

    def of(rows, heldout=()):
        return FineTuning(policy, rows, heldout, limits=BatchLimits(rows=1), seed=0).fingerprint()

    other = row_of(ROWS[0].tokens, (2, 6))
    assert len({of(ROWS), of(ROWS[:3]), of([other, *ROWS[1:]]), of(ROWS, ROWS)}) == 4
    assert of(ROWS) == of(list(ROWS))


def test_batches_have_one_limit():
    for options in ({}, {"rows": 2, "tokens": 9}):
        with pytest.raises(ValueError, match="exactly one of rows and tokens"):
            BatchLimits(**options)
