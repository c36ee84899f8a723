"""A server that serves a dense model and a mixture of experts, and tells all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dropless.checkpoints.writer import write_tiny_dbrx
from tests.server.server_process import ServerProcess
from tests.server.telemetry.receiver import Receiver
from tests.server.tiny_model import MAX_MODEL_LEN, tiny_endpoint, write_tiny_model

DENSE, MIXTURE = "dense", "mixture"


@pytest.fixture(scope="package")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="package")
def telling(
    model_folder: Path, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("mixture")
    write_tiny_model(folder)
    write_tiny_dbrx(folder, vocab_size=512, max_seq_len=MAX_MODEL_LEN)
    configuration = {
        "data": str(tmp_path_factory.mktemp("data")),
        "telemetry": {
            "otlp_endpoint": receiver.url,
            "otlp_headers": {"x-key": "of the collector"},
            "service_name": "models",
            "trace_content": True,
            "log_format": "json",
        },
        "endpoints": [
            tiny_endpoint(str(model_folder), DENSE),
            tiny_endpoint(str(folder), MIXTURE, weights="checkpoint", quantization="none"),
        ],
    }
    server = ServerProcess(model_folder, configuration=configuration).wait_until_ready()
    yield server
    server.close()
