"""Escape attempts: a hostile module's Makefile, which is a program of somebody's, tries to get out.

What succeeds is noticed from outside wherever something outside would change: a file, a process, a
connection.  Where only the attacker can know, its shell reports it: it reads no more than the
harness has put there to be read.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lab import CHECKOUT, Lab

USER = "nobody"
PROGRAM = """\
import os, sys
sys.path.insert(0, sys.argv.pop(1))
from rbuild.cli import main as cli
sys.exit(cli.run(sys.argv[1:]))
"""
PATTERN = Path("/proc/sys/kernel/core_pattern")

ATTEMPTS = {
    # Reading what is the user's.
    "read the home": 'cat "$CANARY"',
    "read the home by /proc/1/root": 'cat "/proc/1/root$CANARY"',
    "read the home by /proc/self/root": 'cat "/proc/self/root$CANARY"',
    "read the home by dots": 'cat "/module/../../../../../../../../..$CANARY"',
    "read the host's machine-id": 'test "$(cat /etc/machine-id)" = "$MACHINE"',
    "read the cache": 'ls "$STORE/rootfs"',
    "read the project": 'cat "$PROJECT/pyproject.toml"',
    "read a file in the host's /tmp": 'cat "$TMPFILE"',
    "read a file in the host's /dev/shm": 'cat "$SHMFILE"',
    "read the host's disk": 'test -n "$(find /dev -type b)" && head -c 1 "$(find /dev -type b | head -1)"',
    # Secrets.
    "a secret in the environment": 'env | grep -q "$SECRET_NAME"',
    "a secret in another process": 'cat /proc/*/environ | tr "\\0" "\\n" | grep -q "$SECRET_NAME"',
    "a secret in a command line": 'cat /proc/*/cmdline | tr "\\0" " " | grep -q "$VICTIM_MARK"',
    "a key of the session's keyring": "perl $CALLS keyring",
    # The network.
    "loopback, IPv4": "python3 $TOOL tcp 127.0.0.1 $PORT",
    "loopback, IPv6": "python3 $TOOL tcp ::1 $PORT6",
    "an abstract socket": "python3 $TOOL abstract $ABSTRACT",
    "a socket in the file system": 'python3 $TOOL unix "$SOCKET"',
    "the Docker engine": "python3 $TOOL unix /var/run/docker.sock || python3 $TOOL unix /run/docker.sock",
    "the system bus": "python3 $TOOL unix /run/dbus/system_bus_socket",
    "an address outside": "python3 $TOOL tcp 192.0.2.1 53",
    "a name": "getent hosts localhost.localdomain.example.org",
    "an interface that is up": "python3 $TOOL interface",
    "a raw socket on the host": "python3 $TOOL raw",
    # Processes of the host.
    "see a process of the host": 'grep -qs "$VICTIM_MARK" /proc/[0-9]*/cmdline',
    "kill a process of the host": 'kill -9 "$VICTIM"; false',
    "kill PID 1": "kill -9 1; false",
    "trace a process of the host": 'perl $CALLS ptrace "$VICTIM"',
    "enter the namespaces of PID 1": "perl $CALLS setns /proc/1/ns/mnt",
    "shared memory of the host": 'perl $CALLS shm "$SHMKEY"',
    "type into the terminal": "perl $CALLS tiocsti",
    # Writing outside.
    "write into the tree": "echo pwned >>/src/Makefile",
    "write into the KDIR": "echo pwned >>/kdir/.config",
    "remove of the KDIR": "rm /kdir/Module.symvers /kdir/.config",
    "write into /usr": "echo pwned >/usr/bin/pwned",
    "write into /etc": "echo pwned >/etc/pwned",
    "write into the root": "echo pwned >/pwned",
    "make the root writable": "mount -o remount,rw / && echo pwned >/pwned",
    "make the tree writable": "mount -o remount,rw,bind /src && echo pwned >>/src/Makefile",
    "uncover what is below the tree": "umount /src && ls /src/*",
    "mount the host's disk": "mount -t ext4 /dev/vda /tmp || mount -t ext4 /dev/sda1 /tmp",
    "a user namespace of its own": "unshare --user --map-root-user --mount sh -c "
    "'mount -o remount,rw,bind /src && echo pwned >>/src/Makefile'",
    "leave the root": 'perl $CALLS chroot "$CANARY"',
    "a handle of the host's root": "perl $CALLS handle",
    # The kernel.
    "core_pattern": "echo core-of-rbuild >/proc/sys/kernel/core_pattern",
    "sysrq": "echo h >/proc/sysrq-trigger",
    "the host's name": "hostname pwned-by-rbuild; false",
    "the clock": 'date -s "@$(date +%s)"',
    "the kernel's log": "test -c /dev/kmsg && echo pwned >/dev/kmsg",
    "the kernel's memory": "head -c 1 /dev/mem || head -c 1 /dev/kmem || head -c 64 /proc/kcore",
    "load a module": "perl $CALLS module",
    "binfmt_misc": "mount -t binfmt_misc none /tmp && echo ':pwned:M::PWNED::/bin/sh:C' >/tmp/register; "
    "echo ':pwned:M::PWNED::/bin/sh:C' >/proc/sys/fs/binfmt_misc/register; false",
    "a control group's release agent": "mkdir -p /tmp/cg && mount -t cgroup -o memory cgroup /tmp/cg "
    "&& echo /bin/sh >/tmp/cg/release_agent",
    "a device of its own": "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk || "
    "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
    "reboot": "perl $CALLS reboot",
    "a socket to the machine's host": "perl $CALLS socket 40",
    "a socket of the kernel's ciphers": "perl $CALLS socket 38",
    "a socket by another interface": "perl $CALLS x32",
    "io_uring, which makes sockets too": "perl $CALLS uring",
    "a module of a socket family": "for family in 9 15 21 29 30 31 42 44; do "
    "perl $CALLS socket $family && exit 0; done; false",
    # More than the bound, and few enough for the host.
    "6000 processes": "perl $CALLS processes 6000",
    "6000 processes in a namespace": "unshare --user --map-root-user perl $CALLS processes 6000",
    "raise its own bound": "unshare --user --mount --cgroup sh -c 'mkdir /tmp/bound; "
    "mount -t cgroup2 none /tmp/bound || mount -t cgroup -o pids none /tmp/bound; "
    "echo max >/tmp/bound/pids.max' && perl $CALLS processes 6000",
    # Staying, and leaving things behind.
    "stay as a daemon": "setsid sh -c 'trap \"\" HUP TERM; exec sleep 7531' >/dev/null 2>&1 </dev/null & false",
    "stay with stdout open": "setsid sh -c 'trap \"\" HUP TERM; exec sleep 7532' & false",
    "leave a set-user-id file": "cp /bin/sh /module/suid && chmod 6755 /module/suid; false",
    "leave a device": "mknod /module/device c 1 3; false",
    "leave a pipe": "mkfifo /module/pipe; false",
    "leave a socket": "python3 $TOOL bind /module/socket; false",
    "leave a link to the home": 'ln -s "$CANARY" /module/link; false',
    "leave a folder that is a link": 'ln -s "$(dirname "$CANARY")" /module/folder; false',
    "leave a link to the tree": "ln /src/Makefile /module/hard; false",
    "leave a capability": "cp /bin/sh /module/capable && setcap cap_sys_admin+ep /module/capable; false",
    "leave a name with an escape": "touch \"$(printf '/module/\\033[2J\\nx')\"; false",
    "write at names of rbuild's": 'printf "../../../../../..%s\\n" "$CANARY" '
    ">/module/.tmp_inputs; false",
    "a module that is the user's file": 'ln -sf "$CANARY" /module/canary.ko; '
    "echo canary.o >>/module/modules.order; false",
}
"""What is tried: the shell's words, true if it succeeded as far as the attacker can tell."""

