"""The system calls that no build may make: uncommon sockets, io_uring, and keyrings.

No namespace separates keyrings: a build could read the keys of the user's session.  A socket
family's code is the kernel's attack surface, some reach past a network namespace (AF_VSOCK: the
machine's own host), and the first use of many loads a module.  io_uring makes sockets without
socket(2).  The filter is classic BPF (seccomp(2)): emulated programs' calls come from QEMU as the
host's own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

MACHINES = frozenset({"x86_64", "aarch64", "armv7l", "armv8l"})
"""What uname -m says of the hosts that the filter knows."""

FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: what a build may have sockets of."""

NUMBERS = {
    0xC000003E: ((41, 53), (248, 249, 250)),  # AUDIT_ARCH_X86_64
    0xC00000B7: ((198, 199), (217, 218, 219)),  # AUDIT_ARCH_AARCH64
    0x40000028: ((281, 288), (309, 310, 311)),  # AUDIT_ARCH_ARM
}
"""The numbers of socket and socketpair, and of add_key, request_key and keyctl, by how the kernel
names an architecture to a filter."""

IO_URING = (425, 426, 427)
X32 = 0x40000000
"""The first number of x86-64's other interface, whose calls have other numbers; none is let in."""

NUMBER_AT, ARCHITECTURE_AT, FAMILY_AT = 0, 4, 16
"""Where struct seccomp_data has them; of the family, which is an int, the lower half."""

LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
ENOSYS, EAFNOSUPPORT = 38, 97

Instruction = tuple[int, int, int, int]
"""Its code, how many to skip if true and if not, and its operand."""


def is_known(machine: str | None = None) -> bool:
    """Tell whether there is a filter for a host's architecture, else for this one's."""
    return (machine or os.uname().machine) in MACHINES


def program() -> bytes:
    """Return the filter, an array of struct sock_filter; other architectures' calls kill."""
    found: list[Instruction] = [(LOAD, 0, 0, ARCHITECTURE_AT)]
    for architecture, (sockets, keys) in NUMBERS.items():
        body = _calls(sockets, (*IO_URING, *keys))
        found += [(JUMP_IF_EQUAL, 0, len(body), architecture), *body]
    found.append((RETURN, 0, 0, KILL))
    return b"".join(struct.pack("<HBBI", *one) for one in found)


def _calls(sockets: Sequence[int], absent: Sequence[int]) -> list[Instruction]:
    """Return what decides on a call of one architecture, where some calls seem to be absent."""
    family = [
        (LOAD, 0, 0, FAMILY_AT),
        *((JUMP_IF_EQUAL, len(FAMILIES) - at, 0, one) for at, one in enumerate(FAMILIES)),
        (RETURN, 0, 0, ERRNO | EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERRNO | ENOSYS),
    ]
    to_absent = len(family) - 1
    tests = [(JUMP_IF_AT_LEAST, X32), *((JUMP_IF_EQUAL, number) for number in absent)]
    tests += [(JUMP_IF_EQUAL, number) for number in sockets]
    words: list[Instruction] = [(LOAD, 0, 0, NUMBER_AT)]
    for at, (code, number) in enumerate(tests):
        behind = len(tests) - at - 1 + 1  # the other tests, and the return below
        target = 0 if number in sockets else to_absent
        words.append((code, behind + target, 0, number))
    return [*words, (RETURN, 0, 0, ALLOW), *family]


def open_program() -> int:
    """Return a descriptor from which the filter is read, to be closed by the caller."""
    descriptor = os.memfd_create("rbuild-seccomp")
    os.write(descriptor, program())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
