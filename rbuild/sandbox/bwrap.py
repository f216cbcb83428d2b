"""The bubblewrap runtime: private namespaces, no daemon, no root needed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import resource
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from rbuild.errors import MissingDependency, ProcessFailed
from rbuild.sandbox import binfmt, cgroup, seccomp
from rbuild.sandbox.runtime import Job, Sandbox, variables_for
from rbuild.util import process
from rbuild.util.process import NO_LIMITS, Completed, Limits

REGISTER = (
    f"mount -t binfmt_misc binfmt_misc {binfmt.MOUNT_POINT} && "
    f'printf %s "$1" >{binfmt.MOUNT_POINT}/register && shift && exec "$@"'
)
"""Registers its first argument, an interpreter, and becomes the command behind it."""

LAY_OVER = (
    'mount -t tmpfs tmpfs "$2" && mkdir "$2/upper" "$2/work" "$2/root" && '
    'mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work$3" overlay "$2/root" && '
    'shift 3 && exec "$@"'
)
"""Lays a tmpfs over its first argument, in its second, and becomes the command behind the third."""

CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
"""What installing packages needs of root (capabilities(7)), and no more."""

OWN_WORDS = "bwrap: "
"""How a line begins that bubblewrap itself, not the command in it, has written."""


@dataclass(frozen=True)
class Bwrap:
    """Enters sandboxes with bwrap(1); ``prefix`` stands before it, such as to join a cgroup."""

    name: str = "bwrap"
    prefix: tuple[str, ...] = ()

    def prepare(self, sandbox: Sandbox) -> None:
        """Do nothing: a rootfs is all that it needs."""

    def argv(self, sandbox: Sandbox, job: Job) -> list[str]:
        """Return the whole command line of a job, which can be pasted into a shell."""
        # Without capabilities, which it leaves to root in the new namespace: with them, what was
        # bound read-only could be made writable again.
        apart = _apart_of_scratch() if sandbox.scratch else ["--unshare-all", "--cap-drop", "ALL"]
        words = [*self.prefix, *_before(sandbox), "bwrap", *apart]
        words += ["--die-with-parent", "--hostname", "rbuild"]
        # As PID 1 the command is bwrap's own child, so that wait4(2) accounts for all of it;
        # behind bwrap's reaper, its usage may be lost when bwrap ends first.
        words += ["--as-pid-1", "--clearenv"]
        if sandbox.interpreter is not None and sandbox.scratch is None:
            # Back from the root of the namespace that registers it to the caller.
            words += ["--uid", str(os.getuid()), "--gid", str(os.getgid())]
        if job.network:
            words.append("--share-net")
        for name, value in variables_for(sandbox, job).items():
            words += ["--setenv", name, value]
        if sandbox.scratch is None:
            words += ["--ro-bind", str(sandbox.root), "/"]
        else:
            words += ["--bind", f"{sandbox.scratch}/root", "/"]
        for bind in sandbox.layer:
            words += ["--ro-bind", str(bind.source), bind.target]
        # To root's own id, whatever the namespace, the kernel's settings would be writable.
        words += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
        words += ["--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108
        for bind in job.binds:
            words += ["--bind" if bind.writable else "--ro-bind", str(bind.source), bind.target]
        return [*words, "--chdir", job.cwd, "--", *job.argv]

    def run(
        self,
        sandbox: Sandbox,
        job: Job,
        *,
        on_line: Callable[[str], None] | None = None,
        log: IO[str] | None = None,
        check: bool = True,
        limits: Limits = NO_LIMITS,
    ) -> Completed:
        """Run a job to its end.

        Raises MissingDependency where bubblewrap isn't there or may not make namespaces, TimedOut
        where a limit was reached, ProcessFailed (with ``check``) where the command failed.
        """
        # A session of its own (process.run) keeps the sandbox from the caller's terminal.
        with self._confined(sandbox, job) as (argv, descriptors):
            done = process.run(
                argv,
                on_line=on_line,
                log=log,
                check=False,
                limits=limits,
                descriptors=descriptors,
                apart=True,
            )
        if done.returncode != 0:
            for line in done.tail[-3:]:
                if line.startswith(OWN_WORDS):
                    words = line.removeprefix(OWN_WORDS)
                    raise MissingDependency(
                        f"bubblewrap could not enter {sandbox.name}: {words}",
                        hint="`rbuild doctor` checks namespaces and emulation.",
                    )
            if check:
                raise ProcessFailed(tuple(job.argv), done.returncode, done.tail)
        return done

    def interactive(self, sandbox: Sandbox, job: Job) -> int:
        """Run a job on the user's terminal, through a terminal of its own.

        The sandbox never holds the caller's terminal, so it can't push characters into it
        (TIOCSTI), and still has job control.
        """
        with self._confined(sandbox, job) as (argv, descriptors):
            if not sys.stdin.isatty():
                return process.attached(argv, descriptors)
            for one in descriptors:
                os.set_inheritable(one, True)
            relay = _Terminal()
            previous = signal.signal(signal.SIGWINCH, relay.resize)
            try:
                status = pty.spawn(argv, relay.read)
            finally:
                signal.signal(signal.SIGWINCH, previous)
        return os.waitstatus_to_exitcode(status)

    @contextlib.contextmanager
    def _confined(self, sandbox: Sandbox, job: Job) -> Iterator[tuple[list[str], list[int]]]:
        """Yield a job's command line with what can't be pasted, and the descriptors that it needs.

        That is the filter of system calls, and a bound on processes: by a cgroup where one can be
        made, else by a limit within the user namespace, where only its own processes count against
        it (since Linux 5.14).  Of root itself the kernel doesn't ask the latter.
        """
        argv = self.argv(sandbox, job)
        cut = len(argv) - len(job.argv) - 1
        before, own = argv[:cut], argv[cut + 1 :]
        descriptors: list[int] = []
        with contextlib.ExitStack() as stack:
            if seccomp.is_known():
                descriptors.append(seccomp.open_program())
                stack.callback(os.close, descriptors[0])
                before += ["--seccomp", str(descriptors[0])]
            if not self.prefix:
                group = stack.enter_context(cgroup.bounded())
                if group is not None:
                    before = [*group.prefix(), *before]
                else:
                    own = ["prlimit", f"--nproc={_nproc()}", "--", *own]
            yield [*before, "--", *own], descriptors


def _nproc() -> int:
    """Return the bound on processes, where this user's own isn't lower: it can't be raised."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    bound = cgroup.max_tasks()
    return bound if hard == resource.RLIM_INFINITY else min(bound, hard)


