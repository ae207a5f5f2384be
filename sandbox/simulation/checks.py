"""What must be true of a run that has come to rest."""

import random
from collections.abc import Iterator

from projections.publish.kafka_records import build_records, changesets_with_events
from runtime.kafka.reader import Received
from runtime.scheduler.leases import FOLLOWER
from sandbox.simulation.engine.installation import PARTITIONS, Installation
from sandbox.simulation.memory.projection_tables import MemoryProjections
from sandbox.simulation.memory.tables import Tables
from sandbox.simulation.operator_actions import is_open
from sandbox.simulation.scenario import Story
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.truth import truth_of
from schemas.encoding import codec
from schemas.log import changesets, digest, gate
from schemas.log.digest import AccountState, TransactionState
from schemas.log.records import Account, Transaction
from schemas.topics import HEADER_POSITION
from streams.ports import MARKER

State = tuple[list[TransactionState], list[AccountState]]
LINES_MAX = 25
"""Lines of the trace shown of an Item that is wrong."""


def unfinished(installation: Installation, tables: Tables) -> list[str]:
    """What is still under way; empty where all is quiet."""
    broker, projection = installation.broker, installation.projection
    found = []
    if not installation.plaid_world.deliveries.quiet or installation.plaid_world.tasks.next_due_at() is not None:
        found.append("Plaid has something to say")
    if broker.pending:
        found.append("records are still to land")
    for partition in range(PARTITIONS):
        end = broker.topic("webhooks").end(partition)
        if tables.position(MARKER, partition).next < end:
            found.append(f"webhooks of partition {partition} are not read")
        end = broker.topic("changesets").end(partition)
        if tables.position(FOLLOWER, partition).next < end or projection.positions.get(partition, 0) < end:
            found.append(f"changesets of partition {partition} are not read")
        if projection.checkpoints.get(partition, 0) < projection.positions.get(partition, 0):
            found.append(f"changesets of partition {partition} are not published")
    found += [
        f"{row.item_id} is due at {row.due_at}"
        for row in tables.rows.values()
        if row.due_at is not None and not (tables.is_quarantined(row.item_id) and not row.unlink_requested)
    ]
    found += [
        f"{item_id} is quarantined"
        for item_id, quarantines in projection.memory.quarantined.items()
        if is_open(quarantines)
    ]
    items = projection.memory.items.values()
    found += [f"removals of {item.item_id} wait" for item in items if item.missing_changeset_id is not None]
    found += [f"{row.item_id} is leased" for row in tables.rows.values() if row.lease_token is not None]
    return found


def problems(installation: Installation, tables: Tables, story: Story, rng: random.Random) -> list[str]:
    """All that is wrong with a quiet run, in words."""
    replayed = _replayed(installation, rng)
    return [
        *installation.failures,
        *tables.forgotten,
        *_against_truth(installation, tables, story),
        *_against_replay(installation, replayed),
        *_chained(installation),
        *_published(installation, replayed),
        *_silent(tables, story),
        *_counted(installation),
    ]


def _against_truth(installation: Installation, tables: Tables, story: Story) -> Iterator[str]:
    """The state digest, Item by Item: what we hold is what the bank has."""
    for item in story.items:
        row = tables.rows.get(item.item_id)
        if item.item_id in story.unlinked or row is None or row.stopped is not None:
            continue
        ours, theirs = _state(installation.projection.memory, item), _truth(item)
        if digest.state_digest(*ours) != digest.state_digest(*theirs):
            missing, extra = sorted(set(theirs[0]) - set(ours[0])), sorted(set(ours[0]) - set(theirs[0]))
            accounts = sorted(set(theirs[1]) ^ set(ours[1]), key=str)
            yield f"state of {item.item_id}: missing {missing[:3]}, too many {extra[:3]}, accounts {accounts[:4]}"


def _state(memory: MemoryProjections, item: Item) -> State:
    transactions: list[TransactionState] = []
    for row in memory.rows.values():
        if row.item_id != item.item_id or row.removed_at is not None:
            continue
        said: Transaction = codec.decoder(row.schema)(row.payload, 0)[0]
        transactions.append(
            (
                item.item_id,
                said.transaction_id,
                said.account_id,
                said.amount,
                said.currency,
                said.date,
                said.pending,
                said.name,
                said.merchant_name,
                said.category_detailed,
            )
        )
    accounts: list[AccountState] = []
    for (item_id, account_id), known in memory.accounts.items():
        if item_id == item.item_id and known.cached_payload is not None and item.accounts[account_id].has_rows:
            told: Account = codec.decoder(known.cached_payload_schema)(known.cached_payload, 0)[0]
            accounts.append((item_id, account_id, told.current, told.available, told.limit, told.currency))
    return transactions, accounts


