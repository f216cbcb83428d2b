"""The tutorial's modules, taken from its page: they build, boot, and log what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import Rbuild

PAGE = Path(__file__).parents[2] / "docs/tutorial/2-own-driver.md"


@pytest.mark.parametrize(("language", "name"), [("c", "counter.c"), ("rust", "squares.rs")])
def test_the_tutorial_s_module_works(
    rbuild: Rbuild, tmp_path: Path, language: str, name: str
) -> None:
    text = PAGE.read_text()
    source = re.search(rf"`my-{language}/{name}`.*?```{language}\n(.*?)```", text, re.DOTALL)
    kbuild = re.search(rf"echo '(.*)' > my-{language}/Kbuild", text)
    assert source is not None and kbuild is not None
    folder = tmp_path / f"my-{language}"
    folder.mkdir()
    (folder / "Kbuild").write_text(kbuild[1] + "\n")
    (folder / name).write_text(source[1])

    found = rbuild("--json", "boot", folder).json["boot"]
    assert found["passed"], found
    stem = Path(name).stem
    said = [line for line in text.splitlines() if line.startswith(f"{stem}: ")]
    assert len(said) > 2
    console = Path(found["console"]).read_text()
    for line in said:
        assert line in console
