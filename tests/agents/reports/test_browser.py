"""The pages in a real browser: no complaint, no sideways scrolling, reachable by keyboard, readable in the dark."""

import threading

import pytest

from agents.evaluation.token_page import Snapshot, write_token_page
from agents.evaluation.token_table import TokenTable
from agents.reports.compare import write_comparison
from agents.reports.page import write_report
from agents.reports.watch import WatchServer
from tests.agents.reports.browser import CHROMIUM, Chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium, or set TEXTENVS_CHROMIUM"),
]
REACHABLE = 'a[href], button, input, select, summary, iframe, [tabindex="0"]'
CONTRAST = """(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const shine = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const found = numbers(getComputedStyle(element).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter(element => element.checkVisibility()
      && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
    const style = getComputedStyle(element);
    const ink = shine(numbers(element.closest("svg") ? style.fill : style.color)), page = shine(behind(element));
    return [(Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05), element.outerHTML.slice(0, 80)];
  }).filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def pages(text_run, make_run, tmp_path):
    """A report with everything, and a comparison of two groups."""
    columns = {"logprob": [-1.0, -0.5], "kl": [0.1, -0.2], "advantage": [1.0, -1.0], "reward": [0.0, 1.0]}
    table = TokenTable(prompt="the film", tokens=[" is", " good"], columns=columns, score=1.0, stop_reason="eos")
    (text_run / "tokens.html").unlink()
    for updates in (0, 4):
        write_token_page(
            text_run / "tokens.html", Snapshot(algorithm="ppo", updates=updates, texts=0, beta=0.1, tables=[table])
        )
    runs = []
    for rate, value in ((0.1, 1.0), (0.1, 2.0), (0.2, 3.0)):
        rows = [{"time/steps": 64 * i, "eval/return_mean": value * i} for i in (1, 2, 3)]
        summary = {"eval_return_mean": value, "eval_return_std": 1.0, "eval_episodes": 9, "wall_s": 1.0}
        settings = {"env": "CartPole-v1", "a_setting_with_a_long_name_that_does_not_fit_a_phone": rate}
        runs.append(make_run(f"run {len(runs)}", "train_control", settings, rows, summary=summary))
    write_comparison(tmp_path / "compare.html", runs)
    return {"report": write_report(text_run), "compare": tmp_path / "compare.html"}


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_opens_without_complaint_and_does_not_scroll_sideways(browser, pages, name, capsys):
    tab = browser.open(pages[name].as_uri())
    took = tab.run("Math.round(performance.getEntriesByType('navigation')[0].loadEventEnd)")
    with capsys.disabled():
        print(f" {name}: opened in {took} ms, {pages[name].stat().st_size / 1e3:.0f} kB", end="")
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    for width in (400, 1400):
        tab.resize(width, 900)
        assert tab.run("innerWidth") == width
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run(
            "[...document.querySelectorAll('body *')].filter(each => each.checkVisibility()"
            " && !each.closest('.scroll, pre') && each.getBoundingClientRect().right > innerWidth + 1"
            " && !each.matches('.skip')).map(each => each.outerHTML.slice(0, 80))"
        ) == []  # fmt: skip
    assert tab.complaints() == []


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_light_and_dark(browser, pages, name, dark):
    tab = browser.open(pages[name].as_uri(), dark=dark)
    brightness = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert brightness < 40 if dark else brightness > 215
    assert tab.run(CONTRAST) == []


@pytest.mark.parametrize("name", ["report", "compare"])
def test_the_tab_key_reaches_everything_visibly(browser, pages, name):
    tab = browser.open(pages[name].as_uri())
    wanted = tab.run(
        f"[...document.querySelectorAll({REACHABLE!r})].filter(each => each.checkVisibility())"
        ".map((each, i) => { each.dataset.stop = i; return i; })"
    )
    assert len(wanted) > 3
    reached = []
    for _ in range(len(wanted) + 2):
        tab.press("Tab")
        stop = tab.run("document.activeElement.dataset.stop ?? null")
        if stop is not None:
            reached.append(int(stop))
            assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached[: len(wanted)] == wanted


def test_the_view_of_tokens_opens_by_keyboard_and_works_in_its_frame(browser, pages):
    tab = browser.open(pages["report"].as_uri())
    tab.run("document.querySelector('iframe').onload = () => { window.isLoaded = true; }")
    tab.run("document.querySelector('#token-view summary').focus()")
    tab.press("Enter")
    assert tab.run("document.querySelector('#token-view').open")
    tab.until("window.isLoaded && document.querySelector('iframe').srcdoc.includes('the film')")
    tab.press("Tab")
    assert tab.run("document.activeElement.localName") == "iframe"
    tab.press("Tab")
    tab.press("Tab")
    assert tab.complaints() == []


def test_a_page_prints(browser, pages):
    tab = browser.open(pages["report"].as_uri())
    assert len(tab.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]) > 10_000
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert not tab.run("document.querySelector('.screen').checkVisibility()")


def test_a_watched_page_renews_itself_and_leaves_open_what_is_open(browser, pages):
    folder = pages["report"].parent
    with WatchServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        tab = browser.open(server.address)
        tab.run("document.querySelector('#all-settings').open = true")
        tab.run("document.querySelector('#token-view').open = true")
        tab.run("document.querySelector('#token-view summary').focus()")
        with (folder / "progress.csv").open("a") as file:
            file.write("640,77.5,,,,,,\n")
        tab.until("document.body.innerHTML.includes('77.5')")
        assert tab.run("document.querySelector('#all-settings').open")
        assert tab.run("document.activeElement.closest('details').id") == "token-view"
        tab.until("document.querySelector('iframe').srcdoc.includes('the film')")
        assert tab.complaints() == []
        server.shutdown()
        thread.join()
    tab.until("document.getElementById('pulse').textContent.includes('has ended')")
