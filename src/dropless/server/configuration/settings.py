"""The whole configuration: the sections of every room, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.configuration.section import Section
from dropless.server.identity.settings import IdentitySettings
from dropless.server.limits import HttpLimits
from dropless.server.sharing import SharingSettings
from dropless.server.telemetry.settings import TelemetrySettings
from dropless.tables.settings import TablesSettings

DEFAULT_DATA = Path("~/.local/share/dropless")

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class ServerSettings(Section):
    """Where the server listens, which browsers it answers, and what one client may take of it.
    `cors_origins` are sites whose pages may call it, as `https://app.example.com`; `allowed_hosts`
    are names that it goes by, without a port. With none, a server without tokens answers under
    loopback names only."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    limits: HttpLimits = HttpLimits()


class Configuration(Section):
    """One server. `data` is the folder of what outlives it."""

    server: ServerSettings = ServerSettings()
    data: UserPath = DEFAULT_DATA.expanduser()
    identity: IdentitySettings = IdentitySettings()
    tables: TablesSettings = TablesSettings()
    sharing: SharingSettings = SharingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    endpoints: tuple[EndpointSettings, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Configuration:
        names = [endpoint.name for endpoint in self.endpoints]
        for name in names:
            if names.count(name) > 1:
                raise PydanticCustomError(
                    "endpoints", "two endpoints are called {name}", {"name": repr(name)}
                )
        return self
