"""Servers that tell each other what they let in, against a list of all that any of them did."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dropless.errors import RateLimitError
from dropless.server.identity.principal import Principal
from dropless.server.quotas.quotas import Heard, Quotas, Reservation
from dropless.server.quotas.rate_limit import RateLimit
from dropless.server.quotas.tally import Slot, Tally
from tests.server.quotas.test_quotas import NS, Endpoint, at_once

WHO = Principal("alice")
LIMIT = 100
SPAN = 60 * NS
SLOT = NS // 2


@dataclass(eq=False)
class Call:
    """One that a server let in, and which others know of it."""

    server: Server
    at: int
    amount: int
    reservation: Reservation
    known: set[Server] = field(default_factory=set)
    told: bool = False


class Server:
    def __init__(self, machine: ServersMachine, name: str) -> None:
        self.name = name
        self.quotas = Quotas(lambda: machine.now)
        self.tally = self.quotas.tally = Tally()
        self.read = 0  # of the board


class ServersMachine(RuleBasedStateMachine):
    """One user, one limit of tokens in a minute. What servers tell stands on a board, until they
    look there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000 * NS
        self.made = 0
        self.servers = [self.new_server() for _ in range(3)]
        self.board: list[tuple[Server, Slot, int]] = []
        self.endpoint = Endpoint((RateLimit(key="user", otpm=LIMIT),))
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self.longest_wait_s = 0.0

    def new_server(self) -> Server:
        self.made += 1
        return Server(self, f"server-{self.made}")

    def taken(self, span: int) -> int:
        return sum(call.amount for call in self.calls if call.at + span > self.now)

    @rule(ms=st.one_of(st.integers(0, 700), st.sampled_from([5_000, 30_000, 59_900, 61_500])))
    def time_passes(self, ms: int) -> None:
        self.now += ms * 1_000_000

    @rule(number=st.integers(0, 2), output=st.integers(1, LIMIT))
    def ask(self, number: int, output: int) -> None:
        server = self.servers[number]
        try:
            reservation = at_once(server.quotas.admit(WHO, self.endpoint, 1, output))
        except RateLimitError as error:
            self.longest_wait_s = max(self.longest_wait_s, error.retry_after_s)
            return
        self.calls.append(Call(server, self.now, output, reservation, {server}))
        self.running.append(self.calls[-1])
        unknown = sum(call.amount for call in self.calls if server not in call.known)
        assert self.taken(SPAN) <= LIMIT + unknown

    @rule(data=st.data())
    def one_ends(self, data: st.DataObject) -> None:
        if self.running:
            call = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            call.amount = data.draw(st.integers(0, call.amount))
            call.reservation.settle(call.amount)

    @rule(number=st.integers(0, 2), fails=st.booleans())
    def tell(self, number: int, fails: bool) -> None:
        server = self.servers[number]
        changes = server.tally.changes(self.now)
        if fails:
            server.tally.tell_again(changes)
            return
        self.board += [(server, slot, slot.amount) for slot in changes]
        for call in self.calls:
            call.told |= call.server is server

    @rule(number=st.integers(0, 2))
    def listen(self, number: int) -> None:
        server = self.servers[number]
        news = self.board[server.read :]
        server.read = len(self.board)
        server.quotas.hear(
            Heard((teller.name, slot.number), slot.key, slot.end, amount)
            for teller, slot, amount in news
            if teller is not server
        )
        for call in self.calls:
            if call.told:
                call.known.add(server)

    @rule()
    def all_know_everything(self) -> None:
        for number in range(3):
            self.tell(number, fails=False)
        for number in range(3):
            self.listen(number)
            [use] = self.servers[number].quotas.usage(WHO, self.endpoint)
            # A slot counts to its end and an interval more.
            assert self.taken(SPAN) <= use["current"] <= self.taken(SPAN + 2 * SLOT)

    @invariant()
    def no_refusal_lasts(self) -> None:
        assert self.longest_wait_s <= (SPAN + 2 * SLOT) / NS

    @rule(number=st.integers(0, 2))
    def one_is_restarted(self, number: int) -> None:
        """It stops well, and its successor begins with what the board says."""
        for call in [call for call in self.running if call.server is self.servers[number]]:
            self.running.remove(call)
            call.reservation.settle(call.amount)
        self.tell(number, fails=False)
        self.servers[number] = self.new_server()
        self.listen(number)


TestServers = ServersMachine.TestCase
TestServers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_is_given_back_is_told_too() -> None:
    machine = ServersMachine()
    machine.ask(0, 80)
    machine.all_know_everything()
    [call] = machine.running
    call.amount = 10
    call.reservation.settle(10)
    machine.all_know_everything()
    machine.ask(1, 90)
    assert [call.amount for call in machine.calls] == [10, 90]
    machine.ask(2, 1)
    machine.all_know_everything()
    machine.ask(2, 1)
    assert len(machine.calls) == 3, "two asked at once, and then there was no room"
