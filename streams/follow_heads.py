"""The agent follow_heads: the one way to know an Item's head. It applies the gate to `changesets`. Shell.

Heads and position are one transaction. Only here an Item is made due again after a skip, and only here an erasure
is carried out.
"""

from collections.abc import Callable, Sequence

from runtime import metrics as shared
from runtime.crash_points import CrashPoint, reach
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Position, Reader, Received, unread
from runtime.retry import insist
from runtime.scheduler.leases import FOLLOWER
from schemas.log import changesets
from streams.heads import HeadRecord, apply_records
from streams.ports import BeginFollowing


class FollowHeads:
    """Reads `changesets` for ever. `on_erased` is told users whose keys are to be forgotten."""

    def __init__(
        self, reader: Reader, begin: BeginFollowing, *, on_commit: Callable[[], None], on_erased: Callable[[int], None]
    ) -> None:
        self._reader = reader
        self._begin = begin
        self._on_commit = on_commit
        self._on_erased = on_erased

    async def run(self) -> None:
        """Take what waits, follow, acknowledge. Raises: Halt."""
        while True:
            records = await self._reader.take()
            erased = await insist(lambda records=records: self.deal_with(records), what=FOLLOWER)  # type: ignore[misc]
            self._reader.acknowledge(records)
            for user in erased:
                self._on_erased(user)
            self._on_commit()

    async def deal_with(self, records: Sequence[Received]) -> list[int]:
        """Write what these records cause, in one transaction, and give users that were erased. Raises: Halt, Retry."""
        with shared.BATCH_SECONDS.labels(FOLLOWER).time():
            async with self._begin({record.partition for record in records}) as following:
                heads = {(record.partition, record.offset): changesets.read(record.value).head for record in records}
                # Of all that was taken, because the positions come with the answer.
                known = await following.heads({head.item_id for head in heads.values() if head.item_id is not None})
                new = unread(records, {number: found.next for number, found in following.positions.items()})
                if not new:
                    return []
                read = [HeadRecord(place, offset, heads[place, offset]) for place, offset, *_ in new]
                erased = await following.erased({one.head.user for one in read})
                followed = apply_records(read, known, erased=erased)
                await following.advance(
                    {record.partition: Position(record.offset + 1, checksum(record.value)) for record in new}
                )
                await following.apply(followed)  # takes the positions along
                reach(CrashPoint.FOLLOW_BEFORE_COMMIT)
        reach(CrashPoint.FOLLOW_AFTER_COMMIT)
        shared.BATCHES.labels(FOLLOWER).inc()
        shared.RECORDS.labels(FOLLOWER).inc(len(new))
        for verdict, count in followed.verdicts.items():
            shared.GATE.labels(FOLLOWER, verdict.value).inc(count)
        return followed.erased
