"""Every family of causal language models in transformers is exact in every path, or refused when it is loaded.

`python tests/agents/lm/test_families.py` prints the table of docs/verification.md.
"""

from pathlib import Path

import pytest

from agents.lm.causal_lm import CausalLMPolicy
from agents.verification.models import family_paths
from agents.verification.models.families import EXACT, MESSAGES, NOT_RECOMPUTED, REFUSED, REPRESENTATIVE, build, known
from agents.verification.models.family_paths import path_errors, refused_with_reason
from textenvs.wrappers.reference import CausalLMReference

DOCS = Path(__file__).parents[3] / "docs" / "verification.md"


def cases(table):
    return [pytest.param(family, marks=() if family in REPRESENTATIVE else pytest.mark.slow) for family in known(table)]


@pytest.mark.parametrize("family", cases(EXACT))
def test_every_path_of_a_family_equals_the_plain_model(family):
    errors = path_errors(family)
    assert ("gradient, recomputed" in errors) == (family not in NOT_RECOMPUTED)
    assert {path: error for path, error in errors.items() if not error <= 1} == {}


@pytest.mark.parametrize("family", sorted(NOT_RECOMPUTED))
def test_layers_that_cannot_be_checkpointed_are_refused_with_recompute_only(family):
    with pytest.raises(ValueError, match="expected layers that support gradient checkpointing"):
        CausalLMPolicy(build(family, EXACT[family]), critic="none", recompute=True)


@pytest.mark.filterwarnings("ignore:.*runs without")
@pytest.mark.parametrize("family", cases(REFUSED))
def test_other_families_are_refused_with_the_reason(family):
    assert refused_with_reason(family)


@pytest.mark.filterwarnings("ignore:.*runs without")
def test_a_cache_that_forgets_what_the_model_attends_to_is_refused():
    """Moshi's mask has no window, but transformers caches one."""
    with pytest.raises(ValueError, match="states with a key-value cache are those without"):
        CausalLMPolicy(build("moshi", dict(sliding_window=3)), critic="none")


def test_verify_counts_families_and_names_what_is_wrong_with_one(monkeypatch):
    step = CausalLMReference.step
    monkeypatch.setattr(family_paths, "EXACT", {"gpt_neo": EXACT["gpt_neo"]})
    monkeypatch.setattr(family_paths, "REFUSED", {"bert": REFUSED["bert"]})
    assert family_paths.family_line(full=False)[1:] == ("1 exact, 1 refused", "1 exact, 1 refused", True)
    monkeypatch.setattr(CausalLMReference, "step", lambda *args: step(*args) + 1e-3)
    check = family_paths.family_line(full=False)
    assert not check.passed
    assert check.measured.startswith("0 exact, 1 refused; gpt_neo: reference, token by token, 100 x")


def table():
    """Markdown."""
    lines = ["| families | language models |", "|---|---|"]
    lines.append(f"| exact in every path ({len(EXACT)}) | {', '.join(sorted(EXACT))} |")
    for reason in MESSAGES:
        names = sorted(name for name, (why, _) in REFUSED.items() if why == reason)
        lines.append(f"| refused: {reason} ({len(names)}) | {', '.join(names)} |")
    lines.append(f"| exact, but refused with gradient checkpointing | {', '.join(sorted(NOT_RECOMPUTED))} |")
    return "\n".join(lines)


def test_the_documented_table_is_that_of_these_tests():
    assert table() in DOCS.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
