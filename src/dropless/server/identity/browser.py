"""What a browser may send here on behalf of a page that is not ours: nothing, unless told."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping

from dropless.errors import InvalidRequestError, PermissionDeniedError


def check_host(host: str | None, allowed: Collection[str]) -> None:
    """Against DNS rebinding, where a page of an attacker's site has its name lead to this server:
    one that needs no token answers under loopback names only, and those in `allowed`.

    Raises PermissionDeniedError.
    """
    name = host_name(host or "")
    if not is_loopback(name) and name not in allowed:
        raise PermissionDeniedError(
            f"this server is not known as {name[:100]!r}; ask for it as 127.0.0.1 or localhost, or "
            "add the name to server.allowed_hosts"
        )


def check_origin(
    headers: Mapping[bytes, bytes], method: str, cors_origins: Collection[str]
) -> None:
    """Refuse what another site's page makes a browser send: the browser would add the session's
    cookie to it, and a server without tokens would obey. Programs send none of these headers.

    Raises PermissionDeniedError.
    """
    site = headers.get(b"sec-fetch-site")
    if site in (b"same-origin", b"none"):
        return
    origin = headers.get(b"origin")
    if origin is None:
        follows_link = method == "GET" and headers.get(b"sec-fetch-mode") == b"navigate"
        if site is None or follows_link:
            return
        asks = "a page of another site"
    else:
        asks = text = origin.decode("latin-1")
        own = (
            text.partition("://")[2].lower() == headers.get(b"host", b"").decode("latin-1").lower()
        )
        if (own and site is None) or text in cors_origins:
            return
    raise PermissionDeniedError(
        f"{asks[:100]} may not ask this server from a browser; if it should, add its origin to "
        "server.cors_origins"
    )


def single_headers(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name. Raises InvalidRequestError where it matters that there is only one."""
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name in _ONCE and name in headers:
            raise InvalidRequestError(f"the header {name.decode()} is there twice; send it once")
        headers[name] = value
    return headers


_ONCE = (b"host", b"authorization", b"origin")


def host_name(host: str) -> str:
    """Without the port: "[::1]:8000" -> "::1", "LocalHost.:80" -> "localhost"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def is_loopback(name: str) -> bool:
    """Whether a host name or address leads to this machine only."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
