"""What the person who started the server sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from dropless.engine.messages import LoadProgress
from dropless.server.endpoints.endpoint import Endpoint
from dropless.server.endpoints.engines import ModelEngine

_PYTHON = """\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
stream = client.chat.completions.create(
    model={model},
    messages=[{{"role": "user", "content": "Name three colours."}}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""

_PYTHON_PLAIN = """\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
completion = client.completions.create(model={model}, prompt="Three colours are")
print(completion.choices[0].text)"""

_TOKEN = """\
Calls need a token: dropless tokens create NAME --grant CAN_QUERY makes one. Send it as the header
Authorization: Bearer TOKEN, or as the api_key of a client."""
_PYTHON_EMBEDDINGS = """\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
answer = client.embeddings.create(model={model}, input=["a river", "a stream"])
print([len(item.embedding) for item in answer.data])"""

# By task: the path, what is asked there, and the same in Python.
_TRY: dict[str, tuple[str, dict[str, object], str]] = {
    "llm/v1/chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Name three colours."}]},
        _PYTHON,
    ),
    "llm/v1/completions": ("/v1/completions", {"prompt": "Three colours are"}, _PYTHON_PLAIN),
    "llm/v1/embeddings": ("/v1/embeddings", {"input": ["a river"]}, _PYTHON_EMBEDDINGS),
}


class Terminal:
    """Progress goes to standard error, what to try to standard output."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._console = Console(stderr=True)

    @contextmanager
    def loading(self) -> Iterator[Callable[[LoadProgress], None]]:
        """A progress bar, where somebody sees it; yields what moves it."""
        is_seen = self._console.is_terminal
        with Progress(console=self._console, transient=True, disable=not is_seen) as progress:
            task = progress.add_task("starting", total=1.0)

            def show(report: LoadProgress) -> None:
                progress.update(task, description=report.stage, completed=report.fraction)

            yield show

    def ready(self, endpoints: Sequence[Endpoint], *, needs_token: bool) -> None:
        """What is served, and what to try. `needs_token`: whoever calls must have one."""
        lines = [self._served(endpoint) for endpoint in endpoints]
        lines.append(
            f"Open {self._url} to chat, {self._url}/dashboard to see what the server does."
        )
        if needs_token:
            lines.append(_TOKEN)
        if endpoints:
            lines += self._try(endpoints[0].name, endpoints[0].entities[0].engine.task)
        else:
            lines.append(f"No endpoint is served at {self._url} yet.")
        print("\n" + lines[0], *lines[1:], "Ctrl-C stops.", sep="\n\n", flush=True)

    def _served(self, endpoint: Endpoint) -> str:
        """One line for an endpoint, with what its served entities have become."""
        entities = []
        for entity in endpoint.entities:
            if not isinstance(entity.engine, ModelEngine):
                entities.append(
                    f"embeddings of texts of up to {entity.engine.max_model_len} tokens"
                )
                continue
            ready = entity.engine.ready()
            entities.append(
                f"loaded in {ready.load_seconds:.1f} s, {ready.dtype}, quantization "
                f"{ready.quantization}, context {ready.max_model_len} tokens"
            )
        if len(entities) > 1:
            entities = [
                f"{entity.name}: {text}"
                for entity, text in zip(endpoint.entities, entities, strict=True)
            ]
        return f"{endpoint.name} is served at {self._url} ({'; '.join(entities)})."

    def stopping(self) -> None:
        self._console.print("Stopping when running requests are done; once more stops at once.")

    def _try(self, name: str, task: str) -> list[str]:
        """A request to this endpoint, twice."""
        path, asked, python = _TRY[task]
        body = json.dumps({"model": name, **asked}).replace("'", "'\\''")
        curl = f"curl {self._url}{path} -H 'Content-Type: application/json' -d '{body}'"
        script = python.format(url=self._url, model=json.dumps(name))
        return [
            f"Try it with curl:\n\n{curl}",
            f"or with Python (pip install openai):\n\n{script}",
        ]
