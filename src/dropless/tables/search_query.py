"""What one looks for among calls."""

from __future__ import annotations

import datetime

import msgspec

from dropless.tables.rows import PayloadRow

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Search(msgspec.Struct, frozen=True):
    """What a call must be. Times are microseconds since 1970; None: whatever.

    Args:
        text: is in the request or the response, in any case.
        status_codes: from the first to the second, both included.
        since, until: at this time or later, at this time or earlier.
        before: earlier than the call of this time and id. To go on after a page: those of its
            last call.
    """

    text: str | None = None
    status_codes: tuple[int, int] | None = None
    requester: str | None = None
    request_id: str | None = None
    since: int | None = None
    until: int | None = None
    before: tuple[int, str] | None = None

    def matches(self, row: PayloadRow) -> bool:
        if self.text is not None:
            text = self.text.lower()
            if not any(text in body.lower() for body in (row.request, row.response) if body):
                return False
        low, high = self.status_codes or (0, 999)
        return (
            low <= row.status_code <= high
            and self.requester in (None, row.requester)
            and self.request_id in (None, row.databricks_request_id)
            and (self.since is None or row.request_time >= self.since)
            and (self.until is None or row.request_time <= self.until)
            and (self.before is None or age(row) < self.before)
        )

    def condition(self) -> tuple[str, list[object]]:
        """The same as SQL, with its parameters."""
        terms = ["true"]
        parameters: list[object] = []

        def add(term: str, *values: object) -> None:
            places = [f"${len(parameters) + i + 1}" for i in range(len(values))]
            terms.append(term.format(*places))
            parameters.extend(values)

        if self.text is not None:
            text = "(contains(lower(request), {0}) OR contains(lower(response), {0}))"
            add(text, self.text.lower())
        if self.status_codes is not None:
            add("status_code BETWEEN {} AND {}", *self.status_codes)
        if self.requester is not None:
            add("requester = {}", self.requester)
        if self.request_id is not None:
            add("databricks_request_id = {}", self.request_id)
        if self.since is not None:
            add("request_time >= {}", timestamp(self.since))
        if self.until is not None:
            add("request_time <= {}", timestamp(self.until))
        if self.before is not None:
            time, request_id = self.before
            earlier = "(request_time, databricks_request_id) < ({}::TIMESTAMPTZ, {})"
            add(earlier, timestamp(time), request_id)
        return " AND ".join(terms), parameters

    def may_be_on(self, day: str) -> bool:
        """Whether a call of this day, as 2026-11-24, can match."""
        first = None if self.since is None else _day(self.since)
        lasts = [_day(time) for time in (self.until, self.before and self.before[0]) if time]
        return (first is None or day >= first) and all(day <= last for last in lasts)


def age(row: PayloadRow) -> tuple[int, str]:
    """The order of calls."""
    return row.request_time, row.databricks_request_id


def timestamp(time_us: int) -> datetime.datetime:
    return EPOCH + datetime.timedelta(microseconds=time_us)


def _day(time_us: int) -> str:
    return timestamp(time_us).date().isoformat()
