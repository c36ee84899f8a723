"""Grants, and what is left of them inside a token's scopes."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropless.errors import InvalidRequestError
from dropless.server.identity.principal import (
    ANYONE,
    LOCAL,
    Grant,
    Permission,
    Principal,
    narrowed,
)

PERMISSIONS = get_args(Permission)
ENDPOINTS = ("a", "b")
grants = st.lists(
    st.builds(Grant, st.sampled_from(PERMISSIONS), st.sampled_from((*ENDPOINTS, "*"))), max_size=5
)


@given(grants, grants)
def test_a_scoped_token_may_do_what_both_its_owner_and_its_scopes_may(
    held: list[Grant], scopes: list[Grant]
) -> None:
    owner, scope = Principal("o", grants=tuple(held)), Principal("s", grants=tuple(scopes))
    token = Principal("o", grants=narrowed(held, scopes))
    for permission, endpoint in product(PERMISSIONS, (*ENDPOINTS, "other", "*")):
        both = owner.can(permission, endpoint) and scope.can(permission, endpoint)
        assert token.can(permission, endpoint) == both


@given(grants)
def test_their_text_reads_back(held: list[Grant]) -> None:
    assert [Grant.parse(str(grant)) for grant in held] == held


def test_an_endpoint_may_have_colons_in_its_name() -> None:
    assert Grant.parse("CAN_VIEW:a:b") == Grant("CAN_VIEW", "a:b")


@pytest.mark.parametrize("text", ["", "can_query", "CAN_EAT", "CAN_QUERY,CAN_VIEW", "dbrx"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="CAN_QUERY:dbrx"):
        Grant.parse(text)


def test_those_without_a_token() -> None:
    assert LOCAL.is_admin
    assert ANYONE.can("CAN_QUERY", "a")
    assert not ANYONE.is_admin
    assert not ANYONE.can("CAN_MANAGE", "a")
