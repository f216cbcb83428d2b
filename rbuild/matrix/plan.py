"""What a matrix builds: every combination that was asked for, but those that can't be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rbuild.bench.places import has_rust
from rbuild.bench.plan import Target
from rbuild.errors import UsageError
from rbuild.specs import environment
from rbuild.specs.profile import Driver, Profile


@dataclass(frozen=True)
class Build:
    """One combination.  ``env`` is what --env is given, ``environment`` what that means here."""

    profile: Profile
    env: str
    environment: str
    target: Target
    driver: Driver | None

    def __str__(self) -> str:
        return f"{self.group}, {self.environment}"

    @property
    def group(self) -> str:
        """What is built, wherever: builds of a group should give the same bytes."""
        words = [self.profile.name, self.target.value]
        return " ".join([*words, self.driver.value] if self.driver else words)

    def as_json(self) -> dict[str, Any]:
        """Return what names the combination, in the words of every build's JSON."""
        return {
            "profile": self.profile.name,
            "environment": self.environment,
            "kind": self.target.value,
            "driver": self.driver,
        }


@dataclass(frozen=True)
class Skip:
    """A combination that is not built, and why."""

    build: Build
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the combination with the reason."""
        return {**self.build.as_json(), "reason": self.reason}


@dataclass(frozen=True)
class Plan:
    """What is built, those of a group one after another; and what is skipped.

    ``options`` are more words for the command line of each build, such as --jobs.
    """

    builds: tuple[Build, ...]
    skipped: tuple[Skip, ...]
    options: tuple[str, ...] = ()


def combine(
    profiles: Sequence[Profile],
    envs: Sequence[str],
    targets: Sequence[Target],
    drivers: Sequence[Driver],
) -> Plan:
    """Return every combination; a kernel has no driver.

    Raises UsageError as ``environment.load`` does, if two profiles have the same name, and if
    nothing that was asked for can be built.
    """
    for name, count in Counter(found.name for found in profiles).items():
        if count > 1:
            raise UsageError(f"{count} of the profiles are named {name}: a report can't tell them.")
    builds: list[Build] = []
    skipped: list[Skip] = []
    for found in profiles:
        for one, reason in _of_profile(found, envs, targets, drivers):
            if reason is not None:
                skipped.append(Skip(one, reason))
            elif one.as_json() not in [other.as_json() for other in builds]:
                builds.append(one)
    if not builds:
        raise UsageError(
            "Nothing that was asked for can be built.",
            detail="\n".join(f"{one.build}: {one.reason}" for one in skipped),
        )
    return Plan(tuple(builds), tuple(skipped))


def _of_profile(
    found: Profile, envs: Sequence[str], targets: Sequence[Target], drivers: Sequence[Driver]
) -> Iterator[tuple[Build, str | None]]:
    """Yield a profile's combinations, each with the reason why it is skipped, if it is."""
    rust = has_rust(found)
    places = [_place(env, found) for env in envs]
    for target in targets:
        for driver in (None,) if target is Target.KERNEL else drivers:
            for env, (name, misfit) in zip(envs, places, strict=True):
                lacks_rust = driver is Driver.RUST and not rust
                reason = misfit or ("the profile has no Rust" if lacks_rust else None)
                yield Build(found, env, name, target, driver), reason


def _place(env: str, found: Profile) -> tuple[str, str | None]:
    """Return which environment ``env`` means for a profile, and why it can't build it, if so."""
    meant = environment.load(env)
    try:
        return environment.load_for(env, found.architecture).name, None
    except UsageError as error:
        return meant.name, error.message.rstrip(".")
