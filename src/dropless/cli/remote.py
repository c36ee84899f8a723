"""Asking a running server what it serves."""

from __future__ import annotations

import httpx

from dropless.errors import EngineError


def served_model(url: str, api_key: str | None = None) -> str:
    """The first model that an OpenAI-compatible server lists.

    Raises:
        EngineError: nobody answers there, or not with a list of models.
    """
    base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{base}/v1/models", headers=headers, timeout=10.0)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise EngineError(
            f"{url} lists no models ({error}); is a server running there? Start one with "
            "`dropless serve`, or name the model"
        ) from error
