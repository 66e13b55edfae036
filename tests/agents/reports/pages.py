"""What every page of ours promises."""

import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """What a page consists of; parsing it raises if tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open and "script" not in self._open:
            self.text += data

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def check(text):
    """Hold a page to what every page of ours promises."""
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(now <= before + 1 for before, now in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [each["href"] for each in page.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(each.get("aria-label") and each["role"] == "img" for each in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(each["title"] for each in page.all("iframe"))
    assert [each["lang"] for each in page.all("html")] == ["en"]
    assert {each["name"] for each in page.all("meta") if "name" in each} >= {"viewport", "generator"}
    assert not page.all("img", "form")
    # Nothing is loaded: no address but those that a reader follows.
    sources = [each.get("src") for _, each in page.tags] + [each["href"] for each in page.all("link")]
    assert set(sources) <= {None, "data:,"}
    assert not re.search(r"@import|url\(", text)
    assert not [name for _, each in page.tags for name in each if name.startswith("on")]
    assert len(text.encode()) < 3_000_000
    return page
