"""Agent mark_due: make Items due from the webhooks in the log. Shell.

Marks, repeat keys and position are one transaction, so a webhook counts once however often it is read or delivered.
No record waits while Plaid is slow: the sync after a mark is another agent's work.
"""

from collections.abc import Callable, Sequence

from runtime import logs
from runtime import metrics as shared
from runtime.crash_points import CrashPoint, reach
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Position, Reader, Received, unread
from runtime.retry import retry_until_done
from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.log.records import Webhook
from streams import metrics
from streams.ports import MARKER, BeginMarking
from streams.webhooks import reactions

_log = logs.logger(__name__)


class MarkDue:
    """Agent that reads `webhooks`."""

    def __init__(self, reader: Reader, begin: BeginMarking, *, on_commit: Callable[[], None]) -> None:
        self._reader = reader
        self._begin = begin
        self._on_commit = on_commit

    async def run(self) -> None:
        """Take records, process them and acknowledge, for ever. Raises: Halt."""
        while True:
            records = await self._reader.take()
            await retry_until_done(lambda records=records: self.process(records), action=MARKER)  # type: ignore[misc]
            self._reader.acknowledge(records)
            self._on_commit()

    async def process(self, records: Sequence[Received]) -> None:
        """Mark Items due for a batch of webhooks, in one transaction.

        Steps: decode the webhooks and their repeat keys, store the new keys, drop the records read before, collect
        one mark an Item, write marks, hints and positions. Idempotence: by the positions and the repeat keys.
        Raises: Halt, Retry.
        """
        with shared.BATCH_SECONDS.labels(MARKER).time():
            async with self._begin({record.partition for record in records}) as transaction:
                webhooks = [webhook for record in records if (webhook := _decode(record)) is not None]
                # The keys of all records, because the positions come with the answer; those of records that were
                # read before are stored already.
                new_keys = await transaction.new_keys(list(dict.fromkeys(webhook.key for webhook in webhooks)))
                new = unread(records, {number: position.next for number, position in transaction.positions.items()})
                if not new:
                    return
                offsets = {(record.partition, record.offset) for record in new}
                unread_webhooks = [webhook for webhook in webhooks if (webhook.partition, webhook.offset) in offsets]
                batch = reactions.collect(unread_webhooks, new_keys)
                await transaction.advance(
                    {record.partition: Position(record.offset + 1, checksum(record.value)) for record in new}
                )
                await transaction.mark(batch.marks, batch.hints)  # writes the positions too
                reach(CrashPoint.MARK_BEFORE_COMMIT)
        reach(CrashPoint.MARK_AFTER_COMMIT)
        shared.BATCHES.labels(MARKER).inc()
        shared.RECORDS.labels(MARKER).inc(len(new))
        metrics.REPEATS.inc(len(batch.repeats))
        for reaction, count in batch.reactions.items():
            metrics.WEBHOOKS.labels(reaction).inc(count)


def _decode(record: Received) -> reactions.LoggedWebhook | None:
    """Decode a webhook; a record that is none, which no ingest writes, is skipped and stays in the log."""
    try:
        webhook = codec.decode(Webhook, record.value)
    except Quarantine as error:
        metrics.WEBHOOKS.labels("unreadable").inc()
        _log.error("no webhook", partition=record.partition, offset=record.offset, reason=str(error))
        return None
    return reactions.identify(webhook, partition=record.partition, offset=record.offset)
