"""What operators read of incidents: what it is, of what, how long, and what to do; never more than is read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.incidents import incidents
from runtime.incidents.incidents import Incident
from streams.alerts.messages import NAMED_MAX, message_of_many, message_of_one

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
SLACK_CHARACTERS_MAX = 4000
"""Source: Slack documentation, Changing message formatting: longer texts are hard to read, and cut at 40,000."""


def incident(kind: str = incidents.SYNC_FAILING, **fields: Any) -> Incident:
    given_fields = {
        "incident": 1,
        "subject": "item",
        "detail": "late: no answer",
        "count": 1,
        "opened_at": START,
        "last_at": START,
        "closed_at": None,
        "alerted": False,
    } | fields
    return Incident(kind=kind, **given_fields)


@pytest.mark.parametrize("kind", list(incidents.KINDS))
def test_every_kind_is_told_with_its_subject_detail_and_remedy(kind: str) -> None:
    message = message_of_one(incident(kind, subject="what it is about"))

    described = incidents.KINDS[kind]
    assert message.text.splitlines() == [
        f"Tartan: {described.title} ({described.subject} what it is about).",
        "Detail: late: no answer",
        f"What to do: {described.remedy}",
    ]
    assert message.begins


@pytest.mark.parametrize(
    ("seconds", "duration"),
    [(-1, "0 s"), (59, "59 s"), (60, "1 min"), (7_500, "2 h 5 min"), (90_000, "1 d 1 h"), (900_000, "10 d 10 h")],
)
def test_an_end_says_how_long_it_was_and_asks_for_nothing(seconds: float, duration: str) -> None:
    message = message_of_one(incident(closed_at=START + timedelta(seconds=seconds), alerted=True, count=7))

    assert message.text == (
        f"Tartan: over: An Item's sync keeps failing (Item item). It lasted {duration}, seen 7 times."
    )
    assert not message.begins


def test_a_kind_of_another_version_is_told_all_the_same() -> None:
    message = message_of_one(incident("of_tomorrow"))

    assert "item" in message.text
    assert message.body["kind"] == "of_tomorrow"


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*incidents.KINDS, "of_tomorrow"]),
            st.text(min_size=1, max_size=40),
            st.booleans(),
            st.booleans(),
        ),
        min_size=2,
        max_size=400,
    )
)
def test_any_flood_is_one_readable_message_that_counts_all(flood: list[tuple[str, str, bool, bool]]) -> None:
    many = [
        incident(
            kind, incident=number, subject=subject, closed_at=START if closed else None, alerted=is_alerted and closed
        )
        for number, (kind, subject, closed, is_alerted) in enumerate(flood)
    ]

    message = message_of_many(many)

    body = message.body
    assert body["count"] == sum(kind["count"] for kind in body["kinds"]) == len(many)
    lasting = [each for each in many if each.closed_at is None]
    assert len(body["incidents"]) == min(NAMED_MAX, len(lasting or many))
    assert message.begins == bool(lasting)
    assert len(message.text) < SLACK_CHARACTERS_MAX
    assert message.incidents == tuple(many)
    assert all(incidents.describe(each.kind).remedy in message.text for each in lasting)