def _truth(item: Item) -> State:
    truth = truth_of(item, version="v2")
    transactions: list[TransactionState] = [
        (
            item.item_id,
            row["transaction_id"],
            row["account_id"],
            row["amount"],
            row["iso_currency_code"] or row["unofficial_currency_code"],
            row["date"],
            row["pending"],
            row["name"],
            row["merchant_name"],
            row["category_detailed"],
        )
        for row in truth["transactions"]
    ]
    accounts: list[AccountState] = [
        (
            item.item_id,
            row["account_id"],
            row["current"],
            row["available"],
            row["limit"],
            row["iso_currency_code"] or row["unofficial_currency_code"],
        )
        for row in truth["accounts"]
        if item.accounts[row["account_id"]].has_rows
    ]
    return transactions, accounts


def _replayed(installation: Installation, rng: random.Random) -> MemoryProjections:
    """The whole log folded once more, cut into other batches and with the partitions mixed otherwise."""
    memory = MemoryProjections(installation.owners, quarantined=installation.projection.memory.quarantined)
    left = [list(records) for records in installation.broker.topic("changesets").records]
    while any(left):
        batch: list[Received] = []
        for _ in range(rng.randint(1, 2)):
            waiting = [records for records in left if records]
            if waiting:
                chosen = rng.choice(waiting)
                size = rng.randint(1, 20)
                batch += chosen[:size]
                del chosen[:size]
        memory.project(batch)
    return memory


def _against_replay(installation: Installation, replayed: MemoryProjections) -> Iterator[str]:
    """The full digest: live is any replay of the same log."""
    live, again = installation.projection.memory.full(), replayed.full()
    if digest.full_digest(**live) == digest.full_digest(**again):
        return
    for name, rows in live.items():
        if rows != again[name]:
            first = next((pair for pair in zip(rows, again[name], strict=False) if pair[0] != pair[1]), None)
            yield f"replay of {name} differs: {len(rows)} rows and {len(again[name])}, first {first}"


def _chained(installation: Installation) -> Iterator[str]:
    """What counted of each Item is one chain, and nothing was skipped that a worker under its lease appended in peace.

    A record is skipped rightly where it, or the one that stands before it, came without an answer or without a lease.
    """
    counted = {(one.context.partition, one.context.offset) for one in installation.projection.memory.folded}
    heads: dict[str, tuple[bytes, bool]] = {}
    for log in installation.broker.topic("changesets").records:
        for record in log:
            head, place = changesets.read(record.value).head, (record.partition, record.offset)
            if head.kind != gate.CHAINED or head.item_id is None:
                continue
            last, was_sound = heads.get(head.item_id, (None, True))
            if place in counted:
                if head.parent != last:
                    yield f"{head.item_id}: record {place} counted and does not follow the one before it"
                heads[head.item_id] = (head.id, place in installation.monitor.sound)
            elif place in installation.monitor.sound and was_sound:
                yield f"{head.item_id}: record {place}, of type {head.type}, was skipped without a fault"


def _published(installation: Installation, replayed: MemoryProjections) -> Iterator[str]:
    """Under the reader's rule each net event comes once and in order, in each topic."""
    ordered = sorted(replayed.folded, key=lambda one: (one.context.partition, one.context.offset))
    wanted = build_records(changesets_with_events(ordered))
    for lane, outgoing in wanted.items():
        seen = _read(installation.broker.topic(lane.topic.name).records[lane.partition])
        expected = [(_position(dict(record.headers)), record.value) for record in outgoing]
        if seen != expected:
            yield f"published in {lane.topic.name}/{lane.partition}: {len(seen)} events, {len(expected)} are true"


def _read(found: list[Received]) -> list[tuple[tuple[int, int], bytes | None]]:
    last = (-1, -1)
    seen: list[tuple[tuple[int, int], bytes | None]] = []
    for record in found:
        position = _position(record.headers)
        if position > last:
            last = position
            seen.append((position, record.value))
    return seen


def _position(headers: dict[str, bytes]) -> tuple[int, int]:
    offset, index = headers[HEADER_POSITION].split(b".")
    return (int(offset), int(index))


def _silent(tables: Tables, story: Story) -> Iterator[str]:
    """Each Item was synced after its last change, or is stopped with a reason."""
    for item in story.items:
        item_id, row = item.item_id, tables.rows.get(item.item_id)
        if row is None:
            yield f"{item_id} has no row"
        elif item_id in story.unlinked:
            if row.stopped != "unlinked" or tables.credentials[item_id].token is not None or not item.removed:
                yield f"{item_id} was to be unlinked and is {row.stopped}, removed at Plaid: {item.removed}"
        elif row.stopped is not None or tables.is_quarantined(item_id):
            if item_id not in story.explained:
                yield f"{item_id} is {row.stopped} for no reason: {row.last_error}"
        elif row.generation > row.done_generation:
            yield f"{item_id} is dirty: generation {row.generation}, done {row.done_generation}"
        elif row.last_synced_at is None or (item.last_successful_update or row.created_at) > row.last_synced_at:
            yield f"{item_id} changed at {item.last_successful_update} and was synced at {row.last_synced_at}"


def _counted(installation: Installation) -> Iterator[str]:
    """Plaid's own counters refuse nothing, but for what a process that stood still sent too late."""
    refused = installation.counting.refused
    if refused:
        yield f"{len(refused)} requests were over Plaid's limits, first {refused[0]}"
