"""Ready rewards, each against texts judged by hand."""

import inspect

import pytest

from textenvs import rewards


def score(reward, texts, answers):
    column = list(inspect.signature(reward).parameters)[1]
    return reward(completions=texts, **{column: answers})


def test_the_exact_answer_is_the_completion_but_for_space_around_it():
    texts = [" four\n", "four.", "Four", "4", "four", "no"]
    assert score(rewards.exact(), texts, ["four", "four", "four", 4, None, ["yes", "no"]]) == [1, 0, 0, 1, None, 1]
    assert score(rewards.exact("word", ignore_case=True), ["Four"], ["fouR "]) == [1]
    assert list(inspect.signature(rewards.exact("word")).parameters) == ["completions", "word"]


@pytest.mark.parametrize("answer", [True, {"a": 1}, [["a"]], ["a", None]])
def test_an_answer_that_is_no_text_and_no_number_is_refused_since_nobody_writes_it_as_python_does(answer):
    for reward in (rewards.exact(), rewards.regex(".*", column="answer"), rewards.boxed()):
        with pytest.raises(ValueError, match="answer: expected text or a number, or a list of them, received"):
            score(reward, [r"\boxed{true}"], [answer])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 72.", 72), ("x = -3", -3), ("10-3=7", 7), ("20 - 5", 5), ("3-5", 5), ("it is .5", 0.5),
        ("1,234,567.5 dollars", 1234567.5), ("-$1,000", -1000), ("1,2,3", 3), ("2e-3", 0.002), ("3/4", 0.75),
        ("is...42", 42), ("− 7 and −8", -8), ("5/0 but 4", 4), ("**12**", 12), ("答案是5", 5), ("v2 and x5", None),
        ("1 3/4", 1.75), ("-2 1 / 2", -2.5), ("4\n1/2", 0.5), ("-£5", -5), ("€1,000", 1000), (r"10,\!000", 10000),
        ("10{,}000", 10000), ("1.2.3", 1.2), ("no number", None), ("9" * 400, float("inf")), ("1/" + "9" * 400, 0.0),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text, number):
    assert rewards.last_number(text) == number


def test_a_number_is_right_within_its_tolerance():
    gsm8k = "She has 5 - 3 = <<5-3=2>>2 eggs.\n#### 1,002"
    texts = ["so it is 1002", "1002.0000001", "1002.1", "none", "1002 eggs for 3 people"]
    assert score(rewards.number(), texts, [gsm8k] * 5) == [1, 1, 0, 0, 0]
    assert score(rewards.number(tolerance=0.1), ["3.1", "3.11", "2.9"], [3, 3, 3.0]) == [1, 0, 1]
    assert score(rewards.number(relative=0.01), ["101", "-101", "102", "5"], [100, -100, 100, None]) == [1, 1, 0, None]
    assert score(rewards.number(), ["9" * 400], [3]) == [0]
    assert score(rewards.number(), ["it is 4", "5"], [[3, 4], [3, "4"]]) == [1, 0]
    product = 123456789 * 987654321  # beyond what a float tells apart
    assert score(rewards.number(), [f"{product:,}", str(product + 1)], [product, str(product)]) == [1, 0]
    with pytest.raises(ValueError, match="answer: expected a number, or a text with one, received 'ten'"):
        score(rewards.number(), ["10"], ["ten"])
    with pytest.raises(ValueError, match="tolerance: expected a finite number of 0 or more, received -1"):
        rewards.number(tolerance=-1)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{4}.", "4"), (r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a{b{c}d}e}", "a{b{c}d}e"), (r"\boxed{1} then \boxed{2", "1"), (r"\fbox{1} \fboxed{2}", "2"),
        ("boxed 4", None), (r"\boxed{", None), (r"\boxed{}", ""),
    ],
)  # fmt: skip
def test_the_last_whole_box_with_braces_in_it(text, content):
    assert rewards.last_boxed(text) == content


