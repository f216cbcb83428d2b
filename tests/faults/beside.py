"""What comes in beside the sandbox: definitions, machines, settings, profiles, folders, outputs.

Each attempt is one of an outsider's, made by a folder or a file that a user is given.  It succeeds
if it runs a command, changes or reads a file that isn't its own, or makes rbuild fall over.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lab import Done, Lab

SECRET = "a-secret-of-the-user"
MAX_BACKUPS = "kept by the user\n"
ESCAPES = "\x1b", "\x07", "\x9b"
DEEP = 3000
LONG_S = 120.0
"""An attempt that takes so long was not refused: it provisions, or hangs."""

MAKEFILE = "obj-m += mine.o\n"
CROSS = 'name: cross\nsuite: trixie\narchitecture: arm64\npackages: [make, gcc]\nllvm: "-19"\n'


@dataclass
class Tried:
    """What came of all attempts; ``successes`` has a line for each that succeeded."""

    attempts: int = 0
    successes: list[str] = field(default_factory=list)


class Place:
    """Where one attempt works: a folder of the outsider's, and what is the user's own."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.given = folder / "given"
        self.given.mkdir(parents=True)
        self.victim = folder / "home/victim"
        self.victim.parent.mkdir()
        self.victim.write_text(MAX_BACKUPS)
        self.secret = folder / "home/secret.h"
        self.secret.write_text(f'#define SECRET "{SECRET}"\nCONFIG_SECRET="{SECRET}"\n')
        self.ran = folder / "ran"
        self.out = folder / "out"

    def write(self, name: str, text: str) -> Path:
        path = self.given / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def module(self, makefile: str = MAKEFILE, source: str | None = None) -> Path:
        text = (self.lab.module / "mine.c").read_text() if source is None else source
        self.write("mine/mine.c", text)
        return self.write("mine/Kbuild", makefile).parent

    def profile(self, **fields: str) -> Path:
        text = self.lab.profile.read_text()
        for name, value in fields.items():
            lines = [line for line in text.splitlines() if not line.startswith(f"{name}:")]
            text = "\n".join([*lines, f"{name}: {value}"]) + "\n"
        return self.write("given.yaml", text)

    def build(self, *words: str | Path, cwd: Path | None = None) -> Done:
        return self.lab.run("module", *words, cwd=cwd)

    def faults(self, done: Done) -> Iterator[str]:
        """Yield what must not be, whatever was tried."""
        if "Traceback" in done.err:
            yield f"a traceback: {done.err.strip().splitlines()[-1]}"
        if done.seconds > LONG_S:
            yield f"it took {done.seconds:.0f} s"
        if self.ran.exists():
            yield "a command ran on the host"
        if not self.victim.exists() or self.victim.read_text() != MAX_BACKUPS:
            yield "a file of the user's was changed"
        if SECRET in done.err + done.out:
            yield "a secret was printed"
        for path in self.out.rglob("*") if self.out.is_dir() else ():
            if path.is_file() and SECRET.encode() in path.read_bytes():
                yield f"a secret is in {path.name}"
        if any(one in done.err + done.out for one in ESCAPES):
            yield "a terminal's escape was printed"
        if "\nerror: faked" in done.err:
            yield "a line of rbuild's own was faked"


Attempt = Callable[[Place], Done]
ATTEMPTS: dict[str, tuple[Attempt, tuple[int, ...]]] = {}
"""Each attempt, and the exit codes of which rbuild's must be one."""


def ends_with(*codes: int) -> Callable[[Attempt], Attempt]:
    """Register an attempt that must end with one of these exit codes."""

    def register(attempt: Attempt) -> Attempt:
        ATTEMPTS[attempt.__name__.replace("_", " ")] = attempt, codes
        return attempt

    return register


# --- definitions, machines, profiles, settings ------------------------------------------------


def _environment(place: Place, text: str) -> Done:
    path = place.write("env.yaml", text)
    return place.build(place.module(), "--env", path, "--profile", place.lab.profile)


@ends_with(2)
def a_variable_for_the_hosts_perl(place: Place) -> Done:
    perl = f'-Mstrict;system("touch","{place.ran}")'
    return _environment(place, CROSS + f"emulated_variables: {{PERL5OPT: '{perl}'}}\n")


@ends_with(2)
def a_suite_that_is_an_option(place: Place) -> Done:
    hook = f"--setup-hook=touch {place.ran}"
    return _environment(place, CROSS.replace("trixie", f'"{hook}"'))


@ends_with(2)
def a_package_that_is_an_option(place: Place) -> Done:
    return _environment(place, CROSS.replace("make", f'"make --hook=touch={place.ran}"'))


@ends_with(2)
def a_mount_point_outside(place: Place) -> Done:
    return _environment(place, CROSS + f"mount_points: ['/../../..{place.ran}']\n")


@ends_with(2)
def a_compiler_with_a_command(place: Place) -> Done:
    return _environment(place, CROSS + f"cc: 'gcc; touch {place.ran}'\n")


