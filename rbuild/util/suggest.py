"""Did you mean: the known word that is nearest to one that isn't known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def guess(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant: mistyped, cut short, or in another case."""
    by_case = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(word.casefold(), by_case, n=1)
    if not close and word:
        begun = [one for one in by_case if one.startswith(word.casefold())]
        close = begun if len(begun) == 1 else []
    return by_case[close[0]] if close else None


def meant(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?``, to end a message with; nothing where no word is near."""
    found = guess(word, known)
    return "" if found is None else f" Did you mean {found!r}?"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return what ``meant`` does or, where no word is near, the list of what is known."""
    words = sorted(known)
    return meant(word, words) or (f" Known: {', '.join(words)}." if words else "")
