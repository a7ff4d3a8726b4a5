"""Fail when a page of the built site would have a browser fetch something from elsewhere.

    python docs/_site/check.py build/site

Links to other sites are fine: they are followed by people. The theme's own script can fetch two
things, neither of which these pages ask for: a polyfill for browsers of before 2020, and Mermaid
where a page has a diagram of its kind (looked for here).
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

ATTRIBUTES = ("src", "srcset", "poster", "data", "style")
FETCHING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload"}
REMOTE = re.compile(r"(?:https?:)?//\w")
REMOTE_IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//[^\s\"')]+")
REMOTE_IN_SCRIPT = re.compile(
    r"https?://[^\s\"'`)]*\.(?:js|css|mjs|woff2?)\b|https?://unpkg[^\"'`]+"
)
DORMANT = ("https://unpkg.com/resize-observer-polyfill", "https://unpkg.com/mermaid@")


class Page(HTMLParser):
    """The remote things that one page has fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.remote: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        given = {name: value or "" for name, value in attrs}
        values = [given[name] for name in ATTRIBUTES if name in given]
        if tag == "link" and FETCHING_LINKS & set(given.get("rel", "").split()):
            values.append(given.get("href", ""))
        self.remote += [f"<{tag}> {value}" for value in values if REMOTE.search(value)]
        if "mermaid" in given.get("class", "").split():
            self.remote.append(f"<{tag} class=mermaid>, for which the theme fetches a script")

    def handle_data(self, data: str) -> None:
        if self._tag == "style":
            self.remote += REMOTE_IN_CSS.findall(data)
        if self._tag == "script":
            self.remote += REMOTE_IN_SCRIPT.findall(data)


def remote_references(site: Path) -> list[str]:
    """What the pages, styles and scripts of the folder `site` fetch from other hosts."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            things = Page(path.read_text()).remote
        elif path.suffix == ".css":
            things = REMOTE_IN_CSS.findall(path.read_text())
        elif path.suffix == ".js" and path.parent.name != "search":
            things = REMOTE_IN_SCRIPT.findall(_without_comments(path.read_text()))
            things = [thing for thing in things if not thing.startswith(DORMANT)]
        else:
            continue
        found += [f"{path.relative_to(site)}: {thing}" for thing in things]
    return found


def _without_comments(script: str) -> str:
    return re.sub(r"/\*.*?\*/", "", script, flags=re.DOTALL)


def main() -> None:
    site = Path(sys.argv[1])
    pages = len(list(site.rglob("*.html")))
    if found := remote_references(site):
        sys.exit("\n".join(["The site fetches from other hosts:", *found]))
    if not pages:
        sys.exit(f"{site} holds no page")
    print(f"{pages} pages, nothing is fetched from another host")


if __name__ == "__main__":
    main()
