"""The agent mark_due: webhooks read from the log make Items due. Shell.

Marks, repeats and position are one transaction, so a webhook counts once however often it is read or delivered.
No record is held while Plaid is slow: what follows a mark is another agent's work.
"""

from collections.abc import Callable, Sequence

from runtime import logs
from runtime import metrics as shared
from runtime.crash_points import CrashPoint, reach
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Position, Reader, Received, unread
from runtime.retry import insist
from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.log.records import Webhook
from streams import metrics
from streams.ports import MARKER, Begin
from streams.webhooks import rules

_log = logs.logger(__name__)


class MarkDue:
    """Reads `webhooks` for ever."""

    def __init__(self, reader: Reader, begin: Begin, *, on_commit: Callable[[], None]) -> None:
        self._reader = reader
        self._begin = begin
        self._on_commit = on_commit

    async def run(self) -> None:
        """Take what waits, mark, acknowledge. Raises: Halt."""
        while True:
            records = await self._reader.take()
            await insist(lambda records=records: self.deal_with(records), what=MARKER)  # type: ignore[misc]
            self._reader.acknowledge(records)
            self._on_commit()

    async def deal_with(self, records: Sequence[Received]) -> None:
        """Write what these records cause, in one transaction. Raises: Halt, Retry."""
        with shared.BATCH_SECONDS.labels(MARKER).time():
            async with self._begin({record.partition for record in records}) as marking:
                found = [one for record in records if (one := _found(record)) is not None]
                # Of all that was taken, because the positions come with the answer; those of records that were
                # dealt with before are known already.
                fresh = await marking.new_keys(list(dict.fromkeys(one.key for one in found)))
                new = unread(records, {number: at.next for number, at in marking.positions.items()})
                if not new:
                    return
                places = {(record.partition, record.offset) for record in new}
                batch = rules.gather([one for one in found if (one.partition, one.offset) in places], fresh)
                await marking.advance(
                    {record.partition: Position(record.offset + 1, checksum(record.value)) for record in new}
                )
                await marking.mark(batch.marks, batch.hints)  # takes the positions along
                reach(CrashPoint.MARK_BEFORE_COMMIT)
        reach(CrashPoint.MARK_AFTER_COMMIT)
        shared.BATCHES.labels(MARKER).inc()
        shared.RECORDS.labels(MARKER).inc(len(new))
        metrics.REPEATS.inc(len(batch.repeats))
        for reaction, count in batch.reactions.items():
            metrics.WEBHOOKS.labels(reaction).inc(count)


def _found(record: Received) -> rules.Found | None:
    """A record's webhook. One that is none, which no ingest writes, stays in the log and stops nothing."""
    try:
        webhook = codec.decode(Webhook, record.value)
    except Quarantine as error:
        metrics.WEBHOOKS.labels("unreadable").inc()
        _log.error("no webhook", partition=record.partition, offset=record.offset, reason=str(error))
        return None
    return rules.identified(webhook, partition=record.partition, offset=record.offset)
