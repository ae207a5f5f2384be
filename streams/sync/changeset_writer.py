"""Append the records of one sync run to the end of an Item's chain. Shell.

Several records of one sync run follow each other without waiting for follow_heads.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from runtime.crash_points import CrashPoint, reach
from runtime.scheduler.types import Claimed
from schemas.errors import Quarantine
from schemas.log import gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account
from streams import metrics
from streams.ports import SyncContext
from streams.sync import changeset
from streams.sync.changeset import Draft, RecordParameters, Subject

CHANGES_ON_LOOP_MAX = 500
"""Changes encoded on the event loop, about 5 ms; more are encoded in a thread, so that webhooks do not wait."""
REQUEST_IDS_MAX = 20
"""Plaid request ids in a head: those of the last pages, about 16 bytes each."""

Result = TypeVar("Result")


class Unrecordable(Quarantine):
    """No record can be made of this update, however often it is read: one event is larger than a record may be."""


class ChangesetWriter:
    """Writer of one Item's chain. `offset`: of the last record appended; `counts`: events appended, by type."""

    def __init__(self, context: SyncContext, claimed: Claimed, keys: UserKeys) -> None:
        self._context = context
        self._claimed = claimed
        self._keys = keys
        self.tip = changeset.tip_of(claimed.head)
        self.hints_until = claimed.hints[-1].offset if claimed.hints else None
        self.request_ids: list[str] = []
        self.subject = Subject(
            claimed.item_id,
            claimed.user,
            claimed.cause,
            claimed.institution_id,
            claimed.institution_name,
            fetch_started_at=context.clock(),
        )
        self.offset: int | None = None
        self.counts: Counter[str] = Counter()

    async def append_if_news(self, draft: Draft) -> bool:
        """Append a draft that changes anything, and return whether it did. Raises: as `append`."""
        if not changeset.is_news(self.tip, draft, now=self._context.clock()):
            return False
        await self.append(draft)
        return True

    async def append(self, draft: Draft) -> None:
        """Append a changeset: its chunks where it has any, one after the other, then the record that names them.

        Chunks that no record names have no effect, so a crash between two of them costs only their room.
        Raises: Unrecordable, Retry; InDoubt, where no answer came.
        """
        context = self._context
        cause = msgspec.structs.replace(self._claimed.cause, request_ids=self.request_ids[-REQUEST_IDS_MAX:])
        # A root is appended before /item/get answers, so no hint is dealt with by it.
        hints_until = None if draft.type == gate.LINK else self.hints_until
        subject = self.subject._replace(cause=cause, hints_until=hints_until)
        parameters = RecordParameters(
            subject, self.tip, self._keys, context.clock(), context.nonce, bytes_max=context.record_bytes_max
        )
        try:
            changes = await off_loop(len(draft.events), lambda: changeset.compose_in_chunks(draft, parameters))
        except Quarantine as error:
            raise Unrecordable(str(error)) from error
        record, log, partition = changes.record, self._context.log, self._claimed.partition
        for chunk in changes.chunks:
            await log.append(partition, record.key, chunk.value)
            metrics.CHUNKS.inc()
            reach(CrashPoint.FETCH_AFTER_PART)
        reach(CrashPoint.FETCH_BEFORE_APPEND)
        self.offset = await log.append(partition, record.key, record.value)
        reach(CrashPoint.FETCH_AFTER_APPEND)
        self.tip = record.tip
        self._count(record.counts)

    def fingerprints(self, accounts: Mapping[str, Account]) -> dict[str, bytes]:
        """Return the fingerprints of accounts by their pseudonyms."""
        return {self.pseudonym(name): changeset.fingerprint(account, self._keys) for name, account in accounts.items()}

    def pseudonym(self, account_id: str) -> str:
        """Return the name of an account in clear heads."""
        return changeset.pseudonym(account_id, self._keys)

    def _count(self, counts: Mapping[str, int]) -> None:
        self.counts.update(counts)
        for event_type, count in counts.items():
            metrics.CHANGES.labels(event_type).inc(count)
        received_at = self._claimed.cause.webhook_received_at
        if received_at is not None:
            late_s = self._context.clock().timestamp() - received_at / 1e6
            metrics.WEBHOOK_TO_CHANGESET.observe(max(late_s, 0.0))


async def off_loop(changes: int, work: Callable[[], Result]) -> Result:
    """Run work whose duration grows with the changes: on the event loop where they are few, otherwise in a thread."""
    if changes <= CHANGES_ON_LOOP_MAX:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)