TOOL = r"""
import os, socket, sys
what, *words = sys.argv[1:]
def sure(value):
    sys.exit(0 if value else 1)
if what == "tcp":
    family = socket.AF_INET6 if ":" in words[0] else socket.AF_INET
    one = socket.socket(family); one.settimeout(2)
    one.connect((words[0], int(words[1]))); one.send(b"pwned"); sure(True)
if what in ("unix", "abstract"):
    one = socket.socket(socket.AF_UNIX); one.settimeout(2)
    one.connect(words[0] if what == "unix" else "\0" + words[0]); one.send(b"pwned"); sure(True)
if what == "bind":
    socket.socket(socket.AF_UNIX).bind(words[0]); sure(True)
if what == "interface":
    names = [name for _, name in socket.if_nameindex()]
    sure([name for name in names if name != "lo"])
if what == "raw":
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); one.settimeout(1)
    sure([name for _, name in socket.if_nameindex() if name != "lo"])
if what == "control":
    one, other = socket.socketpair(); one.send(b"x"); sure(other.recv(1) == b"x")
sys.exit(1)
"""
"""What is easier said in Python (which has no ctypes there); its status tells how it went."""

CALLS = r"""
use POSIX ();
my ($what, @words) = @ARGV;
my $at = (POSIX::uname())[4] eq 'aarch64' ? 1 : 0;
my %number = (
    getpid => [39, 172], keyctl => [250, 219], ptrace => [101, 117], setns => [308, 268],
    shmget => [29, 194], open_by_handle_at => [304, 265], init_module => [175, 105],
    reboot => [169, 142], io_uring_setup => [425, 425],
);
sub call { my $name = shift; return syscall($number{$name}[$at], @_) }
sub sure { exit($_[0] ? 0 : 1) }
sure(call('getpid') == $$) if $what eq 'control';
if ($what eq 'keyring') {
    my ($type, $key) = ("user", "rbuild-canary");
    for my $ring (-3, -4, -5) { sure(1) if call('keyctl', 10, $ring, $type, $key, 0) > 0 }
}
sure(call('ptrace', 16, $words[0] + 0, 0, 0) == 0) if $what eq 'ptrace';
if ($what eq 'setns') {
    open my $file, '<', $words[0] or sure(0);
    sure(readlink($words[0]) ne readlink('/proc/self/ns/mnt') && call('setns', fileno $file, 0) == 0);
}
sure(call('shmget', $words[0] + 0, 0, 0) >= 0) if $what eq 'shm';
if ($what eq 'tiocsti') {
    open my $tty, '+<', '/dev/tty';
    for my $file (*STDIN, *STDOUT, *STDERR, $tty) {
        my $byte = 'x';
        sure(1) if defined $file && ioctl $file, 0x5412, $byte;
    }
}
if ($what eq 'chroot') {
    mkdir '/tmp/jail';
    chdir '/';
    my $jailed = chroot '/tmp/jail';
    chdir '..' for 1 .. 64;
    sure($jailed && chroot('.') && -e $words[0]);
}
if ($what eq 'handle') {
    my $handle = pack 'IiIII', 8, 1, 2, 0, 0;
    open my $where, '<', '/module/Kbuild';
    sure(call('open_by_handle_at', fileno $where, $handle, 0) >= 0);
}
if ($what eq 'module') {
    my ($image, $options) = ("no module", "");
    call('init_module', $image, 9, $options);
    sure($!{ENOEXEC});
}
sure(call('reboot', 0xfee1dead, 672274793, 0, 0) == 0) if $what eq 'reboot';
if ($what eq 'socket') {
    for my $kind (1, 2, 3, 5) { sure(1) if socket my $one, $words[0], $kind, 0 }
    # The kernel takes an int: what is above it doesn't hide a family.
    sure(syscall($at ? 198 : 41, (1 << 32) + $words[0], 1, 0) >= 0);
}
sure(syscall(0x40000000 + 41, 40, 1, 0) >= 0) if $what eq 'x32' && !$at;
if ($what eq 'uring') { my $setup = "\0" x 120; sure(call('io_uring_setup', 4, $setup) >= 0) }
if ($what eq 'processes') {
    my @made;
    while (@made < $words[0]) {
        my $one = fork;
        last unless defined $one;
        if (!$one) { sleep 300; POSIX::_exit(0) }
        push @made, $one;
    }
    kill 'KILL', @made;
    1 while wait != -1;
    sure(@made == $words[0]);
}
exit 1;
"""
"""What is a system call, in Perl: each rootfs has all of it."""

