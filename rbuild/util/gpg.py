"""Signatures: a tarball checked against the OpenPGP key that a profile names, as kernel.org signs.

kernel.org signs the archive before it is compressed (https://www.kernel.org/signature.html), so
that a .tar.xz is unpacked into gpgv(1), which knows no key but the one that it is given.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from rbuild.errors import InfrastructureError, ProcessFailed, UsageError
from rbuild.util import pipe

UNPACKERS = {".xz": "xz", ".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}

ARMOUR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+\r?\n)*\r?\n(?P<text>[A-Za-z0-9+/=\s]+?)"
    rb"(?:=[A-Za-z0-9+/]{4}\s*)?-----END PGP PUBLIC KEY BLOCK-----"
)


def url_of(tarball: str) -> str:
    """Return where kernel.org has the signature of a tarball of its."""
    plain = re.sub(r"\.(xz|gz|bz2|zst)$", "", tarball)
    return f"{plain}.sign"


def keyring(key: Path, content: bytes) -> bytes:
    """Return the content of a public key's file as gpgv reads it.

    Raises UsageError if it can't be one.
    """
    blocks = ARMOUR.findall(content)
    try:
        binary = b"".join(base64.b64decode(text, validate=False) for text in blocks)
    except binascii.Error:
        binary = b""
    found = binary or content
    # A packet begins with its highest bit set; a public key's is of type 6 (RFC 9580, 4.2).
    if not found or found[0] & 0x80 == 0 or 6 not in {found[0] >> 2 & 15, found[0] & 63}:
        raise UsageError(
            f"source.key: {key} is no OpenPGP public key.",
            hint="`gpg --export --armor FINGERPRINT` writes one.",
        )
    return found


def armoured(key: Path, content: bytes) -> str:
    """Return a public key's file as text; raises UsageError as ``keyring`` does."""
    text = base64.encodebytes(keyring(key, content)).decode()
    begin, end = (f"-----{word} PGP PUBLIC KEY BLOCK-----\n" for word in ("BEGIN", "END"))
    return f"{begin}\n{text}{end}"


def verify(file: Path, signature: Path, key: Path, content: bytes) -> str:
    """Check that ``file``, unpacked, was signed by a key; return the key's fingerprint.

    ``content`` is what the key's file has.  Raises UsageError as ``keyring`` does,
    InfrastructureError if it wasn't signed, with whose signature it is instead.
    """
    ring = signature.with_name("key.gpg")
    ring.write_bytes(keyring(key, content))
    unpacker = UNPACKERS.get(file.suffix)
    producer = [unpacker or "cat", *(["-dc"] if unpacker else []), "--", str(file)]
    consumer = ["gpgv", "--status-fd", "2", "--keyring", str(ring), "--", str(signature), "-"]
    said: list[str] = []
    try:
        pipe.pipe(producer, consumer, said.append)
    except ProcessFailed as error:
        raise _refused(file, key, said) from error
    valid = next((line.split() for line in said if line.startswith("[GNUPG:] VALIDSIG ")), None)
    if valid is None:
        raise _refused(file, key, said)
    return valid[-1]


def _refused(file: Path, key: Path, said: list[str]) -> InfrastructureError:
    status = [line.removeprefix("[GNUPG:] ").split() for line in said if "[GNUPG:]" in line]
    by = {words[0]: words[1] for words in status if len(words) > 1}
    if "NO_PUBKEY" in by or "ERRSIG" in by:
        who = by.get("NO_PUBKEY") or by["ERRSIG"]
        why = f"it was signed by the key {who}, which isn't the one in {key}"
    elif "BADSIG" in by:
        why = f"the signature by {by['BADSIG']} is of another content"
    elif "EXPKEYSIG" in by or "REVKEYSIG" in by:
        why = "the key that signed it has expired, or was revoked"
    else:
        why = "it has no signature that can be read"
    words = "\n".join(line for line in said if not line.startswith("[GNUPG:]"))
    return InfrastructureError(f"{file.name} is not what was signed: {why}.", detail=words)
