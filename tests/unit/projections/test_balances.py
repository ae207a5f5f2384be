"""Balances: what is news is judged for each source, and the cached and the real-time one never flap."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections.events import public_events
from projections.events.public_events import BalanceEvent
from projections.model.unit_of_work import AccountRow
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.encoding import codec
from schemas.events import BALANCE_UPDATED
from schemas.log import gate
from schemas.log.records import Account
from tests.support.examples import examples
from tests.support.projections_log import Log, account, balance, owners

CACHED, REALTIME = "cached", "realtime"


class Reports:
    """An account that is reported of, one batch a record."""

    def __init__(self) -> None:
        self.log = Log()
        self.memory = MemoryProjections(owners)
        self.memory.project([self.log.link("A")])

    def cached(self, current: str, **payload: str) -> list[BalanceEvent]:
        """A sync reports it. Gives what was told of it."""
        said = balance(account(current=current, **payload))
        return self._project(self.log.sync("A", *said))

    def realtime(self, current: str, **payload: str) -> list[BalanceEvent]:
        """The bank was asked."""
        said = balance(account(current=current, **payload), realtime=True)
        return self._project(self.log.free("A", said, type=gate.BALANCE))

    def _project(self, record: object) -> list[BalanceEvent]:
        self.memory.project([record])  # type: ignore[list-item]
        net = self.memory.folded[-1].net_events
        assert {event.type for event in net} <= {BALANCE_UPDATED}
        return [public_events.read_balance(event.data) for event in net]

    @property
    def row(self) -> AccountRow:
        [row] = self.memory.accounts.values()
        return row

    @property
    def shown(self) -> Account:
        """What readers see."""
        row = self.row
        payload = row.cached_payload if row.source == CACHED else row.realtime_payload
        assert payload is not None
        shown: Account = codec.decoder(row.cached_payload_schema or row.realtime_payload_schema)(payload, 0)[0]
        return shown


@pytest.fixture
def reports() -> Reports:
    return Reports()


def test_a_cached_balance_that_is_repeated_behind_a_real_time_one_changes_nothing(reports: Reports) -> None:
    reports.cached("100")
    [told] = reports.realtime("90")
    before = (reports.row.version, reports.row.known_at)

    for _ in range(3):
        assert reports.cached("100") == []
        assert reports.realtime("90") == []

    assert (told.source, told.account.current, told.previous) == (REALTIME, "90", None)
    assert (reports.shown.current, reports.row.source) == ("90", REALTIME)
    assert (reports.row.version, reports.row.known_at) == before


def test_each_source_is_compared_with_its_own_last_words(reports: Reports) -> None:
    reports.cached("100", available="95", limit="500")
    reports.realtime("90", available="85")

    [cached] = reports.cached("80", available="75")
    [realtime] = reports.realtime("70", available="65")

    assert cached.previous is not None
    assert realtime.previous is not None
    assert (cached.source, cached.previous.current, cached.previous.available, cached.previous.limit) == (
        CACHED,
        "100",
        "95",
        "500",
    )
    assert (realtime.source, realtime.previous.current, realtime.account.available) == (REALTIME, "90", "65")


def test_the_source_that_spoke_last_is_shown(reports: Reports) -> None:
    shown = []
    for tell, current in ((reports.cached, "1"), (reports.realtime, "2"), (reports.cached, "3"), (reports.cached, "3")):
        tell(current)
        shown.append(reports.shown.current)

    assert shown == ["1", "2", "3", "3"]


def test_the_banks_word_of_now_takes_over_from_a_cached_one_that_came_in_between(reports: Reports) -> None:
    reports.realtime("90")
    reports.cached("80")

    [told] = reports.realtime("90")

    assert (told.account.current, told.previous and told.previous.current) == ("90", "90")
    assert reports.shown.current == "90"
    assert reports.cached("80") == []


def test_a_newer_time_of_the_bank_is_kept_and_is_no_news(reports: Reports) -> None:
    reports.cached("100", last_updated_datetime="2026-03-01T08:00:00Z")
    version = reports.row.version

    assert reports.cached("100", last_updated_datetime="2026-03-02T08:00:00Z") == []

    assert reports.shown.last_updated_datetime == "2026-03-02T08:00:00Z"
    assert reports.row.version == version == len(reports.memory.account_versions)
    [told] = reports.cached("99", last_updated_datetime="2026-03-03T08:00:00Z")
    assert told.previous is not None
    assert (told.previous.last_updated_datetime, told.account.last_updated_datetime) == (
        "2026-03-02T08:00:00Z",
        "2026-03-03T08:00:00Z",
    )


def test_another_currency_is_news(reports: Reports) -> None:
    reports.cached("100")

    [told] = reports.cached("100", iso_currency_code="EUR")

    assert told.previous is not None
    assert (told.previous.iso_currency_code, told.account.iso_currency_code) == ("USD", "EUR")


def test_the_time_of_a_real_time_balance_is_when_the_bank_was_last_asked(reports: Reports) -> None:
    reports.realtime("90")
    first = reports.row.realtime_at

    reports.realtime("90")

    assert first is not None
    assert reports.row.realtime_at == first + 1_000_000


Step = tuple[bool, int, int]
"""Whether it is a real-time report, its amount, its bank's time."""


@settings(deadline=None, max_examples=examples(200))
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 12)),
)
def test_any_cut_into_batches_gives_the_same_and_events_lead_a_reader_to_what_is_shown(
    steps: list[Step], cuts: set[int]
) -> None:
    reports = Reports()
    for is_realtime, amount, hour in steps:
        tell = reports.realtime if is_realtime else reports.cached
        before = None if not reports.memory.accounts else reports.shown.current
        told = tell(str(amount), last_updated_datetime=f"2026-03-01T0{hour}:00:00Z")
        seen = told[-1].account.current if told else before
        assert reports.shown.current == seen

    again = MemoryProjections(owners)
    for batch in _batches(reports.log.records, cuts):
        again.project(batch)

    assert again.full() == reports.memory.full()


def _batches(records: list[object], cuts: Iterable[int]) -> list[list[object]]:
    places = [0, *sorted(cut for cut in cuts if cut < len(records)), len(records)]
    return [records[start:end] for start, end in itertools.pairwise(places)]
