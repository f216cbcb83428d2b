"""What a Docker engine has of the cache's entries: images and volumes, listed and removed."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from rbuild.cache.directory import Cache
from rbuild.sandbox.docker.engine import engine_of
from rbuild.sandbox.docker.transport import FOLDER


def engine_rows(cache: Cache) -> list[dict[str, Any]]:
    """Return a row for each image and volume on the Docker engine, if one was ever used."""
    from rbuild.sandbox.docker import image, synced  # noqa: PLC0415 - not where no engine was used

    client = engine_of(cache)
    if client is None:
        return []
    images = [
        {
            "name": (one.get("RepoTags") or [one["Id"]])[0],
            "room": "image",
            "state": (one.get("Labels") or {}).get(image.PLATFORM_LABEL, ""),
            "size_bytes": one["Size"],
            "age_s": max(0.0, time.time() - one["Created"]),
            "path": one["Id"],
        }
        for one in image.images(client)
    ]
    return images + [
        {
            "name": one.volume,
            "room": "volume",
            "state": one.entry,
            "size_bytes": one.size_bytes,
            "age_s": max(0.0, time.time() - _moment(one.created)),
            "path": one.volume,
        }
        for one in synced.held(client, cache)
    ]


def _moment(text: str) -> float:
    """Return the seconds since the epoch of an engine's moment (RFC 3339); now, if it has none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


def remove_stale(cache: Cache, *, images: bool) -> list[str]:
    """Remove what a Docker engine has of entries that are gone; return the names of that."""
    from rbuild.sandbox.docker import image, synced  # noqa: PLC0415 - not where no engine was used

    client = engine_of(cache)
    if client is None:
        return []
    found = image.remove_stale(client, cache) if images else []
    return [*found, *synced.sweep(client, cache)] if (cache.root / FOLDER).is_dir() else found
