import dataclasses

import numpy as np
import pytest

from textenvs.tokens.rows import PAD, TokenRows, concatenate, last_action_index, pad_rows, split


def test_rows_are_padded_on_the_right_with_a_number_that_is_no_token():
    np.testing.assert_array_equal(pad_rows([[5, 6], [7]]), [[5, 6], [7, -1]])
    np.testing.assert_array_equal(pad_rows([[5]], 3), [[5, -1, -1]])
    with pytest.raises(ValueError, match="expected rows of at most 2 tokens, received one of 3"):
        pad_rows([[1, 2, 3]], 2)


def test_joint_rows_have_no_holes_whatever_side_the_parts_are_padded_on():
    joint = [[1, 2, 3, -1], [4, 5, 6, -1]]
    np.testing.assert_array_equal(concatenate(np.array([[1, -1], [4, 5]]), np.array([[2, 3], [6, -1]])), joint)
    np.testing.assert_array_equal(concatenate(np.array([[-1, 1], [4, 5]]), np.array([[2, 3], [-1, 6]])), joint)


def test_split_undoes_concatenate():
    prompts = pad_rows([[1, 2, 3], [4]])
    completions = pad_rows([[5], [6, 7]])
    joint = concatenate(prompts, completions)
    again = split(joint, np.array([3, 1]), np.array([4, 3]), 3, 2)
    np.testing.assert_array_equal(again[0], prompts)
    np.testing.assert_array_equal(again[1], completions)


def test_the_last_action_is_the_last_true_column():
    np.testing.assert_array_equal(last_action_index(np.array([[True, True, False], [True, True, True]])), [1, 2])
    with pytest.raises(ValueError, match=r"expected a True in each row, received none in rows \[1\]"):
        last_action_index(np.array([[True], [False]]))


def test_rows_are_frozen_and_their_mask_selects_tokens():
    rows = TokenRows(
        prompts=pad_rows([[1]]),
        completions=np.array([[2, 0, PAD]]),
        rewards=np.zeros((1, 3), np.float32),
        terminated=np.array([True]),
        truncated=np.array([False]),
        stop_reason=np.array(["eos"]),
    )
    np.testing.assert_array_equal(rows.mask, [[True, True, False]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        rows.scores = None
