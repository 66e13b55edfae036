import copy

import numpy as np
import pytest
import torch

from textenvs import KLShaping
from textenvs.lm.kv_cache import any_key_order
from textenvs.tokens.rows import PAD, concatenate, pad_rows
from textenvs.wrappers.reference import CausalLMReference


def plain_logprobs(model, tokens: list[int]) -> np.ndarray:
    """Log-probs of tokens[1:] by one unpadded forward pass in the most pedestrian way."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double()
    return np.array([torch.log_softmax(logits[at], 0)[token].item() for at, token in enumerate(tokens[1:])])


ROWS = [([0, 3, 4, 5], [6, 7, 0]), ([0, 9], [8, 8, 8, 8, 8]), ([0], [0]), ([0, 11, 12], [13])]


def test_whole_rows_equal_each_row_alone_unpadded(model):
    prompts, completions = pad_rows([row[0] for row in ROWS]), pad_rows([row[1] for row in ROWS])
    scored = CausalLMReference(model.train())(prompts, completions)
    for row, (prompt, completion) in enumerate(ROWS):
        alone = plain_logprobs(model, prompt + completion)[len(prompt) - 1 :]
        np.testing.assert_allclose(scored[row, : len(completion)], alone, rtol=1e-4, atol=1e-4)
        assert (scored[row, len(completion) :] == 0).all()


def test_the_side_and_amount_of_padding_change_nothing(model):
    reference = CausalLMReference(model)
    prompts, completions = pad_rows([row[0] for row in ROWS]), pad_rows([row[1] for row in ROWS])
    expected = reference(prompts, completions)
    left = np.stack([np.roll(np.pad(row, (0, 3), constant_values=PAD), (row == PAD).sum() + 3) for row in prompts])
    assert (left[:, :3] == PAD).all()
    np.testing.assert_allclose(reference(left, completions), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(reference(prompts[1:2], completions[1:2]), expected[1:2], rtol=1e-5, atol=1e-5)


def test_several_passes_equal_one(model):
    prompts, completions = pad_rows([row[0] for row in ROWS]), pad_rows([row[1] for row in ROWS])
    expected = CausalLMReference(model)(prompts, completions)
    np.testing.assert_allclose(CausalLMReference(model, max_logits=1)(prompts, completions), expected, atol=1e-5)


def test_no_pass_exceeds_its_logits_where_prompts_differ_in_length(model):
    rows = [([0, *[3] * (9 * (i % 2))], [4, 5, 0]) for i in range(6)]
    prompts, completions = pad_rows([row[0] for row in rows]), pad_rows([row[1] for row in rows])
    reference, bounded = (
        CausalLMReference(model),
        CausalLMReference(model, max_logits=2 * 3 * len(model.lm_head.weight)),
    )
    expected, sizes = reference(prompts, completions), []
    actions, running, lengths = completions[:, 0], np.ones(6, bool), (prompts != PAD).sum(1)
    stepped = reference.step(pad_rows([row[0] for row in rows], 13), lengths, actions, running)
    hook = model.lm_head.register_forward_hook(lambda layer, inputs, logits: sizes.append(logits.numel()))
    np.testing.assert_allclose(bounded(prompts, completions), expected, rtol=1e-5, atol=1e-5)
    assert len(sizes) == 4  # of prompts of one length two by two, and one left over each
    found = bounded.step(pad_rows([row[0] for row in rows], 13), lengths, actions, running)
    np.testing.assert_allclose(found, stepped, rtol=1e-5, atol=1e-5)
    hook.remove()
    assert max(sizes) <= 2 * 3 * len(model.lm_head.weight)


def test_the_first_step_is_prepared_on_the_models_device(model):
    any_key_order(model)  # which a model without numbers cannot show
    reference = CausalLMReference(copy.deepcopy(model).to("meta"))
    tokens, lengths = np.array([[0, 3, 4], [0, PAD, PAD]]), np.array([3, 1])
    with pytest.raises(NotImplementedError, match="meta"):  # where the numbers are read, after the pass
        reference.step(tokens, lengths, np.array([1, 1]), np.array([True, True]))


def test_steps_with_a_cache_equal_the_full_forward_when_rows_start_and_end_at_different_times(any_model):
    reference, generator = CausalLMReference(any_model), np.random.default_rng(0)
    num_rows, width = 4, 12
    rows = [[0, *generator.integers(1, 40, count)] for count in (3, 0, 5, 1)]
    for moment in range(20):
        running = np.array([moment != 7, True, True, moment % 5 != 3])  # rows may sit a step out
        tokens, lengths = pad_rows(rows, width), np.array([len(row) for row in rows])
        actions = generator.integers(0, 40, num_rows)
        stepped = reference.step(tokens, lengths, actions, running)
        for row in range(num_rows):
            if not running[row]:
                assert stepped[row] == 0
                continue
            expected = plain_logprobs(any_model, [*rows[row], int(actions[row])])[-1]
            np.testing.assert_allclose(stepped[row], expected, rtol=1e-4, atol=1e-4)
            rows[row].append(int(actions[row]))
            if len(rows[row]) == width or actions[row] < 4:  # a new episode takes the row's place
                rows[row] = [0, *generator.integers(1, 40, int(generator.integers(0, 4)))]


def test_steps_of_no_row_are_steps_of_none(any_model):
    nobody = np.zeros(2, dtype=bool)
    stepped = CausalLMReference(any_model).step(np.full((2, 4), PAD), np.zeros(2, int), np.array([3, 4]), nobody)
    np.testing.assert_array_equal(stepped, np.zeros(2))


def test_a_cached_row_is_forgotten_when_another_of_the_same_length_takes_its_place(model):
    reference, everyone = CausalLMReference(model), np.array([True])
    reference.step(np.array([[0, 5, 6, PAD]]), np.array([3]), np.array([7]), everyone)
    stepped = reference.step(np.array([[0, 8, 9, 7]]), np.array([4]), np.array([5]), everyone)
    np.testing.assert_allclose(stepped[0], plain_logprobs(model, [0, 8, 9, 7, 5])[-1], rtol=1e-4, atol=1e-4)


def test_changing_a_token_changes_no_log_prob_before_it(model):
    reference = CausalLMReference(model)
    one = reference(np.array([[0, 3]]), np.array([[4, 5, 6]]))
    other = reference(np.array([[0, 3]]), np.array([[4, 5, 7]]))
    np.testing.assert_allclose(one[0, :2], other[0, :2], rtol=1e-6)
    assert one[0, 2] != other[0, 2]


def test_a_model_with_too_few_positions_is_refused_and_the_prompt_named(make_envs, tiny_gpt2, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("w1\nw1 w2 w3 w4\n", encoding="utf-8")
    envs = make_envs(2, prompts=path, max_new_tokens=6)
    KLShaping(envs, tiny_gpt2(positions=11), 0.1)
    with pytest.raises(
        ValueError, match=r"prompts\.txt:2: expected at most 10 tokens, .* received a prompt of 5 and 6 new ones"
    ):
        KLShaping(envs, tiny_gpt2(positions=10), 0.1)


def test_a_reference_of_another_tokenizer_or_a_smaller_vocabulary_is_refused(make_envs, tiny_gpt2, other_tokenizer):
    with pytest.raises(ValueError, match="expected the environment's tokenizer, received another one"):
        KLShaping(make_envs(), CausalLMReference(tiny_gpt2(), tokenizer=other_tokenizer), 0.1)
    with pytest.raises(ValueError, match="expected a vocabulary of 41, received 40"):
        KLShaping(make_envs(vocab_size=41), tiny_gpt2(), 0.1)


def test_a_model_loads_from_its_directory_with_its_tokenizer_and_the_lack_of_either_is_told(
    make_envs, tiny_gpt2, tokenizer, tmp_path
):
    tiny_gpt2().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer there"):
        KLShaping(make_envs(), tmp_path, 0.1)
    tokenizer.save_pretrained(tmp_path)
    prompts, completions = np.array([[0, 3]]), np.array([[4, 5, 6, 7, 8, 9]])
    envs = KLShaping(make_envs(), tmp_path, 0.1)
    expected = CausalLMReference(tiny_gpt2())(prompts, completions)
    np.testing.assert_allclose(envs.play(prompts, completions).ref_logprobs, expected, atol=1e-5)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no causal language model could be loaded"):
        KLShaping(make_envs(), tmp_path, 0.1)


def test_the_joint_rows_of_a_reference_are_those_the_environment_steps_through(make_envs):
    envs = make_envs(2, shuffle=False)
    envs.reset(seed=0)
    envs.step(np.array([9, 8]))
    prompts, completions = envs.split_rows(np.arange(2))
    np.testing.assert_array_equal(concatenate(prompts, completions)[:, : envs.tokens.shape[1]], envs.tokens)
