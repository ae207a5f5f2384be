"""Agent follow_heads: apply the gate to `changesets` and write the heads of Items. Shell.

Heads and position are one transaction. Only this agent reads heads from the log, makes an Item due again after a
skipped record, and carries out erasures.
"""

from collections.abc import Callable, Sequence

from runtime import metrics as shared
from runtime.crash_points import CrashPoint, reach
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Position, Reader, Received, unread
from runtime.retry import retry_until_done
from runtime.scheduler.leases import FOLLOWER
from schemas.log import changesets
from streams.heads import HeadRecord, apply_records
from streams.ports import BeginFollowing


class FollowHeads:
    """Agent that reads `changesets`. `on_erased` receives each user whose keys are to be forgotten."""

    def __init__(
        self, reader: Reader, begin: BeginFollowing, *, on_commit: Callable[[], None], on_erased: Callable[[int], None]
    ) -> None:
        self._reader = reader
        self._begin = begin
        self._on_commit = on_commit
        self._on_erased = on_erased

    async def run(self) -> None:
        """Take records, process them and acknowledge, for ever. Raises: Halt."""
        while True:
            records = await self._reader.take()
            erased = await retry_until_done(lambda records=records: self.process(records), action=FOLLOWER)  # type: ignore[misc]
            self._reader.acknowledge(records)
            for user in erased:
                self._on_erased(user)
            self._on_commit()

    async def process(self, records: Sequence[Received]) -> list[int]:
        """Write the effects of a batch in one transaction, and return the users that were erased.

        Steps: read the records' clear heads, load the known heads and positions, drop the records read before, apply
        the gate, write heads, marks and positions. Raises: Halt, Retry.
        """
        with shared.BATCH_SECONDS.labels(FOLLOWER).time():
            async with self._begin({record.partition for record in records}) as transaction:
                heads = {(record.partition, record.offset): changesets.read(record.value).head for record in records}
                # The heads of all records, because the positions come with the answer.
                known = await transaction.heads({head.item_id for head in heads.values() if head.item_id is not None})
                new = unread(records, {number: position.next for number, position in transaction.positions.items()})
                if not new:
                    return []
                new_heads = [HeadRecord(partition, offset, heads[partition, offset]) for partition, offset, *_ in new]
                erased = await transaction.erased({record.head.user for record in new_heads})
                changes = apply_records(new_heads, known, erased=erased)
                await transaction.advance(
                    {record.partition: Position(record.offset + 1, checksum(record.value)) for record in new}
                )
                await transaction.apply(changes)  # writes the positions too
                reach(CrashPoint.FOLLOW_BEFORE_COMMIT)
        reach(CrashPoint.FOLLOW_AFTER_COMMIT)
        shared.BATCHES.labels(FOLLOWER).inc()
        shared.RECORDS.labels(FOLLOWER).inc(len(new))
        for verdict, count in changes.verdicts.items():
            shared.GATE.labels(FOLLOWER, verdict.value).inc(count)
        return changes.erased
