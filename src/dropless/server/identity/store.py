"""The store of users and tokens as one thing."""

from __future__ import annotations

from dropless.server.identity.accounts import Accounts
from dropless.server.identity.database import Database
from dropless.server.identity.tokens import Tokens


class IdentityStore:
    """What `dropless tokens` and `dropless users` work on, and what a server checks against."""

    def __init__(self, url: str) -> None:
        """Open it, or make it. Raises what Database raises."""
        self.database = Database(url)
        self.accounts = Accounts(self.database)
        self.tokens = Tokens(self.database)

    def close(self) -> None:
        self.database.close()
