"""Who may change which endpoint while the server runs: the configuration file, or the API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dropless.errors import ConflictError, DroplessError, ModelNotFoundError, SettingsError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.configuration.loading import load
from dropless.server.configuration.settings import Configuration
from dropless.server.endpoints.registry import EndpointRegistry
from dropless.server.endpoints.store import EndpointStore

logger = logging.getLogger("dropless.server")

_PROMPT_S = 1.0  # what is done within this time is told as done


@dataclass(slots=True)
class Update:
    """A change that is not, or could not be, done. `failure` is None while it is under way."""

    settings: EndpointSettings
    failure: DroplessError | None = None


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload of the file has changed. `needs_restart` are sections that differ from those
    that the server runs with, and that only a restart takes up."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    needs_restart: list[str]


class EndpointManager:
    """Changes a registry. With a configuration file, the endpoints it names are changed there and
    by `reload`, all others here, and kept in a store. Without one, all are changed here, and a
    restart forgets it."""

    def __init__(
        self,
        registry: EndpointRegistry,
        configuration: Configuration,
        file: Path | None,
        store: EndpointStore | None,
    ) -> None:
        """`configuration` is what the server started with, without the store's endpoints."""
        self.updates: dict[str, Update] = {}
        self.registry = registry
        self._started_with = configuration
        self._in_file = {} if file is None else {e.name: e for e in configuration.endpoints}
        self.file = file
        self._store = store
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, settings: EndpointSettings) -> None:
        """Returns when it is done or, if that takes long, under way.

        Raises:
            ConflictError: there is one of this name.
            DroplessError: it cannot be made.
        """
        if self.registry.get(settings.name) is not None:
            raise ConflictError(
                f"there is an endpoint {settings.name!r}; choose another name, or change that one"
            )
        await self._begin(settings)

    async def update(self, settings: EndpointSettings) -> None:
        """As `create`, for an endpoint that there is.

        Raises:
            ConflictError: the file owns it, or it is being changed.
            DroplessError: it cannot be made; everything is as it was.
        """
        self._check_owner(settings.name)
        await self._begin(settings)

    async def delete(self, name: str) -> None:
        """Raises ConflictError as `update`, ModelNotFoundError if there is none."""
        self._check_owner(name)
        failed = self.updates.pop(name, None)
        if self.registry.get(name) is None and failed is None:
            raise ModelNotFoundError(f"there is no endpoint {name!r}")
        await self._change({name: None})

    async def reload(self) -> Reloaded:
        """Take up the configuration file as it is now.

        Raises:
            SettingsError: it is wrong, or there is none; everything is as it was.
            ConflictError: the API is changing an endpoint that it names.
            DroplessError: a model does not load; everything is as it was.
        """
        if self.file is None:
            raise SettingsError(
                "this server runs without a configuration file, so there is nothing to reload; "
                "start it with `dropless serve --config FILE`"
            )
        async with self._reloading:
            new = await asyncio.to_thread(load, self.file)
            if self._store is not None:
                self._store.check_apart(new)
            before, after = self._in_file, {e.name: e for e in new.endpoints}
            for name in after:
                self._check_still(name)
            removed = [name for name in before if name not in after]
            await self.registry.change({**after, **dict.fromkeys(removed)})
            self._in_file = after
        return Reloaded(
            added=[name for name in after if name not in before],
            changed=[name for name in after if name in before and after[name] != before[name]],
            removed=removed,
            needs_restart=[
                section
                for section in Configuration.model_fields
                if section != "endpoints"
                and getattr(new, section) != getattr(self._started_with, section)
            ],
        )

    async def stop(self) -> None:
        """Gives up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _check_owner(self, name: str) -> None:
        if name in self._in_file:
            raise ConflictError(
                f"the endpoint {name!r} is described in {self.file}; change it there and reload "
                "the file: POST /api/2.0/config/reload"
            )
        self._check_still(name)

    def _check_still(self, name: str) -> None:
        update = self.updates.get(name)
        if update is not None and update.failure is None:
            raise ConflictError(
                f"the endpoint {name!r} is being changed; try again when it is done"
            )

    async def _begin(self, settings: EndpointSettings) -> None:
        self._check_owner(settings.name)
        update = self.updates[settings.name] = Update(settings)
        task = asyncio.create_task(self._carry_out(update))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=_PROMPT_S)
        if update.failure is not None:
            del self.updates[settings.name]
            raise update.failure

    async def _carry_out(self, update: Update) -> None:
        name = update.settings.name
        try:
            await self._change({name: update.settings})
        except DroplessError as error:
            update.failure = error
            logger.warning("endpoint %s: %s", name, error)
        else:
            del self.updates[name]

    async def _change(self, wanted: Mapping[str, EndpointSettings | None]) -> None:
        await self.registry.change(wanted)
        if self._store is not None:
            self._store.keep(wanted)
