"""What is checked of a page without a browser."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link", "col"}


class Markup(HTMLParser):
    """A page's elements; refuses what is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), "/".join(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), "/".join(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a name."""
        return [attributes for name, attributes, _ in self.elements if name == tag]


def check_page(page: str) -> Markup:
    """Assert what holds of every page: it is whole, needs nothing else, and can be read by machines."""
    markup = Markup(page)
    assert page.startswith("<!DOCTYPE html>")
    assert markup.all("html") == [{"lang": "en"}]
    assert len(markup.all("title")) >= 1 and len(markup.all("h1")) == 1
    assert any(meta.get("name") == "viewport" for meta in markup.all("meta"))
    assert not re.search(r"https?:|url\((?!#)|@import", page)
    for tag in ("link", "script", "img", "iframe", "object", "a"):
        assert markup.all(tag) == []
    ids = Counter(attributes["id"] for _, attributes, _ in markup.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', page):
        assert reference in ids, f"{reference} is nowhere"
    levels = [int(tag[1]) for tag, _, _ in markup.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    for _, attributes, path in (element for element in markup.elements if element[0] == "th"):
        assert "scope" in attributes or attributes.get("aria-hidden") == "true", path
    assert len(markup.all("table")) == len(markup.all("caption"))
    for svg in markup.all("svg"):
        assert svg["role"] == "img" and svg["aria-label"]
    return markup
