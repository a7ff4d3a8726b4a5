"""No page of the documentation site loads anything from other sites."""

import importlib.util
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "docs" / "_site" / "check.py"
spec = importlib.util.spec_from_file_location("check_site", CHECK)
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

REMOTE = {
    "script": ("a.html", '<script src="https://unpkg.com/iframe-worker/shim"></script>'),
    "a script that loads": ("a.html", "<script>load('https://a.b/c.js')</script>"),
    "style": ("a.html", '<link rel="stylesheet" href="//fonts.example/css?family=Roboto">'),
    "preconnect": ("a.html", '<link rel="preconnect" href="https://fonts.example">'),
    "image": ("a.html", '<img alt="" src="http://example.org/badge.svg">'),
    "inline style": ("a.html", '<p style="background: url(https://a.b/c.png)">'),
    "font in a style": ("a.css", "@font-face { src: url('https://a.b/c.woff2') }"),
    "imported style": ("a.css", '@import "https://a.b/c.css";'),
    "script in a script": ("a.js", 'load("https://cdn.example/lib.js")'),
    "mermaid": ("a.html", '<pre class="mermaid"><code>graph TD</code></pre>'),
}


@pytest.mark.parametrize("what", REMOTE)
def test_what_is_fetched_is_found(what, tmp_path):
    name, text = REMOTE[what]
    (tmp_path / name).write_text(text)
    assert len(check.remote_references(tmp_path)) == 1


def test_links_and_local_files_are_fine(tmp_path):
    (tmp_path / "a.html").write_text(
        '<link rel="icon" href="_site/a.svg"><a href="https://arxiv.org/abs/2501.06589">paper</a>'
        '<script src="../b.js"></script><img src="c.png"><style>p { color: red }</style>'
    )
    (tmp_path / "b.js").write_text('/* https://a.b/c.js */ load("https://unpkg.com/mermaid@11/x")')
    assert check.remote_references(tmp_path) == []


def test_an_empty_folder_is_no_site(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["check.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no page"):
        check.main()
