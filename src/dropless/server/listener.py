"""The listening socket, taken before anything slow happens."""

from __future__ import annotations

import errno
import resource
import socket

from dropless.errors import SettingsError

BACKLOG = 2048  # connections that may wait to be accepted
# Answers that may wait in the kernel for one client; bounds the memory of clients that stop
# reading. The kernel doubles it.
SEND_BUFFER_BYTES = 128 * 1024


def listen(host: str, port: int) -> socket.socket:
    """Listen on this address; port 0 takes a free one. Clients may connect from now on and are
    answered when the server runs.

    Raises:
        SettingsError: the port is in use or not allowed, or the host is no address of this
            machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(
            f"host {host!r} is no address: {error.strerror}; use 127.0.0.1 for this machine only, "
            "0.0.0.0 for all networks"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(_why_not(error, host, port)) from error
    listener.setblocking(False)
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use by another program; stop it, or choose another port, "
            f"for example --port {port + 1 if port < 65535 else 8000}"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs root; choose one above 1023, for example --port 8000"
    return f"cannot listen on {host} port {port}: {error.strerror}"


def cut_stalled_clients(listener: socket.socket, after_s: float) -> None:
    """Let the kernel reset connections whose client takes nothing of what waits for it for so
    long; it costs nothing per token. Connections inherit it from the listening socket."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(after_s * 1000))


def url(listener: socket.socket) -> str:
    """Where a client on this machine reaches the listener, without a path."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def raise_file_limit() -> None:
    """Every connection is a file: take as many as the system gives this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
