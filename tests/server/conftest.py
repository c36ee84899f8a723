"""A tiny real model, and real servers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.server.identity.door import Door, People, people, standing
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[ServerProcess]:
    """Shared by all tests that leave it as they found it."""
    server = ServerProcess(model_folder).wait_until_ready()
    yield server
    server.close()


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> openai.OpenAI:
    return server.client(max_retries=0)


@pytest.fixture
def start_server(model_folder: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of a test's own; takes what ServerProcess takes."""
    started: list[ServerProcess] = []

    def start(**options: object) -> ServerProcess:
        started.append(ServerProcess(model_folder, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def who(data: Path) -> Iterator[People]:
    """Those whom the store in there knows."""
    with people(data) as made:
        yield made


@pytest.fixture(scope="module")
def door(data: Path, who: People) -> Iterator[Door]:
    del who  # a store closes the door
    with standing(data) as made:
        yield made
