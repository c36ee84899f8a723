"""Sends a benchmark's workload, showing how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dropless.bench.load_client import Api, LoadClient
from dropless.bench.metrics import RequestRecord
from dropless.bench.workload import Workload
from dropless.cli.find_model import resolve_model
from dropless.cli.remote import served_model

Drive = Callable[[Workload, Callable[[RequestRecord], None]], list[RequestRecord]]


def drive_server(
    workload: Workload, url: str, model: str | None, api: Api, api_key: str | None, timeout_s: float
) -> list[RequestRecord]:
    """Over HTTP. Raises EngineError when no server answers there."""
    name = model or served_model(url, api_key)
    client = LoadClient(url, name, api=api, api_key=api_key, timeout_s=timeout_s)
    return _watched(client.run, workload, f"{name} at {url}")


def drive_engine(
    workload: Workload, model: str | None, settings: dict[str, Any]
) -> list[RequestRecord]:
    """In this process. Raises DroplessError when the model cannot be loaded."""
    from dropless.bench.offline import OfflineRun
    from dropless.engine.build import build_engine
    from dropless.engine.config import EngineConfig
    from dropless.text.tokenizer import load_tokenizer

    path, model_id = resolve_model(model, allow_shapes=settings.get("weights") == "random")
    config = EngineConfig(model_path=path, model_id=model_id, **settings)
    tokenizer = load_tokenizer(config.tokenizer_path or path)
    with _progress() as progress:
        task = progress.add_task("loading", total=1.0)
        engine, _ready = build_engine(
            config,
            lambda stage, done: progress.update(task, description=stage, completed=done),
            tokenizer,
        )
    try:
        return _watched(
            lambda work, on_finish: OfflineRun(engine, tokenizer, work, on_finish).run(),
            workload,
            f"{model_id} in this process",
        )
    finally:
        engine.close()


def _watched(drive: Drive, workload: Workload, what: str) -> list[RequestRecord]:
    failed = 0
    with _progress() as progress:
        task = progress.add_task(what, total=len(workload.requests))

        def note(record: RequestRecord) -> None:
            nonlocal failed
            failed += record.error is not None
            progress.update(task, advance=1, description=what + f", {failed} failed" * (failed > 0))

        return drive(workload, note)


def _progress() -> Progress:
    # Drawn twice a second: the bar must not take time from what is measured.
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,
    )