KBUILD = """\
obj-m += evil.o
$(obj)/evil.o: $(src)/evil.c attack
.PHONY: attack
attack:
\t-@timeout 240 sh $(src)/attack.sh >/module/said.txt 2>&1 </dev/null
"""


@dataclass
class Escaped:
    """What came of the attempts of one user in one runtime."""

    runtime: str
    user: str
    attempts: int = 0
    successes: list[str] = field(default_factory=list)


@dataclass
class Bait:
    """What is put where an attacker may look for it, and how it is seen to have been touched."""

    variables: dict[str, str]
    touched: list[str] = field(default_factory=list)


@contextlib.contextmanager
def bait(lab: Lab, home: Path) -> Iterator[Bait]:
    """Have files, listeners and a process for the attacker to find, outside of its sandbox."""
    mark = f"rbuild-victim-{secrets.token_hex(6)}"
    canary = home / "canary"
    canary.write_text("the user's secret\n")
    tmp = Path("/tmp") / f"rbuild-bait-{os.getpid()}"
    shm = Path("/dev/shm") / f"rbuild-bait-{os.getpid()}"
    for path in (tmp, shm):
        path.write_text("bait")
    victim = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(3600)", mark],
        env={**os.environ, "RBUILD_SECRET": mark},
    )
    made = Bait({})
    with contextlib.ExitStack() as stack:
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        for path in (tmp, shm):
            stack.callback(path.unlink)
        ports = {}
        for family, address, name in (
            (socket.AF_INET, ("127.0.0.1", 0), "PORT"),
            (socket.AF_INET6, ("::1", 0), "PORT6"),
            (socket.AF_UNIX, f"\0{mark}", "ABSTRACT"),
            (socket.AF_UNIX, str(home / "socket"), "SOCKET"),
        ):
            listener = stack.enter_context(socket.socket(family))
            try:
                listener.bind(address)
            except OSError:  # a host without IPv6
                ports[name] = "1"
                continue
            listener.listen()
            ports[name] = str(listener.getsockname()[1]) if family != socket.AF_UNIX else ""
            threading.Thread(
                target=_accept, args=(listener, name, made.touched), daemon=True
            ).start()
        made.variables.update(
            ports,
            CANARY=str(canary),
            MACHINE=Path("/etc/machine-id").read_text().strip() or "none",
            STORE=str(lab.cache),
            PROJECT=str(CHECKOUT),
            TMPFILE=str(tmp),
            SHMFILE=str(shm),
            SECRET_NAME="RBUILD_SECRET",
            # So that whoever looks for it in command lines does not find its own.
            VICTIM_MARK=f"[{mark[0]}]{mark[1:]}",
            VICTIM=str(victim.pid),
            ABSTRACT=mark,
            SOCKET=str(home / "socket"),
            SHMKEY="7531",
        )
        stack.enter_context(_keys())
        yield made
        if victim.poll() is not None:
            made.touched.append("VICTIM")
        if not canary.exists() or canary.read_text() != "the user's secret\n":
            made.touched.append("CANARY")
    with contextlib.suppress(OSError):
        (home / "socket").unlink()


