"""Did you mean: whatever is mistyped, the nearest word is named, with exit code 2."""

from __future__ import annotations

import pytest

from rbuild.util.suggest import guess, nearest

from .conftest import Host


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("profiels", "profiles"),
        ("profiles shwo slim", "show"),
        ("module --drivr c", "--driver"),
        ("--cache-dri /tmp status", "--cache-dir"),
        ("module --driver rusty", "rust"),
        ("module --driver C", "c"),
        ("module --runtime dokcer", "docker"),
        ("package --format module --output .", "module-deb"),
        ("bench --kind in-tre", "in-tree"),
        ("bench --scenario incrementl", "incremental"),
        ("clean --what kdir", "kdirs"),
        ("completion zhs", "zsh"),
        ("kernel --profile slimm", "slim"),
        ("profiles show Slim", "slim"),
        ("kernel --env hibrid", "hybrid"),
        ("kernel --env hybrid:compiler", "compilers"),
        ("setup crosss", "cross"),
        ("boot --suite sok", "soak"),
        ("boot --test dead_bux", "dead_bus"),
        ("boot --machine raspi3", "raspi3b"),
    ],
)
def test_the_nearest_is_named(line: str, meant: str, host: Host) -> None:
    found = host(*line.split(), code=2)
    assert f"Did you mean {meant!r}?" in found.err
    assert found.out == ""


@pytest.mark.parametrize("line", ["xyzzy", "profiles xyzzy", "clean --what xyzzy"])
def test_nothing_is_guessed_where_nothing_is_near(line: str, host: Host) -> None:
    found = host(*line.split(), code=2)
    assert "xyzzy" in found.err
    assert "Did you mean" not in found.err


def test_what_is_meant() -> None:
    assert guess("spi_bcm2835", ["SPI_BCM2835", "SPI"]) == "SPI_BCM2835"
    assert guess("compl", ["compilers", "all"]) == "compilers"
    assert guess("s", ["slim", "slim-debug"]) is None
    assert guess("", ["slim"]) is None
    assert nearest("x", ["b", "a"]) == " Known: a, b."
    assert nearest("x", []) == ""
