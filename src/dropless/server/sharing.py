"""How the users of a server share its engines: whose requests go first, and whose share is
larger. The `sharing` section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from dropless.engine.messages import MOST_WEIGHT
from dropless.server.configuration.section import Section
from dropless.server.identity.principal import Principal

_MOST_PRIORITY = 1000


class ShareSettings(Section):
    """Requests of a higher `priority` go first. Among those of one priority, users are served by
    `weight`: who has 4 gets four times the tokens of who has 1, when both want more."""

    weight: float = Field(default=1.0, ge=1 / MOST_WEIGHT, le=MOST_WEIGHT)
    priority: int = Field(default=0, ge=-_MOST_PRIORITY, le=_MOST_PRIORITY)


class SharingSettings(Section):
    """A user or service principal has what stands here for it by name; else what stands for the
    group among its own whose priority is the highest, then whose weight; else the default."""

    default: ShareSettings = ShareSettings()
    users: dict[str, ShareSettings] = Field(default_factory=dict)
    groups: dict[str, ShareSettings] = Field(default_factory=dict)

    def of(self, principal: Principal) -> ShareSettings:
        own = self.users.get(principal.name)
        if own is not None:
            return own
        of_groups = [self.groups[name] for name in principal.groups if name in self.groups]
        return max(of_groups, key=lambda s: (s.priority, s.weight), default=self.default)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a request belongs to, as the engine knows it: by a name that tells it nothing."""

    name: str
    priority: int = 0
    weight: float = 1.0
