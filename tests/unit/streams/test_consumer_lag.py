"""Whether a reader has read what lay in the log a while ago."""

from collections.abc import Mapping

from streams.webhooks.consumer_lag import CaughtUp


class Log:
    """A log and its reader."""

    def __init__(self) -> None:
        self.ends: dict[int, int] = {0: 0, 1: 0}
        self.positions: dict[int, int] = {}
        self.is_read = CaughtUp(self._ends, self._positions)

    async def _ends(self) -> Mapping[int, int]:
        return dict(self.ends)

    async def _positions(self) -> Mapping[int, int]:
        return dict(self.positions)


async def test_nothing_is_known_at_first() -> None:
    log = Log()

    assert [await log.is_read(), await log.is_read()] == [False, True]


async def test_a_reader_that_is_always_a_little_behind_has_read_what_was_there_before() -> None:
    log, answers = Log(), []

    for end in range(10):
        log.ends[0], log.positions[0] = end + 1, end
        answers.append(await log.is_read())

    assert answers == [False] + [True] * 9


async def test_a_reader_that_stands_still_has_not_read_and_then_goes_on() -> None:
    log = Log()
    await log.is_read()

    log.ends = {0: 5, 1: 7}
    answers = [await log.is_read() for _ in range(4)]
    log.ends[1] = 100
    log.positions = {0: 5, 1: 6}
    answers.append(await log.is_read())
    log.positions[1] = 7
    answers.append(await log.is_read())

    # What was there at the last yes is read; what came after it is asked for at the next look.
    assert answers == [True, False, False, False, False, True]
