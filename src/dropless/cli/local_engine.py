"""An engine of this command's own: found, loaded with progress shown, ready for requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress

from dropless.cli.find_model import resolve_model
from dropless.engine.client import AsyncEngineClient
from dropless.engine.config import EngineConfig
from dropless.engine.messages import EngineReady, LoadProgress
from dropless.text.chat_template import ChatTemplate, load_chat_template
from dropless.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """A started engine process and the text side of its model."""

    client: AsyncEngineClient
    ready: EngineReady
    tokenizer: Tokenizer
    template: ChatTemplate


async def start_local_engine(model: str | None, settings: dict[str, Any]) -> LocalEngine:
    """Find the model (fetching it if need be) and start an engine process; progress goes to
    standard error. `settings` are fields of `EngineConfig`.

    Raises:
        DroplessError: the model is not found, does not load, or does not fit.
    """
    path, model_id = resolve_model(model, allow_shapes=settings.get("weights") == "random")
    tokenizer = load_tokenizer(settings.get("tokenizer_path") or path)
    template = load_chat_template(path, tokenizer)
    client = AsyncEngineClient(EngineConfig(model_path=path, model_id=model_id, **settings))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=1.0)

        def show(report: LoadProgress) -> None:
            progress.update(task, description=report.stage, completed=report.fraction)

        ready = await client.start(show)
    return LocalEngine(client, ready, tokenizer, template)
