"""The page of tokens shows the batch's own numbers, whatever the texts say, and no padding."""

import html.parser
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.evaluation.token_page import Snapshot, write_token_page
from agents.evaluation.token_table import QUANTITIES, token_tables, token_texts
from agents.rollout import Rollout
from textenvs.tokens.rows import TokenRows

WORDS = ["<end>", "good", "<b>bold</b>", "R&D", '"quoted"', "</table>", "<!-- newest -->", "<script>alert(1)</script>"]
B, T, NAN = 3, 5, float("nan")


def word_tokenizer():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def rollout_of():
    """Three texts of 5, 2 and 3 tokens; what stands in the padding must never be seen."""
    mask = torch.arange(T) < torch.tensor([[5], [2], [3]])
    generator = torch.Generator().manual_seed(0)

    def numbers():
        return torch.randn(B, T, generator=generator).masked_fill(~mask, NAN)

    actions = torch.tensor([[1, 2, 3, 4, 5], [6, 0, -1, -1, -1], [7, 1, 0, -1, -1]])
    ended = torch.zeros_like(mask)
    ended[torch.arange(B), mask.sum(1) - 1] = True
    rollout = Rollout(
        observations=torch.tensor([[2, 1], [1, -1], [3, -1]]), actions=actions, logprobs=numbers(), values=numbers(),
        next_values=numbers(), rewards=numbers(), terminated=ended, ended=ended, mask=mask, ref_logprobs=numbers(),
    )  # fmt: skip
    rows = TokenRows(
        prompts=rollout.observations.numpy(), completions=actions.numpy(), rewards=rollout.rewards.numpy(),
        terminated=np.ones(B, bool), truncated=np.zeros(B, bool), stop_reason=np.array(["length", "eos", "eos"]),
        scores=np.array([0.5, -1.25, 2.0], np.float32),
    )  # fmt: skip
    return rollout, rollout.to_batch(numbers()), rows


def tables_of(valued=True):
    rollout, batch, rows = rollout_of()
    return token_tables(rollout, batch, rows, ["<b>bold</b> good", "good", "R&D"], word_tokenizer(), has_critic=valued)


def snapshot_of(updates=0, **options):
    return Snapshot(algorithm="ppo", updates=updates, texts=8 * updates, beta=0.1, tables=tables_of(**options))


class Page(html.parser.HTMLParser):
    """Tokens and table cells of a page, by article, as a browser would read them."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.articles, self.tags, self._inside = [], [], set(), None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        given = dict(attributes)
        if tag == "section":
            self.sections.append(given["id"])
        if tag == "article":
            self.articles.append({"tokens": [], "cells": {}, "facts": "", "prompt": ""})
        kinds = (given.get("class") or "").split()
        if "token" in kinds:
            self.articles[-1]["tokens"].append("")
        self._inside = "token" if "token" in kinds else kinds[0] if kinds and tag == "span" else tag
        if tag == "td" and "data-value" in given:
            self.articles[-1]["cells"].setdefault(given["data-name"], []).append(float(given["data-value"]))

    def handle_data(self, data):
        if self._inside == "token":
            self.articles[-1]["tokens"][-1] += data
        elif self._inside == "prompt":
            self.articles[-1]["prompt"] += data
        elif self._inside in ("b", "span") and self.articles:
            self.articles[-1]["facts"] += data

    def handle_endtag(self, tag):
        self._inside = "span" if tag == "b" else None


@pytest.mark.parametrize("valued", [True, False])
def test_the_pages_numbers_are_the_batchs_and_masked_tokens_are_absent(tmp_path, valued):
    rollout, batch, rows = rollout_of()
    write_token_page(tmp_path / "tokens.html", snapshot_of(valued=valued))
    articles = Page(tmp_path / "tokens.html").articles
    expected = {
        "logprob": rollout.logprobs,
        "ref_logprob": rollout.ref_logprobs,
        "kl": rollout.logprobs - rollout.ref_logprobs,
        "reward": rollout.rewards,
        "value": batch.old_values,
        "advantage": batch.advantages,
        "return": batch.advantages + batch.old_values,
    }
    assert list(expected) == list(QUANTITIES)
    for i, article in enumerate(articles):
        length = int(rollout.mask[i].sum())
        assert len(article["tokens"]) == length
        assert ("value" in article["cells"]) == ("return" in article["cells"]) == valued
        for name, numbers in article["cells"].items():
            assert numbers == pytest.approx(expected[name][i, :length].tolist(), rel=1e-5), name
        kl = float(expected["kl"][i, :length].sum())
        assert f"KL {round(kl, 3) + 0.0:.3f} nats" in article["facts"]
        assert f"score {rows.scores[i]:.3f}" in article["facts"]
        assert f"{length} tokens" in article["facts"]
        assert ("ended by itself" in article["facts"]) == (i > 0)
    assert "nan" not in re.sub("<script>.*</script>", "", (tmp_path / "tokens.html").read_text().lower())


def test_texts_are_shown_and_not_obeyed(tmp_path):
    for updates in (0, 1):
        write_token_page(tmp_path / "tokens.html", snapshot_of(updates=updates))
    page = Page(tmp_path / "tokens.html")
    assert page.sections == ["first", "newest"]
    first = page.articles[0]
    assert first["prompt"] == "<b>bold</b> good"
    assert first["tokens"] == ["good", "<b>bold</b>", "R&D", '"quoted"', "</table>"]
    assert page.articles[1]["tokens"] == ["<!-- newest -->", "<end>"]
    assert page.articles[2]["tokens"][0] == "<script>alert(1)</script>"
    assert (tmp_path / "tokens.html").read_text().count("<script>") == 1  # the page's own
    assert not {"link", "img", "iframe"} & page.tags
    assert "http" not in (tmp_path / "tokens.html").read_text()


def test_the_first_snapshot_stays_and_the_newest_follows_also_when_a_run_goes_on(tmp_path):
    path = tmp_path / "tokens.html"
    for updates in (0, 5, 9):  # nothing but the file is remembered between two calls
        write_token_page(path, snapshot_of(updates=updates))
        sections = re.findall(r'<section id="(\w+)" data-label="([^"]*)"', path.read_text())
        assert sections[0] == ("first", "before training")
        assert sections[1:] == ([("newest", f"after {updates} updates")] if updates else [])
    assert [file.name for file in tmp_path.iterdir()] == ["tokens.html"]


def test_tokens_put_together_are_the_text_also_where_a_character_is_cut():
    core = Tokenizer(models.BPE(vocab=byte_vocabulary(), merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    text = "a fine film, naïve and long enough"
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids[:2], ids[2:])
    assert len(texts) == len(ids) - 2
    assert "".join(texts).replace("\ufffd", "") == "fine film, naïve and long enough"
    assert texts[13:15] == ["\ufffd", "ï"]
    assert token_texts(word_tokenizer(), [1], [1, 3]) == [" good", " R&D"]
    assert token_texts(word_tokenizer(), [], [1, 3]) == ["good", " R&D"]


def byte_vocabulary():
    return {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