@pytest.mark.parametrize(
    ("box", "answer", "right"),
    [
        ("42", 42, 1), ("42", r"thus \boxed{42}.", 1), (r"\dfrac{1}{2}", "0.5", 1), (r"\frac{1}{2}", r"\tfrac12", 0),
        (r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt{3}}{2}", 1), ("x + 1", "x+1", 1), ("1+x", "x+1", 0),
        ("1,000", "1000", 1),
        (r"\text{Evelyn}", "Evelyn", 1), (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", 1),
        (r"50\%", "50", 1), ("-3", "3", 0), ("5", None, None), ("4", [3, 4], 1), ("−3", "-3", 1), ("€5", "5", 1),
        (r"1\frac{3}{4}", "1.75", 1), (r"1\frac{3}{4}", "3.25", 0), (r"1 \frac{1}{2}", "5.5", 0), ("1  1/2", "5.5", 0),
        ("1 1 / 2", r"1\frac{1}{2}", 1), (r"\frac{x+1}{2}", "x+1/2", 0), (r"\frac{1}{2}x", r"\frac{1}{2x}", 0),
        (r"2 \frac{1}{x}", r"\frac{21}{x}", 0), (r"\frac{2\pi}{3}", r"2\pi/3", 1), (r"\frac{-1}{2}", "-0.5", 1),
        (r"10,\!000", "10000", 1), ("10{,}000", "10000", 1), ("10 000", "10000", 1),
    ],
)  # fmt: skip
def test_a_boxed_answer_is_compared_without_layout(box, answer, right):
    assert score(rewards.boxed(), [rf"It is 7, so \boxed{{{box}}}"], [answer]) == [right]
    assert score(rewards.boxed(), [box], ["42"]) == [0]


def test_a_regular_expression_occurs_or_its_last_match_is_the_answer():
    assert rewards.regex(r"^\d+$")(["12", "a12"]) == [1, 0]
    tagged = rewards.regex(r"<answer>(.*?)</answer>", column="answer")
    texts = ["<answer>3</answer><answer> 4\n</answer>", "<answer>4", "4"]
    assert score(tagged, texts, [4, "4", "4"]) == [1, 0, 0]
    assert score(rewards.regex(r"\d", column="last"), ["1 2"], ["2"]) == [1]
    with pytest.raises(ValueError, match=r"pattern: expected a regular expression, received '\('"):
        rewards.regex("(")


def test_the_format_has_each_tag_once_in_order_and_nothing_but_space_outside():
    texts = {
        "<think>2+2\nis 4</think>\n<answer>4</answer>\n": 1,
        "<think></think><answer></answer>": 1,
        "so <think>a</think><answer>b</answer>": 0,
        "<answer>b</answer><think>a</think>": 0,
        "<think>a</think><answer>b</answer><answer>c</answer>": 0,
        "<think>a<think>b</think></think><answer>c</answer>": 0,
        "<think>a</think><answer>b": 0,
        "a</think><answer>b</answer>": 0,
    }
    assert rewards.format()(prompts=["q"] * 8, completions=list(texts)) == list(texts.values())
    assert rewards.format()(prompts=["q <think>\n"], completions=["a</think><answer>b</answer>"]) == [1]
    assert rewards.format(["a.b"])(prompts=["", ""], completions=["<a.b>1</a.b>", "<axb>1</axb>"]) == [1, 0]
    with pytest.raises(ValueError, match="tags: expected a list of names"):
        rewards.format("think")


def test_length_counts_units_beyond_a_free_number():
    texts, ids = ["one two", ""], [[5, 6, 0], [0]]
    assert rewards.length()(texts, ids) == [3, 1]
    assert rewards.length("words")(texts, ids) == [2, 0]
    assert rewards.length("characters", beyond=5)(texts, ids) == [2, 0]
    with pytest.raises(ValueError, match="unit tokens, words or characters"):
        rewards.length("lines")


def test_names_for_the_shell_with_settings_as_python_writes_them():
    assert score(rewards.by_name("number"), ["3"], [3]) == [1]
    assert score(rewards.by_name("number(tolerance=0.5, column='sum')"), ["3.4"], [3]) == [1]
    assert rewards.by_name(r"regex('a\\d')")(["a1"]) == [1]
    assert [each.__name__ for each in map(rewards.by_name, ("exact", "boxed()", "format", "length"))] == [
        "exact", "boxed", "format", "length",
    ]  # fmt: skip
    assert rewards.is_ready("number(tolerance=1)")
    assert not rewards.is_ready("my_module:number")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nubmer", "no ready reward is called 'nubmer': did you mean 'number'?"),
        ("xyz", "expected one of exact, number, boxed, regex, format, length"),
        ("number(tolerances=1)", r"expected settings of number\(column.*tolerances"),
        ("number(tolerance=open('x'))", "expected settings of number"),
        ("number(1)+2", "expected settings of number"),
        ("number(", "expected settings of number"),
        ("regex", "expected settings of regex.*pattern"),
        ("number(tolerance=-1)", "0 or more, received -1"),
    ],
)
def test_a_name_or_setting_that_is_wrong_is_refused_with_what_is_right(given, said):
    with pytest.raises(ValueError, match=said):
        rewards.by_name(given)
