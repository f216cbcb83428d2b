"""Docker engines: reaching one as the docker CLI would, be it here or on another machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rbuild.errors import HostLacks, InfrastructureError, UsageError

if TYPE_CHECKING:
    from docker import DockerClient

HOST = "DOCKER_HOST"
TLS_FILES = ("ca.pem", "cert.pem", "key.pem")

TIMEOUT_S = 600
"""How long an engine may be silent: it answers an upload only when all is unpacked."""

WORDS = {
    "CERTIFICATE_VERIFY_FAILED": "Its certificate is not of the CA in DOCKER_CERT_PATH/ca.pem, or "
    "is for another name: `openssl x509 -noout -ext subjectAltName` shows for which.",
    "doesn't match": "Its certificate is for another name than DOCKER_HOST has.",
    "alert": "The engine refused the certificate in DOCKER_CERT_PATH: its CA must be the one that "
    "dockerd has as --tlscacert.",
    "HTTP request to an HTTPS server": "The engine wants TLS: set DOCKER_TLS_VERIFY=1 and "
    "DOCKER_CERT_PATH.",
    "WRONG_VERSION_NUMBER": "The engine speaks no TLS there: unset DOCKER_TLS_VERIFY, or start "
    "dockerd with --tlsverify.",
    "record layer failure": "The engine speaks no TLS there: unset DOCKER_TLS_VERIFY, or start "
    "dockerd with --tlsverify.",
    "Permission denied": "Your user may need to be in the group docker.",
}
"""A word in a failure's text, and the remedy; the first that fits."""


def connect(environment: Mapping[str, str] = os.environ) -> DockerClient:
    """Return a client of the engine that DOCKER_HOST names, which has answered.

    Raises UsageError where the variables can't be meant so, HostLacks where there is no ssh,
    InfrastructureError where the engine can't be reached or refuses.
    """
    import docker  # noqa: PLC0415 - it takes longer to load than most commands to run
    from docker.errors import DockerException, TLSParameterError  # noqa: PLC0415

    place = environment.get(HOST, "")
    by_ssh = place.startswith("ssh://")
    if by_ssh and shutil.which("ssh") is None:
        raise HostLacks(f"{HOST} is {place}, and there is no ssh.", hint="Install openssh-client.")
    _check_tls(environment)
    try:
        client = docker.from_env(
            environment=dict(environment), timeout=TIMEOUT_S, use_ssh_client=by_ssh
        )
        client.ping()
    except TLSParameterError as error:
        raise UsageError(f"DOCKER_CERT_PATH: {error}") from error
    except (DockerException, OSError, ValueError) as error:
        raise unreachable(place, str(error)) from error
    return client


def unreachable(place: str, words: str) -> InfrastructureError:
    """Return the error for an engine that doesn't answer."""
    usual = "Is it running? `docker version` asks it, too."
    if place.startswith("ssh://"):
        usual = f"`ssh {place[6:]} docker system dial-stdio` must work without a question."
    hint = next((hint for word, hint in WORDS.items() if word in words), usual)
    return InfrastructureError(
        f"The Docker engine{' at ' + place if place else ''} can't be reached.",
        detail=words,
        hint=hint.replace("HOST", place[6:]) if place.startswith("ssh://") else hint,
    )


def _check_tls(environment: Mapping[str, str]) -> None:
    folder = environment.get("DOCKER_CERT_PATH")
    if not environment.get("DOCKER_TLS_VERIFY") or folder is None:
        return
    lacking = [name for name in TLS_FILES if not os.path.isfile(os.path.join(folder, name))]  # noqa: PTH113, PTH118
    if lacking:
        raise UsageError(
            f"DOCKER_CERT_PATH: {folder} has no {', '.join(lacking)}.",
            hint=f"TLS needs {', '.join(TLS_FILES)} there.",
        )


@contextmanager
def asking(client: DockerClient) -> Iterator[None]:
    """Turn the failures of an engine that is asked in the body into errors of ours."""
    from docker.errors import APIError, DockerException  # noqa: PLC0415
    from requests.exceptions import RequestException  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except APIError as error:
        words = str(error.explanation or error)
        hint = None
        if "no space left on device" in words:
            hint = "The engine's disk is full: `docker system df` there shows by what."
        raise InfrastructureError(
            f"The Docker engine refused: {words.strip()}", hint=hint
        ) from error
    except (DockerException, RequestException, HTTPError) as error:
        raise unreachable(str(client.api.base_url), str(error)) from error
