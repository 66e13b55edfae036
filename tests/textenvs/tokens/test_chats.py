"""Chats at the door of the environments, and what scorers read of them."""

import copy
import json

import pytest

from agents.runs.flags import json_object
from reward_models.data.pairs import read_pairs
from textenvs import TokenVectorEnv
from textenvs.tokens.prompts import load_prompts
from textenvs.tokens.tokenizers import load_tokenizer
from textenvs.wrappers.chat_prompts import ChatTemplate

CHAT = "{% for m in messages %}w0 {{ m['content'] }} <end> {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
ASKED = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
ANSWER = {"role": "assistant", "content": "w4"}
IDS = [2, 3, 0, 2, 4, 5, 0, 11]  # w0 w1 <end> w0 w2 w3 <end> w9


@pytest.fixture
def chat_tokenizer(tokenizer):
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = CHAT
    return chatting


def test_files_and_lists_of_chats_end_where_the_assistant_is_about_to_speak(chat_tokenizer, tmp_path):
    rows = [{"prompt": ASKED}, {"messages": ASKED}, {"messages": [*ASKED, ANSWER]}, {"prompt": "w2"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = load_prompts(tmp_path / "p.jsonl", chat_tokenizer, vocab_size=40)
    assert prompts.tokens.tolist() == [IDS, IDS, IDS, [0, 4] + [-1] * 6]
    envs = TokenVectorEnv(1, prompts=[ASKED], tokenizer=chat_tokenizer, eos_token_id=0, max_new_tokens=2)
    assert envs.reset(seed=0)[0][0][:8].tolist() == IDS


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([{"role": "user"}], "turn 1: expected an object with the strings role and content"),
        ([ANSWER], "'messages': expected another role than assistant in the first turn"),
        ([*ASKED, ANSWER | {"tool_calls": [{}]}], "turn \\d: expected calls of tools as text in content"),
        ([{"role": "teacher", "content": "w1"}], "the chat template rejects these turns: who is that"),
    ],
)
def test_a_bad_chat_is_named_by_file_and_line(chat_tokenizer, tmp_path, turns, complaint):
    chat_tokenizer.chat_template = (
        "{% for m in messages if m['role'] == 'teacher' %}{{ raise_exception('who is that') }}{% endfor %}" + CHAT
    )
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"prompt": ASKED}, {"prompt": turns}])))
    with pytest.raises(ValueError, match=rf"p\.jsonl:2: {complaint}"):
        load_prompts(path, chat_tokenizer, vocab_size=40)


def test_a_tokenizer_without_template_takes_no_chats(tokenizer):
    with pytest.raises(ValueError, match=r"rows\[0\]: expected a tokenizer with a chat template for a chat"):
        load_prompts([ASKED], tokenizer, vocab_size=40)
    with pytest.raises(ValueError, match="the model's tokenizer has no chat template"):
        ChatTemplate(tokenizer)


def test_texts_become_the_users_turn_only_where_they_are_to_be_wrapped(chat_tokenizer):
    wraps, keeps = (ChatTemplate(chat_tokenizer, wrap=wrap) for wrap in (True, False))
    assert wraps("w2 w3")["input_ids"] == [2, 4, 5, 0, 11]
    assert keeps("w2 w3")["input_ids"] == [0, 4, 5]
    assert (wraps.has_chats, keeps.has_chats) == (True, False)
    assert keeps(ASKED)["input_ids"] == wraps(ASKED)["input_ids"] == IDS


def test_scorers_read_what_reward_models_learn_from(chat_tokenizer, tmp_path):
    reader = ChatTemplate(chat_tokenizer, wrap=False)
    decoded = [chat_tokenizer.decode(reader(ASKED)["input_ids"], skip_special_tokens=True), "bare"]
    pair = {"prompt": ASKED, "chosen": [ANSWER], "rejected": [ANSWER | {"content": "w5"}]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    assert reader.plain(decoded) == [read_pairs(tmp_path / "pairs.jsonl")[0].prompt, "bare"] == ["w1\nw2 w3\n", "bare"]


def test_a_template_reads_the_variables_and_the_time_that_a_tokenizer_is_loaded_with(chat_tokenizer, tmp_path):
    chat_tokenizer.chat_template = "w{{ strftime_now('%d')|int }} {% if thinking is false %}w2 {% endif %}" + CHAT
    chat_tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, json_object('{"thinking": false}'), "2026-11-07T10:00:00")
    assert load_prompts([ASKED], loaded, vocab_size=40).row(0).tolist() == [9, 4, *IDS]
    assert ChatTemplate(loaded)(ASKED)["input_ids"] == [9, 4, *IDS]
    assert loaded.chat_template == chat_tokenizer.chat_template
    for given in ("{oops", "[1]"):
        with pytest.raises(ValueError, match="template_kwargs: expected a JSON object, received"):
            json_object(given)
