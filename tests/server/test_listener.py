"""Taking the port."""

from __future__ import annotations

import resource
import socket

import pytest

from dropless.errors import SettingsError
from dropless.server.listener import listen, raise_file_limit, url


def test_a_port_in_use_is_named_with_another_to_try() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            listen("127.0.0.1", port)
    assert f"--port {port + 1}" in str(caught.value)


def test_the_port_is_free_again_at_once() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
    listen("127.0.0.1", port).close()
    client.close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1"])
def test_no_such_host(host: str) -> None:
    with pytest.raises(SettingsError, match=r"is no address.*127\.0\.0\.1"):
        listen(host, 0)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_url_is_what_a_local_client_uses() -> None:
    with listen("0.0.0.0", 0) as everywhere:
        port = everywhere.getsockname()[1]
        assert url(everywhere) == f"http://127.0.0.1:{port}"


def test_as_many_files_as_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, hard), hard))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