def _accept(listener: socket.socket, name: str, touched: list[str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            touched.append(name)
            connection.close()


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Have a key in the keyring of this session, and a segment of shared memory."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    add_key = {"x86_64": 248, "aarch64": 217}[os.uname().machine]
    context, creating = -3, 0o1000 | 0o666
    libc.syscall(add_key, b"user", b"rbuild-canary", b"secret", 6, context)
    segment = libc.shmget(7531, 4096, creating)
    try:
        yield
    finally:
        libc.shmctl(segment, 0, 0)


def attack(folder: Path, variables: dict[str, str]) -> Path:
    """Write the hostile module; what it reports comes into its outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Kbuild").write_text(KBUILD)
    (folder / "evil.c").write_text(
        '#include <linux/module.h>\nMODULE_LICENSE("GPL");\nMODULE_DESCRIPTION("evil");\n'
    )
    (folder / "tool.py").write_text(TOOL)
    (folder / "calls.pl").write_text(CALLS)
    lines = [f"{name}='{value}'" for name, value in variables.items()]
    # Not exported: what is in the environment is what got in.
    lines += ["TOOL=/module/tool.py", "CALLS=/module/calls.pl", ": >/module/succeeded.txt"]
    for name, words in ATTEMPTS.items():
        quoted = name.replace("'", "'\\''")
        lines.append(f"({words}\n) && echo '{quoted}' >>/module/succeeded.txt")
    # An attempt whose own tool doesn't run there says nothing.
    control = "python3 $TOOL control && perl $CALLS control"
    lines.append(f"{control} && echo all >>/module/succeeded.txt")
    (folder / "attack.sh").write_text("\n".join(lines) + "\n")
    return folder


def escape(
    lab: Lab, runtime: str, user: str | None, tell: Callable[[str], None] = print
) -> Escaped:
    """Build the hostile module in a runtime, as root or as a user; return what got out."""
    found = Escaped(runtime, user or "root", len(ATTEMPTS))
    home = lab.folder / f"home-{found.user}"
    home.mkdir(exist_ok=True)
    with bait(lab, home) as made:
        module = attack(lab.folder / "evil", made.variables)
        hostname, pattern, clean = socket.gethostname(), PATTERN.read_text(), _tree(lab)
        env = lab.environment() | {"RBUILD_SECRET": "canary", "HOME": str(home)}
        words = ["module", str(module), "--profile", str(lab.profile), "--runtime", runtime]
        words += ["--timeout", "300", "--output", str(lab.folder / "exported")]
        # As a program, since the checkout may be nowhere that another user sees.
        argv = [sys.executable, "-c", PROGRAM, str(CHECKOUT), *words]
        if user is not None:
            argv = _as_user(user, argv)
        done = subprocess.run(argv, env=env, cwd=CHECKOUT, capture_output=True, text=True)
        outputs = next((lab.cache / "kdirs").glob("*/modules/evil-*/build"), None)
        if outputs is None:
            raise AssertionError(f"the hostile module's build didn't begin: {done.stderr[-600:]}")
        said = outputs / "succeeded.txt"
        words_of_it = said.read_text().splitlines() if said.exists() else ["nothing was reported"]
        if words_of_it[-1:] != ["all"]:
            found.successes.append(
                f"the attempts didn't end: {words_of_it[-1:]}: {done.stderr[-300:]}"
            )
        found.successes += [one for one in words_of_it if one in ATTEMPTS]
        found.successes += _outside(
            lab, outputs, hostname, pattern, clean, done.stdout + done.stderr
        )
    found.successes += [f"the harness's {one} was touched" for one in dict.fromkeys(made.touched)]
    if done.returncode != 1 or "left what isn't taken from a build" not in done.stderr:
        found.successes.append(f"its outputs were taken ({done.returncode}): {done.stderr[-300:]}")
    shutil.rmtree(outputs.parent)
    tell(f"escape: {found}")
    return found


def lab_of(user: str, lab: Lab) -> Lab:
    """Return a lab that is a copy of another, and another user's; sealed by who uses it first."""
    folder = lab.folder.with_name(f"{lab.folder.name}-{user}")
    shutil.rmtree(folder, ignore_errors=True)
    # Not what no attempt enters: it has gigabytes.
    words = ["rsync", "-a", "--exclude=/cache/rootfs/package-*", f"{lab.folder}/", f"{folder}/"]
    subprocess.run(words, check=True)
    made = Lab(folder)
    made.engine = lab.engine
    for path in made.cache.glob("*/*/metadata.json"):
        metadata = json.loads(path.read_text())
        metadata.pop("integrity", None)
        path.write_text(json.dumps({**metadata, "format": 1}))
    made.profile.write_text(lab.profile.read_text().replace(str(lab.folder), str(folder)))
    entry = pwd.getpwnam(user)
    subprocess.run(["chown", "-R", f"{entry.pw_uid}:{entry.pw_gid}", folder], check=True)
    for parent in folder.parents:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o1:
            parent.chmod(parent.stat().st_mode | 0o11)
    return made


def _as_user(user: str, argv: Sequence[str]) -> list[str]:
    """Return a command line that another user runs."""
    entry = pwd.getpwnam(user)
    ids = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, *argv]


def _tree(lab: Lab) -> dict[str, float]:
    """Return the times of what a build must not write: of the tree, the KDIR and the rootfs."""
    places = [*(lab.cache / "trees").glob("*/src"), *(lab.cache / "kdirs").glob("*/build")]
    places += [
        *(lab.cache / "rootfs").glob("*/root"),
        *(lab.cache / "rootfs").glob("*/root/usr/bin"),
    ]
    files = [path for place in places for path in (place, place / "Makefile", place / ".config")]
    return {str(path): path.stat().st_mtime for path in files if path.exists()}


def _outside(
    lab: Lab, outputs: Path, hostname: str, pattern: str, before: dict[str, float], shown: str
) -> list[str]:
    """Return what can be seen outside of the sandbox, once the build has ended."""
    now = _tree(lab)
    found = [f"{path} was written to" for path in before if now.get(path) != before[path]]
    if socket.gethostname() != hostname:
        found.append("the host has another name")
    if PATTERN.read_text() != pattern:
        PATTERN.write_text(pattern)
        found.append("the host's core_pattern was set")
    if Path("/proc/sys/fs/binfmt_misc/pwned").exists():
        found.append("the host runs programs by the attacker's interpreter")
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for number in ("7531", "7532"):
        for _ in range(20):
            if f"sleep {number}" not in lines:
                break
            time.sleep(0.1)
            lines = subprocess.run(
                ["ps", "-eo", "args"], capture_output=True, text=True, check=True
            ).stdout
        else:
            found.append(f"a daemon runs on the host (sleep {number})")
    for path in outputs.rglob("*"):
        mode = path.lstat().st_mode
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            found.append(f"{path.name!a} is left")
        elif mode & 0o6000 and path.is_file():
            found.append(f"{path.name!a} has rights")
        elif path.is_file() and "security.capability" in os.listxattr(path):
            found.append(f"{path.name!a} has capabilities")
        elif path.is_file() and path.stat().st_nlink > 1:
            found.append(f"{path.name!a} is linked from elsewhere")
    exported = lab.folder / "exported"
    if exported.exists():
        found += [f"{path.name!a} was exported" for path in exported.iterdir()]
    if "\x1b[2J" in shown:
        found.append("an escape sequence reached the terminal")
    return found
