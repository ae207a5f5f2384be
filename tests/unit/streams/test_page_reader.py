"""An update that never ends is given up at once."""

import pytest

from runtime.plaid.models import SyncPage
from streams.sync import page_reader
from streams.sync.page_reader import EndlessUpdate, read_pages


class EndlessPlaid:
    """Answers that always have more; `cursors` repeat."""

    def __init__(self, *cursors: str) -> None:
        self._cursors = cursors
        self.requests = 0

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        """Return the next page."""
        self.requests += 1
        next_cursor = self._cursors[(self.requests - 1) % len(self._cursors)] if self._cursors else f"c{self.requests}"
        return SyncPage([], [], [], [], next_cursor, True, None, None)


async def never(_: float) -> None:
    raise AssertionError("an endless update is not restarted")


@pytest.mark.parametrize(("cursors", "requests"), [(("a",), 2), (("a", "b", "c"), 4), (("start",), 1)])
async def test_a_cursor_that_was_seen_before_ends_the_run(cursors: tuple[str, ...], requests: int) -> None:
    plaid = EndlessPlaid(*cursors)

    with pytest.raises(EndlessUpdate, match="does not end"):
        await read_pages(plaid, "token", "start", sleep=never, random=lambda: 0.5)  # type: ignore[arg-type]

    assert plaid.requests == requests


async def test_more_pages_than_any_history_has_end_the_run() -> None:
    plaid = EndlessPlaid()

    with pytest.raises(EndlessUpdate):
        await read_pages(plaid, "token", None, sleep=never, random=lambda: 0.5)  # type: ignore[arg-type]

    assert plaid.requests == page_reader.PAGES_MAX
