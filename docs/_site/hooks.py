"""MkDocs hooks: links that leave docs/ for the repository lead to pages of this site.

    examples/quickstart.py      ../examples/quickstart.py  ->  source/examples/quickstart.py.md
    CONTRIBUTING.md             becomes the page contributing.md, SECURITY.md security.md
    a folder                    ../tests/zoo               ->  its name, without a link

So the pages read the same on a code host, where the links are relative to the repository.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside of docs/, and one for each file that is linked to."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for path in sorted(_linked_files(config)):
        content = f"# {path}\n\n```python\n{(ROOT / path).read_text()}```\n"
        file = File.generated(config, _source_page(path), content=content)
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links that leave docs/ at those pages."""
    depth = page.file.src_uri.count("/")

    def replace(found: re.Match[str]) -> str:
        text, path = found.groups()
        if (ROOT / path).is_dir():
            return text if text.startswith("`") else f"`{text}`"
        return f"[{text}]({'../' * depth}{PAGES.get(path) or _source_page(path)})"

    return LINK.sub(replace, markdown)


def _linked_files(config: MkDocsConfig) -> set[str]:
    pages = Path(config.docs_dir).glob("*.md")
    paths = {path for page in pages for _, path in LINK.findall(page.read_text())}
    return {path for path in paths if path not in PAGES and (ROOT / path).is_file()}


def _source_page(path: str) -> str:
    return f"source/{path}.md"
