"""What mkdocs is told beyond its configuration: the menu's folders, generated parts, outside links.

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
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
GENERATED = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)(?=\))")
OUTSIDE = "project"
"""The site's folder for what pages link to in the project, outside its docs."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the menu: a folder stands for its pages that aren't named there, by their names."""
    config.nav = _menu(config.nav, Path(config.docs_dir), set(_named(config.nav)))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the style sheet, and the project's files that pages link to."""
    files.append(File.generated(config, "style.css", abs_src_path=str(HERE / "style.css")))
    linked = {
        target
        for file in files.documentation_pages()
        for target in _outside(file.content_string, file.src_uri)
    }
    for target in sorted(linked):
        found = File.generated(config, f"{OUTSIDE}/{target}", abs_src_path=str(PROJECT / target))
        files.append(found)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put in what is generated, and lead links out of docs to the site's copies."""
    text = GENERATED.sub(lambda found: reference.PARTS[found[1]](), markdown)
    folder = posixpath.dirname(page.file.src_uri)

    def inside(found: re.Match[str]) -> str:
        target = _target(found[1], page.file.src_uri)
        return (
            found[1] if target is None else posixpath.relpath(f"{OUTSIDE}/{target}", folder or ".")
        )

    return LINK.sub(inside, text)


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


def _outside(markdown: str, page: str) -> Iterator[str]:
    for found in LINK.finditer(markdown):
        target = _target(found[1], page)
        if target is not None:
            yield target


def _target(link: str, page: str) -> str | None:
    """Return the path in the project of a file outside docs; None for any other link."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    inside = path.startswith(("docs/", "../"))
    return path if not inside and (PROJECT / path).is_file() else None
