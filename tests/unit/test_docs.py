"""The documentation: it builds without a warning, links lead somewhere, and it says what is true."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

from rbuild import errors
from rbuild.cli import main
from rbuild.specs.profile import Profile

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
PAGES = sorted(path.relative_to(PROJECT).as_posix() for path in DOCS.rglob("*.md"))
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


def build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    words = ["-m", "mkdocs", "build", "--strict", "-f", docs / "site/mkdocs.yml", "-d", site]
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    found = build(DOCS, folder)
    assert found.returncode == 0, found.stderr
    return folder


@dataclass
class Html(HTMLParser):
    """What a page of the site has: places to link to, links, what it loads, and its text."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag == "link" and found.get("rel") in {"stylesheet", "icon", "preload"}:
            self.loads.append(str(found["href"]))
        if tag in {"script", "img", "iframe"} and found.get("src"):
            self.loads.append(str(found["src"]))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def parsed(path: Path) -> Html:
    page = Html()
    page.feed(path.read_text())
    return page


def test_each_page_is_in_the_site(site: Path) -> None:
    for name in PAGES:
        page = Path(name).relative_to("docs").with_suffix(".html")
        assert (site / page.with_name(page.name.replace("README", "index"))).is_file(), name


def test_each_link_leads_somewhere(site: Path) -> None:
    pages = {path.resolve(): parsed(path) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https" and "." in parts.netloc, f"{path}: {link}"
                continue
            if path.name == "404.html":
                continue  # its links begin where the site will be
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path}: {link}"


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for found in parsed(path).loads:
            assert not urlsplit(found).netloc, f"{path}: {found}"


def test_what_is_wrong_with_a_page_is_an_error(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    for name in ("module", "README.md"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (docs / "forgotten.md").write_text("# Not in the menu\n")
    (docs / "how-to/new.md").write_text(
        "# New\n\n[a](no-such.md) [b](docker.md#no-such) [c](../../module/no-such)\n\n"
        "[d](../../README.md#start)\n"
    )
    found = build(docs, tmp_path / "out")
    assert found.returncode != 0
    for words in (
        "- forgotten.md",
        "'no-such.md'",
        "does not contain an anchor '#no-such'",
        "'../../module/no-such'",
    ):
        assert words in found.stderr, found.stderr
    # A page in a folder of the menu is picked up; one of the project's own may be linked to.
    assert "- how-to/new.md" not in found.stderr
    assert "README" not in found.stderr


@pytest.mark.parametrize("name", ["README.md", "module/glue/README.md", *PAGES])
def test_links_lead_somewhere_where_the_source_is_read(name: str) -> None:
    path = PROJECT / name
    for link in LINK.findall(path.read_text()):
        parts = urlsplit(link)
        if parts.scheme or not parts.path:
            continue
        assert (path.parent / unquote(parts.path)).exists(), f"{name}: {link}"


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Yield each command with its words."""
    yield [], main.main
    for name in main.COMMANDS:
        command = main.main.get_command(click.Context(main.main), name)
        assert command is not None
        yield [name], command
        if isinstance(command, click.Group):
            for inner, found in command.commands.items():
                yield [name, inner], found


def options(command: click.Command) -> set[str]:
    found = {"-h", "--help"}
    for one in command.params:
        if isinstance(one, click.Option):
            found |= {*one.opts, *one.secondary_opts}
    return found


def test_each_command_and_each_option_is_in_the_reference(site: Path) -> None:
    page = parsed(site / "reference/commands.html")
    sections = page.text.split("Usage: ")
    for words, command in commands():
        name = " ".join(["rbuild", *words])
        assert name.replace(" ", "-") in page.ids
        section = next(text for text in sections if text.startswith(f"{name} ["))
        for option in options(command):
            assert re.search(rf"(?<!\w){re.escape(option)}(?![\w-])", section), f"{name} {option}"


def test_each_field_and_code_and_variable_is_in_the_reference(site: Path) -> None:
    text = parsed(site / "reference/profiles.html").text
    for name in Profile.model_fields:
        assert f"\n{name}\n" in text
    assert "module/patches/<kernel version>/" in text
    text = parsed(site / "reference/exit-codes.html").text
    for error in (errors.BuildFailed, errors.UsageError, errors.MissingDependency):
        assert f"\n{error.exit_code}\n{error.__name__}\n" in text
    text = parsed(site / "reference/variables.html").text
    for _, command in commands():
        for one in command.params:
            assert one.envvar is None or f"\n{one.envvar}\n" in text


@pytest.mark.parametrize("page", ["profiles", "environments", "machines"])
def test_each_field_is_described(site: Path, page: str) -> None:
    assert "<td></td>\n</tr>" not in (site / f"reference/{page}.html").read_text()


def blocks() -> list[tuple[str, str]]:
    return [(name, text) for name in PAGES for text in FENCE.findall((PROJECT / name).read_text())]


def test_examples_are_shell() -> None:
    assert len(blocks()) > 30
    for name, text in blocks():
        found = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert found.returncode == 0, f"{name}:\n{text}{found.stderr}"


def test_examples_have_commands_and_options_that_there_are() -> None:
    known = {tuple(words): options(command) for words, command in commands()}
    seen = 0
    for name, text in blocks():
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or Path(words[0]).name != "rbuild":
                continue
            end = next((n for n, word in enumerate(words) if word in {"--", "|", ">"}), None)
            own = words[1:end]
            place = next((n for n, word in enumerate(own) if word in main.COMMANDS), None)
            assert place is not None, f"{name}: {line}"
            path = tuple(own[place : place + 2])
            path = path if path in known else path[:1]
            for allowed, part in ((known[()], own[:place]), (known[path], own[place:])):
                for word in part:
                    option = re.sub(r"^(--[^=]+)=.*|^(-j)\d+$", r"\1\2", word)
                    assert not re.match("-.", word) or option in allowed, f"{name}: {line}"
            seen += 1
    assert seen > 40