@ends_with(2)
def a_machine_that_dumps_its_device_tree(place: Place) -> Done:
    machine = place.write(
        "machine.yaml",
        f'model: "virt,dumpdtb={place.victim}"\narchitecture: arm64\nconsole: ttyAMA0\n',
    )
    return place.lab.run("boot", "--machine", machine, "--profile", place.lab.profile)


@ends_with(2)
def a_processor_that_is_an_option(place: Place) -> Done:
    machine = place.write(
        "machine.yaml",
        f'model: virt\ncpu: "max -D {place.victim}"\narchitecture: arm64\nconsole: ttyAMA0\n',
    )
    return place.lab.run("boot", "--machine", machine, "--profile", place.lab.profile)


@ends_with(2)
def a_fragment_of_the_users(place: Place) -> Done:
    profile = place.profile(config=f"{{base: tinyconfig, fragments: [{place.secret}]}}")
    return place.build(place.module(), "--profile", profile, "--output", place.out)


@ends_with(2)
def a_fragment_above_the_profile(place: Place) -> Done:
    profile = place.profile(config="{base: tinyconfig, fragments: [../home/secret.h]}")
    return place.build(place.module(), "--profile", profile, "--output", place.out)


@ends_with(2)
def a_fragment_without_end(place: Place) -> Done:
    (place.given / "zero.config").symlink_to("/dev/zero")
    profile = place.profile(config="{base: tinyconfig, fragments: [zero.config]}")
    return place.build(place.module(), "--profile", profile)


@ends_with(2)
def a_fragment_that_is_a_pipe(place: Place) -> Done:
    os.mkfifo(place.given / "pipe.config")
    profile = place.profile(config="{base: tinyconfig, fragments: [pipe.config]}")
    return place.build(place.module(), "--profile", profile)


@ends_with(2)
def a_base_that_is_no_configuration(place: Place) -> Done:
    place.write("base.config", "no configuration\n")
    return place.build(place.module(), "--profile", place.profile(config="{base: base.config}"))


@ends_with(2)
def an_option_with_a_newline(place: Place) -> Done:
    profile = place.profile(config='{base: tinyconfig, options: {A: "x\\nCONFIG_B=y"}}')
    return place.build(place.module(), "--profile", profile)


@ends_with(2)
def a_device_tree_outside(place: Place) -> Done:
    profile = place.profile(device_trees="[../../../x.dtb]")
    return place.lab.run("kernel", "--profile", profile)


@ends_with(2)
def a_repository_that_is_a_command(place: Place) -> Done:
    profile = place.profile(source=f'{{git: "ext::sh -c touch% {place.ran}", ref: main}}')
    return place.build(place.module(), "--profile", profile)


@ends_with(2)
def a_ref_that_is_an_option(place: Place) -> Done:
    url = "https://127.0.0.1:1/x.git"
    profile = place.profile(source=f'{{git: "{url}", ref: "--upload-pack=touch {place.ran}"}}')
    return place.build(place.module(), "--profile", profile)


@ends_with(2)
def a_tarball_that_is_a_device(place: Place) -> Done:
    profile = place.profile(source=f'{{tarball: "file:///dev/zero", sha256: "{"0" * 64}"}}')
    return place.build(place.module(), "--profile", profile)


@ends_with(4)
def a_tarball_that_is_the_users(place: Place) -> Done:
    profile = place.profile(source=f'{{tarball: "file://{place.secret}", sha256: "{"0" * 64}"}}')
    return place.build(place.module(), "--profile", profile)


@ends_with(2)
def a_field_twice(place: Place) -> Done:
    path = place.write("twice.yaml", place.lab.profile.read_text() + "name: other\n")
    return place.build(place.module(), "--profile", path)


@ends_with(2)
def settings_that_name_an_environment(place: Place) -> Done:
    module = place.module()
    perl = f'-Mstrict;system("touch","{place.ran}")'
    place.write("mine/env.yaml", CROSS + f"emulated_variables: {{PERL5OPT: '{perl}'}}\n")
    place.write("mine/rbuild.yaml", "environment: ./env.yaml\n")
    return place.build(".", "--profile", place.lab.profile, cwd=module)


@ends_with(2)
def settings_that_name_a_sound_environment(place: Place) -> Done:
    """Sound or not: nobody has said yes to it."""
    module = place.module()
    place.write("mine/env.yaml", CROSS)
    place.write("mine/rbuild.yaml", "environment: ./env.yaml\n")
    return place.build(".", "--profile", place.lab.profile, cwd=module)


@ends_with(2)
def settings_that_are_a_link(place: Place) -> Done:
    module = place.module()
    (module / "rbuild.yaml").symlink_to(place.secret)
    return place.build(".", "--profile", place.lab.profile, cwd=module)


# --- modules' folders -------------------------------------------------------------------------


