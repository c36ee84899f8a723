"""What the person who started the server sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from dropless.engine.messages import EngineReady, LoadProgress

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


class Terminal:
    """Progress goes to standard error, what to try to standard output. `chats` says whether the
    model has a chat template."""

    def __init__(self, url: str, model_id: str, *, chats: bool) -> None:
        self._url = url
        self._model_id = model_id
        self._chats = chats
        self._console = Console(stderr=True)

    @contextmanager
    def loading(self) -> Iterator[Callable[[LoadProgress], None]]:
        """A progress bar; yields what moves it."""
        with Progress(console=self._console, transient=True) as progress:
            task = progress.add_task("starting", total=1.0)

            def show(report: LoadProgress) -> None:
                progress.update(task, description=report.stage, completed=report.fraction)

            yield show

    def ready(self, ready: EngineReady) -> None:
        print(
            f"\n{self._model_id} is served at {self._url} (loaded in {ready.load_seconds:.1f} s, "
            f"{ready.dtype}, quantization {ready.quantization}, context {ready.max_model_len} "
            f"tokens).\n\nTry it with curl:\n\n{self._curl()}\n\nor with Python (pip install "
            f"openai):\n\n{self._python()}\n\nCtrl-C stops.",
            flush=True,
        )

    def stopping(self) -> None:
        self._console.print("Stopping when running requests are done; once more stops at once.")

    def _curl(self) -> str:
        if self._chats:
            path = "/v1/chat/completions"
            asked: dict[str, object] = {
                "messages": [{"role": "user", "content": "Name three colours."}]
            }
        else:
            path, asked = "/v1/completions", {"prompt": "Three colours are"}
        body = json.dumps({"model": self._model_id, **asked}).replace("'", "'\\''")
        return f"curl {self._url}{path} -H 'Content-Type: application/json' -d '{body}'"

    def _python(self) -> str:
        template = _PYTHON if self._chats else _PYTHON_PLAIN
        return template.format(url=self._url, model=json.dumps(self._model_id))
