"""Whose endpoints may read models from the server's disk."""

from __future__ import annotations

from pathlib import Path

from dropless.checkpoints.resolve import is_published
from dropless.errors import PermissionDeniedError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.identity.principal import Principal


def check_local_models(
    principal: Principal, new: EndpointSettings, old: EndpointSettings | None = None
) -> None:
    """An administrator's may name any path; others name what is published, or keep paths that the
    endpoint has already. A refusal does not tell whether there is something at the path.

    Raises PermissionDeniedError.
    """
    if principal.is_admin:
        return
    kept = set() if old is None else set(_paths(old))
    for path in _paths(new):
        if path not in kept:
            raise PermissionDeniedError(
                f"{path!r} is neither a name of the catalogue nor a hub id (org/name); "
                f"{principal.name} needs CAN_MANAGE on all endpoints to serve from the server's "
                "disk"
            )


def _paths(settings: EndpointSettings) -> list[str]:
    """What its entities read from the disk, or what is no name of anything."""
    found = []
    for entity in settings.served_entities:
        if not is_published(entity.model, allow_shapes=entity.engine.weights == "random"):
            found.append(entity.model)
        tokenizer = entity.engine.config(Path(), "").tokenizer_path
        if tokenizer is not None:
            found.append(str(tokenizer))
    return found