@ends_with(0)
def a_name_that_ends_in_a_newline(place: Place) -> Done:
    module = place.module()
    trap = module / "a\n" / place.victim.parent.relative_to("/")
    trap.mkdir(parents=True)
    (trap / place.victim.name).write_text("")
    place.build(module, "--profile", place.lab.profile)
    shutil.rmtree(module / "a\n")
    return place.build(module, "--profile", place.lab.profile)


def _includes(place: Place) -> Path:
    source = (place.lab.module / "mine.c").read_text()
    text = source.replace('"hello\\n"', 'SECRET "\\n"').replace(
        "#include <linux/module.h>", '#include <linux/module.h>\n#include "own.h"'
    )
    return place.module(source=text)


@ends_with(2)
def a_link_to_a_file_of_the_users(place: Place) -> Done:
    module = _includes(place)
    (module / "own.h").symlink_to(place.secret)
    return place.build(module, "--profile", place.lab.profile, "--output", place.out)


@ends_with(2)
def a_link_to_a_folder_of_the_users(place: Place) -> Done:
    module = _includes(place)
    (module / "home").symlink_to(place.secret.parent)
    (module / "own.h").write_text('#include "home/secret.h"\n')
    return place.build(module, "--profile", place.lab.profile, "--output", place.out)


@ends_with(0)
def a_pipe_among_the_sources(place: Place) -> Done:
    module = place.module()
    os.mkfifo(module / "pipe.h")
    return place.build(module, "--profile", place.lab.profile)


@ends_with(2)
def a_link_to_a_device(place: Place) -> Done:
    module = place.module()
    (module / "zero.h").symlink_to("/dev/zero")
    return place.build(module, "--profile", place.lab.profile)


@ends_with(0)
def folders_nested_without_end(place: Place) -> Done:
    rule = (
        f"{MAKEFILE}$(shell cd $(src) && i=0; while [ $$i -lt {DEEP} ]; do "
        "mkdir -p deeper && cd deeper || exit 0; i=$$((i+1)); done)\n"
    )
    place.build(place.module(rule), "--profile", place.lab.profile)
    for words in (["status"], ["status", "--verify"], ["clean", "--what", "runs"]):
        done = place.lab.run(*words)
        if done.code != 0 or "Traceback" in done.err:
            return done
    return place.build(place.module(), "--profile", place.lab.profile)


@ends_with(0)
def words_that_fake_a_line(place: Place) -> Done:
    source = (place.lab.module / "mine.c").read_text()
    source += 'MODULE_ALIAS("a\\nerror: faked\\x1b[2J");\nMODULE_INFO(license, "x\\x9b" "31m");\n'
    place.module(source=source)
    named = place.given / "x\nerror: faked\x1b[31m"
    (place.given / "mine").rename(named)
    return place.build(named, "--profile", place.lab.profile)


@ends_with(0)
def a_compiler_before_the_compiler(place: Place) -> Done:
    """A module that leaves a configuration in ccache must not decide how others are compiled."""
    rule = (
        f"{MAKEFILE}$(shell mkdir -p $${{CCACHE_DIR:-/tmp/x}}; "
        "printf 'prefix_command = sh -c \"exit 1\"\\n' >$${CCACHE_DIR:-/tmp/x}/ccache.conf)\n"
    )
    place.build(place.module(rule), "--profile", place.lab.profile, "--ccache")
    words = ["--driver", "c", "--profile", place.lab.profile, "--ccache"]
    done = place.build(*words)
    if done.code != 0:
        return Done(done.code, done.out, f"Traceback: our own driver fails\n{done.err}", 0)
    return done


# --- outputs ----------------------------------------------------------------------------------


@ends_with(0)
def an_output_that_is_a_link(place: Place) -> Done:
    place.out.mkdir()
    (place.out / "mine.ko").symlink_to(place.victim)
    return place.build(place.module(), "--profile", place.lab.profile, "--output", place.out)


@ends_with(2)
def an_output_in_the_cache(place: Place) -> Done:
    target = place.lab.cache / "rootfs"
    return place.build(place.module(), "--profile", place.lab.profile, "--output", target)


def attempt_all(lab: Lab, tell: Callable[[str], None] = print, only: Sequence[str] = ()) -> Tried:
    """Make each attempt once, each with a folder of its own."""
    found = Tried()
    for name, (attempt, codes) in ATTEMPTS.items():
        if only and name not in only:
            continue
        folder = lab.folder / "beside" / name.replace(" ", "-")
        place = Place(lab, folder)
        done = attempt(place)
        faults = list(place.faults(done))
        if done.code not in codes:
            faults.append(f"it ended with {done.code}: {done.err[-300:]}")
        found.attempts += 1
        found.successes += [f"{name}: {fault}" for fault in faults]
        # The names in it may be deeper than Python can walk.
        subprocess.run(["rm", "-rf", "--", folder], check=True)
    tell(f"beside: {found.attempts} attempts, {len(found.successes)} succeeded")
    return found
