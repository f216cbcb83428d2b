"""What mkdocs is told beyond its configuration: the menu's folders, what is generated, links out.

A page's line ``<!-- generated: NAME -->`` is replaced by what ``reference.PARTS[NAME]`` returns.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).parents[2]
GENERATED = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the menu: a folder stands for its pages that aren't named there, by their names."""
    config.nav = _menu(config.nav, Path(config.docs_dir), set(_named(config.nav)))
    return config


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put in what is generated; a link to a file of the project's becomes the name of that file."""
    text = GENERATED.sub(lambda found: reference.PARTS[found[1]](), markdown)
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def named(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[2]))
        outside = not path.startswith(("docs/", "../")) and (PROJECT / path).exists()
        return f"{found[1]} (`{path}`)" if outside else found[0]

    return LINK.sub(named, text)


def _named(item: Any) -> Iterator[str]:  # noqa: ANN401 - whatever YAML holds
    if isinstance(item, str):
        yield item
    else:
        for inner in item.values() if isinstance(item, dict) else item:
            yield from _named(inner)


def _menu(item: Any, docs: Path, named: set[str]) -> Any:  # noqa: ANN401
    if isinstance(item, dict):
        return {title: _menu(inner, docs, named) for title, inner in item.items()}
    if isinstance(item, str):
        return item
    menu: list[Any] = []
    for inner in item:
        if isinstance(inner, str) and inner.endswith("/"):
            pages = [inner + path.name for path in sorted((docs / inner).glob("*.md"))]
            menu += [page for page in pages if page not in named]
        else:
            menu.append(_menu(inner, docs, named))
    return menu
