"""Keep the scheduler's tables in memory, with the statements of scheduler.enqueue and scheduler.leases.

Each method is one statement or one transaction, applied as a whole at one moment.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b

from runtime.kafka.reader import Position
from runtime.scheduler.enqueue import STALE_RUN_S
from runtime.scheduler.leases import FOLLOWER, HINTS_MAX, NO_OFFSET, QUARANTINED_BY, REMARKED_WAIT_S_MAX
from runtime.scheduler.types import Claimed, Hint, KnownHint, Lane, Mark, Released
from sandbox.simulation.memory.ready_queue import ReadyQueue
from sandbox.simulation.memory.rows import Credential, FinishedRun, ItemQuarantine, Row
from schemas.errors import Quarantine
from schemas.log.changesets import UserKeys
from schemas.log.records import Cause
from streams.heads import HeadChanges, ItemHead

Clock = Callable[[], datetime]


@dataclass(slots=True)
class Tables:
    """The tables of the streams stage.

    `lost_marks`: failures of releases that did not leave an Item due although it was marked during its sync run.
    """

    clock: Clock
    rng: random.Random
    rows: dict[str, Row] = field(default_factory=dict)
    credentials: dict[str, Credential] = field(default_factory=dict)
    heads: dict[str, ItemHead] = field(default_factory=dict)
    hints: dict[str, dict[int, Hint]] = field(default_factory=lambda: defaultdict(dict))
    repeats: dict[bytes, datetime] = field(default_factory=dict)
    positions: dict[tuple[str, int], Position] = field(default_factory=dict)
    quarantines: dict[tuple[str, int], ItemQuarantine] = field(default_factory=dict)
    runs: list[FinishedRun] = field(default_factory=list)
    lost_marks: list[str] = field(default_factory=list)
    keys: dict[int, UserKeys | None] = field(default_factory=dict)
    buckets: dict[tuple[str, str], datetime] = field(default_factory=dict)
    unlinking: set[str] = field(default_factory=set)
    is_failing: Callable[[str | None], bool] = lambda institution_id: False
    queue: ReadyQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = ReadyQueue(self.rows)

    def position(self, reader: str, partition: int) -> Position:
        """Return a reader's position."""
        return self.positions.get((reader, partition), Position(0))

    # Marks.

    def register(self, item_id: str, credential: Credential, *, partition: int, keys: UserKeys) -> int:
        """Store an Item's token and mark it due. Raises: Quarantine, where it is another user's or unlinked."""
        before = self.credentials.get(item_id)
        if before is not None and (before.user != credential.user or before.unlinked):
            raise Quarantine(f"item {item_id} is another user's, or was unlinked")
        self.credentials[item_id] = credential
        self.keys.setdefault(credential.user, keys)
        row = self.rows.get(item_id)
        if row is None:
            now = self.clock()
            tenant, user, institution_id = credential.tenant, credential.user, credential.institution_id
            self.rows[item_id] = Row(item_id, tenant, user, partition, institution_id, now, now, Cause("link"))
            self.queue.put(self.rows[item_id])
            return 1
        self._mark(row, Lane.BACKFILL, Cause("link"))
        row.accounts_wanted = True
        return row.generation

    def mark_item(self, item_id: str, lane: Lane, cause: Cause, *, unlink: bool = False, refresh: bool = False) -> int:
        """Mark an Item due at a user's request; return its generation, 0 where there is none."""
        row = self.rows.get(item_id)
        if row is None or row.stopped == "unlinked":
            return 0
        self._mark(row, lane, cause)
        row.unlink_requested = row.unlink_requested or unlink
        row.refresh_wanted = row.refresh_wanted or refresh
        if unlink:
            row.not_before = None
            self.queue.put(row)
            self.unlinking.add(item_id)
        return row.generation

    def mark_webhooks(self, marks: Sequence[Mark]) -> int:
        """Mark Items due, one mark each; return their number."""
        return sum(self._mark_webhook(mark) for mark in marks)

    def _mark_webhook(self, mark: Mark) -> bool:
        row = self.rows.get(mark.item_id)
        if row is None or row.stopped == "unlinked":
            return False
        head = self.heads.get(mark.item_id)
        if mark.unread_only and head is not None and head.head.cursor is not None:
            return False
        late = self.clock() - timedelta(seconds=STALE_RUN_S)
        if mark.stale and row.last_webhook_at is not None and row.last_webhook_at > late:
            return False
        self._mark(row, Lane.WEBHOOK, mark.cause)
        row.lane = Lane.WEBHOOK
        self.queue.put(row)
        row.accounts_wanted = row.accounts_wanted or mark.accounts
        row.last_webhook_at = max(row.last_webhook_at or mark.received_at, mark.received_at)
        return True

    def _mark(self, row: Row, lane: int, cause: Cause) -> None:
        now = self.clock()
        row.marks += 1
        row.generation += 1
        # A row that is not due keeps the lane of its last pass, so only a due one's lane counts.
        row.lane = lane if row.due_at is None else min(row.lane, lane)
        row.due_at = now if row.due_at is None else min(row.due_at, now)
        row.cause = cause
        self.queue.put(row)

    def add_hints(self, hints: Sequence[Hint]) -> None:
        """Store hints for the next sync run of their Items."""
        for hint in hints:
            row = self.rows.get(hint.item_id)
            if row is not None and row.stopped != "unlinked":
                self.hints[hint.item_id].setdefault(hint.offset, hint)

    def mark_again(self, items: Collection[str], redriven: Collection[str] = ()) -> None:
        """Mark Items due after a skipped record or a redrive."""
        for item_id in sorted(items):
            row = self.rows.get(item_id)
            if row is not None and row.stopped != "unlinked":
                row.not_before = None if item_id in redriven else row.not_before
                self._mark(row, row.lane, Cause("retry"))
                row.stopped = None if row.stopped == "quarantined" else row.stopped

    def mark_scheduled(self, *, interval_s: float, recheck_s: float, spread_s: float) -> int:
        """Mark Items due that have not synced for the interval, spread by their ids."""
        now = self.clock()
        marked = 0
        for row in self.rows.values():
            if row.due_at is not None or row.lease_token is not None:
                continue
            synced_at, tried_at = row.last_synced_at or row.created_at, row.last_attempt_at or row.created_at
            is_idle = row.stopped is None and synced_at < now - timedelta(seconds=interval_s)
            needs_recheck = row.stopped == "login_required" and tried_at < now - timedelta(seconds=recheck_s)
            if not (is_idle or needs_recheck):
                continue
            marked += 1
            row.generation += 1
            row.cause, row.lane = Cause("schedule"), Lane.SCHEDULE
            share = int.from_bytes(blake2b(row.item_id.encode(), digest_size=2).digest(), "big") / 65_536
            row.due_at = now + timedelta(seconds=spread_s * share)
            self.queue.put(row)
        return marked

    # Leases.

    def is_claimable(self, row: Row, now: datetime) -> bool:
        """Return whether a ready Item is not leased and the follower has read its last append."""
        if row.lease_until is not None and row.lease_until > now:
            return False
        return row.wait_offset is None or row.wait_offset < self.position(FOLLOWER, row.partition).next

    def is_quarantined(self, item_id: str) -> bool:
        """Return whether a quarantine of the Item is not redriven."""
        return any(name == item_id and row.redrive_offset is None for (name, _), row in self.quarantines.items())

    def lease(self, row: Row, *, lease_s: float, holder: str) -> Claimed:
        """Lease one Item."""
        now = self.clock()
        expired = row.lease_token is not None
        row.lease_token = self.rng.randbytes(16)
        row.lease_until, row.lease_holder = now + timedelta(seconds=lease_s), holder
        row.last_attempt_at, row.marks_at_claim = now, row.marks
        credential, head = self.credentials[row.item_id], self.heads.get(row.item_id)
        hints = [hint for _, hint in sorted(self.hints.get(row.item_id, {}).items())[:HINTS_MAX]]
        return Claimed(
            item_id=row.item_id,
            tenant=row.tenant,
            user=row.user,
            partition=row.partition,
            institution_id=row.institution_id,
            institution_name=credential.institution_name,
            sealed_token=None if credential.token is None else credential.token.encode(),
            lease=row.lease_token,
            expired=expired,
            generation=row.generation,
            lane=row.lane,
            cause=row.cause,
            unlink_requested=row.unlink_requested,
            accounts_wanted=row.accounts_wanted,
            accounts_at=row.accounts_at,
            attempts=row.attempts,
            not_ready=row.not_ready,
            head=None if head is None else head.head,
            hints=tuple(KnownHint(hint.offset, hint.code, hint.fields) for hint in hints),
            refresh_wanted=row.refresh_wanted,
            history_incomplete=row.history_incomplete,
            bank_failing=self.is_failing(row.institution_id),
            last_code=(row.last_error or {}).get("code"),
        )

    def leased_row(self, claimed: Claimed) -> Row | None:
        """Return the row of a live lease."""
        row = self.rows.get(claimed.item_id)
        if row is None or row.lease_token != claimed.lease or row.lease_until is None:
            return None
        return row if row.lease_until > self.clock() else None

    def renew(self, claimed: Claimed, *, lease_s: float) -> bool:
        """Renew a lease; return False where it was lost."""
        row = self.leased_row(claimed)
        if row is None:
            return False
        row.lease_until = self.clock() + timedelta(seconds=lease_s)
        return True

    def release(self, claimed: Claimed, result: Released) -> bool:
        """Release an Item; return False where the lease was lost: then only the run is stored."""
        row, now = self.leased_row(claimed), self.clock()
        if row is not None:
            self._release(row, claimed, result, now)
            latest = now + timedelta(seconds=REMARKED_WAIT_S_MAX)
            if row.marks > row.marks_at_claim and (row.due_at is None or row.due_at > latest):
                self.lost_marks.append(f"{row.item_id} was marked during its pass and is due at {row.due_at}")
        self.runs.append(FinishedRun(now, result.outcome, result.error))
        return row is not None

    def _release(self, row: Row, claimed: Claimed, result: Released, now: datetime) -> None:
        is_marked = row.generation > claimed.generation
        row.lease_token = row.lease_until = None
        if result.done:
            row.done_generation = max(row.done_generation, claimed.generation)
        due_in_s = result.due_in_s
        if is_marked:
            due_in_s = min(due_in_s or 0.0, 0.0 if result.done else REMARKED_WAIT_S_MAX)
        row.due_at = None if due_in_s is None else now + timedelta(seconds=due_in_s)
        # A bound that was set during the sync run, as by an outage of the bank, still applies.
        bounds = [row.not_before] if row.not_before is not None and row.not_before > now else []
        bounds += [now + timedelta(seconds=result.not_before_s)] if result.not_before_s is not None else []
        # An unlink that was requested meanwhile has no bound.
        row.not_before = None if row.unlink_requested and is_marked else max(bounds, default=None)
        self.queue.put(row)
        row.wait_offset = row.wait_offset if result.wait_offset is None else result.wait_offset
        if result.accounts_read:
            row.accounts_at = now
            row.accounts_wanted = row.accounts_wanted and is_marked
        row.last_synced_at = now if result.synced else row.last_synced_at
        row.bank_observed_at = now if result.bank_asked else row.bank_observed_at
        row.bank_updated_at = result.bank_updated_at or row.bank_updated_at
        row.refreshed_at = now if result.refreshed else row.refreshed_at
        row.refresh_wanted = row.refresh_wanted and (is_marked or not (result.refreshed or result.done))
        row.attempts, row.not_ready, row.stopped = result.attempts, result.not_ready, result.stopped
        row.last_error = result.error
        if result.hints_until is not None:
            self._drop_hints(row.item_id, result.hints_until)

    def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Release an Item untouched, to wait for the follower."""
        row = self.leased_row(claimed)
        if row is not None:
            row.lease_token = row.lease_until = None
            row.wait_offset = wait_offset if row.wait_offset is None else max(row.wait_offset, wait_offset)

    def expire(self, claimed: Claimed) -> None:
        """End a lease as its timeout does."""
        row = self.rows.get(claimed.item_id)
        if row is not None and row.lease_token == claimed.lease:
            row.lease_until = self.clock()

    def expire_all(self, *, holder: str) -> int:
        """End the live leases of a dead process; return their number."""
        now, ended = self.clock(), 0
        for row in self.rows.values():
            is_live = row.lease_token is not None and row.lease_until is not None and row.lease_until > now
            if is_live and row.lease_holder == holder:
                row.lease_until = now
                ended += 1
        return ended

    def finish_unlink(self, claimed: Claimed) -> None:
        """Delete the token and the schedule of an Item whose unlink was accepted."""
        credential, row = self.credentials[claimed.item_id], self.rows[claimed.item_id]
        credential.token, credential.unlinked = None, True
        row.stopped, row.due_at, row.lease_token, row.lease_until = "unlinked", None, None, None
        row.done_generation, row.attempts, row.last_error = row.generation, 0, None
        self.hints.pop(claimed.item_id, None)
        self.unlinking.discard(claimed.item_id)

    def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Quarantine an Item until it is redriven, if the lease is live."""
        if self.leased_row(claimed) is None:
            return
        self.quarantines[claimed.item_id, NO_OFFSET] = ItemQuarantine(claimed.partition, reason, QUARANTINED_BY)

    def count_gone(self) -> tuple[int, int]:
        """Count the Items that Plaid reported as gone within the hour, and all Items."""
        hour_ago = self.clock() - timedelta(hours=1)
        live = [row for row in self.rows.values() if row.stopped != "unlinked"]
        gone = sum(row.stopped in ("gone", "refused") and (row.last_attempt_at or hour_ago) > hour_ago for row in live)
        for run in reversed(self.runs):
            if run.at <= hour_ago:
                break
            gone += run.outcome == "unlinked" and (run.error or {}).get("code") == "INVALID_ACCESS_TOKEN"
        return gone, len(live)

    # Heads.

    def apply_heads(self, changes: HeadChanges) -> None:
        """Write heads, erase users, and mark the Items of skipped or redriven records due."""
        for item_id, offset in sorted(changes.redriven.items()):
            for (name, _), item_quarantine in self.quarantines.items():
                is_open = item_quarantine.reader == QUARANTINED_BY and item_quarantine.redrive_offset is None
                if name == item_id and is_open:
                    item_quarantine.redrive_offset = offset
        self.mark_again(changes.again | changes.redriven.keys(), changes.redriven)
        for item_id, incomplete in changes.histories.items():
            if item_id in self.rows:
                self.rows[item_id].history_incomplete = incomplete
        for item_id, head in changes.heads.items():
            if head.hints_until is not None:
                self._drop_hints(item_id, head.hints_until)
            self.heads[item_id] = head
        for user in changes.erased:
            self._erase(user)

    def _erase(self, user: int) -> None:
        self.keys[user] = None
        for item_id in [item_id for item_id, row in self.rows.items() if row.user == user]:
            self.unlinking.discard(item_id)
            for table in (self.rows, self.credentials, self.hints, self.heads):
                table.pop(item_id, None)

    def advance(self, reader: str, positions: Mapping[int, Position]) -> None:
        """Set a reader's positions."""
        for partition, position in positions.items():
            self.positions[reader, partition] = position

    def _drop_hints(self, item_id: str, until: int) -> None:
        hints = self.hints.get(item_id, {})
        for offset in [offset for offset in hints if offset <= until]:
            del hints[offset]
