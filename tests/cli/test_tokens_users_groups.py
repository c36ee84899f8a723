"""`dropless tokens`, `users` and `groups` on a store in a file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dropless.cli.main import app
from dropless.server.identity.store import IdentityStore
from dropless.server.identity.token import Token

runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
Run = Callable[..., Result]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "data" / "identity.db"


@pytest.fixture
def run(database: Path) -> Run:
    def run(command: str, status: int = 0) -> Result:
        options = ["--database", f"sqlite:///{database}"]
        result = runner.invoke(app, [*shlex.split(command), *options])
        assert result.exit_code == status, result.output
        return result

    return run


def listed(run: Run, what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(f"{what} list --json").stdout)
    return found


def test_from_the_first_token_to_the_last(run: Run, database: Path) -> None:
    made = run("tokens create alice --grant CAN_MANAGE --expires 90d --comment 'my laptop'")
    token = Token.parse(made.stdout.strip())  # nothing else on standard output
    assert token.token_id in made.stderr
    assert token.value not in made.stderr
    store = IdentityStore(f"sqlite:///{database}")
    known = store.tokens.find(token.token_id)
    assert known is not None
    assert known.matches(token)
    assert known.principal.is_admin
    store.close()
    [facts] = listed(run, "tokens")
    assert (facts["owner"], facts["comment"]) == ("alice", "my laptop")
    assert facts["expires_at"] == facts["created_at"] + 90 * 86400 * 1000
    assert facts == json.loads(run(f"tokens show {token.token_id}").stdout)
    table = run("tokens list").stdout
    assert token.token_id in table
    assert token.value[14:] not in table
    second = run("tokens create alice --scope CAN_QUERY:dbrx --scope CAN_VIEW").stdout.strip()
    assert listed(run, "tokens")[1]["scopes"] == ["CAN_QUERY:dbrx", "CAN_VIEW"]
    run(f"tokens revoke {token.token_id} {second[:14]}")
    assert listed(run, "tokens") == []
    run(f"tokens revoke {token.token_id}", status=1)


def test_users_and_groups(run: Run) -> None:
    run("groups create analysts --grant CAN_QUERY:dbrx")
    run("users create bob --group analysts --grant CAN_VIEW")
    run("users create nightly --service-principal")
    assert [(u["name"], u["kind"], u["groups"], u["grants"]) for u in listed(run, "users")] == [
        ("bob", "user", ["analysts"], ["CAN_VIEW"]),
        ("nightly", "service_principal", [], []),
    ]
    run("users grant bob CAN_MANAGE:dbrx CAN_QUERY")
    assert listed(run, "users")[0]["grants"] == ["CAN_QUERY", "CAN_MANAGE:dbrx"]
    run("users withdraw bob")
    run("users withdraw bob", status=1)
    run("users withdraw bob dbrx")
    assert listed(run, "users")[0]["grants"] == []
    run("groups add analysts nightly bob")
    run("groups grant analysts CAN_VIEW")
    [group] = listed(run, "groups")
    assert (group["members"], group["grants"]) == (
        ["bob", "nightly"],
        ["CAN_QUERY:dbrx", "CAN_VIEW"],
    )
    run("groups remove analysts bob")
    run("groups withdraw analysts dbrx")
    [group] = listed(run, "groups")
    assert (group["members"], group["grants"]) == (["nightly"], ["CAN_VIEW"])
    assert "analysts" in run("groups list").stdout
    assert "service principal" in run("users list").stdout
    run("groups delete analysts")
    run("users delete nightly")
    assert listed(run, "groups") == []
    assert [user["name"] for user in listed(run, "users")] == ["bob"]


@pytest.mark.parametrize(
    "command",
    [
        "tokens list",
        "tokens create alice",
        "tokens create alice --grant CAN_EAT",
        "tokens create alice --grant CAN_VIEW --expires soon",
        "tokens create alice --grant CAN_VIEW --expires 0d",
        "tokens create ' ' --grant CAN_VIEW",
        "tokens show dlp_0123456789",
        "tokens revoke dlp_0123456789",
        "users list",
        "users create ' '",
        "users create bob --group nobody",
        "users grant bob CAN_VIEW",
        "users delete bob",
        "groups list",
        "groups create ' '",
        "groups add analysts bob",
    ],
)
def test_a_look_or_a_mistake_makes_no_store(run: Run, database: Path, command: str) -> None:
    """It would close a server that is open."""
    result = run(command, status=1)
    assert result.stderr.startswith("dropless: ")
    assert "Traceback" not in result.output
    assert not database.exists()


def test_mistakes_in_a_store_that_is_there(run: Run) -> None:
    run("users create alice")
    for command, says in (
        ("users create alice", "exists already"),
        ("tokens create bob", "no user or service principal 'bob'"),
        ("tokens list bob", "'bob'"),
        ("groups add team alice", "no group 'team'"),
        ("users create local", "kept for requests"),
    ):
        assert says in run(command, status=1).stderr


def test_the_configuration_says_where_the_store_is(tmp_path: Path) -> None:
    file = tmp_path / "dropless.yaml"
    file.write_text(f"data: {tmp_path / 'here'}\n")
    command = ["users", "create", "alice", "--config", str(file)]
    assert runner.invoke(app, command).exit_code == 0
    assert (tmp_path / "here" / "identity.db").exists()
    file.write_text(f"identity: {{database: 'sqlite:///{tmp_path}/there.db'}}\n")
    assert runner.invoke(app, command).exit_code == 0
    assert (tmp_path / "there.db").exists()
    both = [*command, "--database", "sqlite:////x.db"]
    assert "not both" in runner.invoke(app, both).stderr


@pytest.mark.parametrize(
    "command", ["tokens create", "tokens revoke", "users create", "users grant", "groups add"]
)
def test_help_teaches_by_examples_that_are_understood(command: str) -> None:
    output = runner.invoke(app, [*command.split(), "--help"]).output
    examples = [line.strip() for line in output.splitlines() if f"dropless {command}" in line]
    assert examples
    for example in examples:
        words = shlex.split(example.removeprefix("TOKEN=$(").removesuffix(")"))
        words = words[1 : words.index("the")] if "the" in words else words[1:]
        assert runner.invoke(app, [*words, "--help"]).exit_code == 0, example