def _before(sandbox: Sandbox) -> list[str]:
    """Return what to put before bwrap: namespaces in which what it needs is there already."""
    if sandbox.scratch is not None:
        # dpkg gives files to more users than one: to root they are all allowed, to others in a
        # namespace with their subordinate ids (subuid(5)).
        root = os.geteuid() == 0
        ids = [] if root else ["--user", "--map-root-user", "--map-auto"]
        words = ["unshare", *ids, "--mount", "--", "sh", "-c", LAY_OVER, "lay-over"]
        # There overlayfs keeps its notes in attributes that such a namespace may write.
        return [*words, str(sandbox.root), str(sandbox.scratch), "" if root else ",userxattr"]
    if sandbox.interpreter is not None:
        return [*binfmt.PRIVATE, "sh", "-c", REGISTER, "register", sandbox.interpreter]
    return []


def _apart_of_scratch() -> list[str]:
    """Return the options of namespaces in which packages can be installed.

    A user namespace of bwrap's would leave only one user's id, and packages have files of several.
    """
    words = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try"]
    words += ["--cap-drop", "ALL"]
    for name in CAPABILITIES:
        words += ["--cap-add", f"CAP_{name}"]
    return words


class _Terminal:
    """Keeps the inner terminal as large as the outer one."""

    def __init__(self) -> None:
        self.inner: int | None = None

    def read(self, inner: int) -> bytes:
        if self.inner is None:
            self.inner = inner
            self.resize()
        return os.read(inner, 65536)

    def resize(self, *_: Any) -> None:  # noqa: ANN401 - a signal handler's arguments
        if self.inner is not None:
            window = fcntl.ioctl(sys.stdin.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self.inner, termios.TIOCSWINSZ, window)
