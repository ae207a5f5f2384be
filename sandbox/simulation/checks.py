"""Check a run that has come to rest."""

import random
from collections.abc import Iterator
from operator import attrgetter, itemgetter

from projections.publish.kafka_records import build_records, changesets_with_events
from runtime.kafka.reader import Received
from runtime.scheduler.leases import FOLLOWER
from sandbox.simulation.engine.installation import PARTITIONS, Installation
from sandbox.simulation.memory.projection_tables import MemoryProjections
from sandbox.simulation.memory.tables import Tables
from sandbox.simulation.scenario import Scenario
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.truth import truth_of
from schemas.encoding import codec
from schemas.log import changesets, digest, gate
from schemas.log.digest import AccountState, TransactionState
from schemas.topics import HEADER_POSITION
from streams.ports import MARKER

State = tuple[list[TransactionState], list[AccountState]]
LINES_MAX = 25
"""Lines of the trace printed for a wrong Item."""


def unfinished(installation: Installation, tables: Tables) -> list[str]:
    """Return all work in progress; empty where the run is at rest."""
    broker, projection, plaid = installation.broker, installation.projection, installation.simulated_plaid
    reasons = []
    if not plaid.deliveries.quiet or plaid.tasks.next_due_at() is not None:
        reasons.append("Plaid has something to say")
    if broker.pending:
        reasons.append("records are still to land")
    for partition in range(PARTITIONS):
        if tables.position(MARKER, partition).next < broker.topic("webhooks").end(partition):
            reasons.append(f"webhooks of partition {partition} are not read")
        end, position = broker.topic("changesets").end(partition), projection.positions.get(partition, 0)
        if tables.position(FOLLOWER, partition).next < end or position < end:
            reasons.append(f"changesets of partition {partition} are not read")
        if projection.checkpoints.get(partition, 0) < position:
            reasons.append(f"changesets of partition {partition} are not published")
    for row in tables.rows.values():
        if row.due_at is not None and not (tables.is_quarantined(row.item_id) and not row.unlink_requested):
            reasons.append(f"{row.item_id} is due at {row.due_at}")
        if row.lease_token is not None:
            reasons.append(f"{row.item_id} is leased")
    for item_id, spans in projection.memory.quarantined.items():
        if any(span.redrive is None for span in spans):
            reasons.append(f"{item_id} is quarantined")
    items = projection.memory.items.values()
    reasons += [f"removals of {item.item_id} wait" for item in items if item.missing_changeset_id is not None]
    return reasons


def problems(installation: Installation, tables: Tables, scenario: Scenario, rng: random.Random) -> list[str]:
    """Return all violations of a run at rest."""
    replayed = _replay(installation, rng)
    refused = installation.rate_limiter.refused
    return [
        *installation.failures,
        *tables.lost_marks,
        *_wrong_states(installation, tables, scenario),
        *_replay_differences(installation, replayed),
        *_chain_errors(installation),
        *_publish_errors(installation, replayed),
        *_missed_syncs(tables, scenario),
        *([f"{len(refused)} requests were over Plaid's limits, first {refused[0]}"] if refused else []),
    ]


def _wrong_states(installation: Installation, tables: Tables, scenario: Scenario) -> Iterator[str]:
    """Compare the state digest of each Item with the bank's ground truth."""
    for item in scenario.items:
        row = tables.rows.get(item.item_id)
        if item.item_id in scenario.unlinked or row is None or row.stopped is not None:
            continue
        ours, theirs = _state(installation.projection.memory, item), _truth(item)
        if digest.state_digest(*ours) != digest.state_digest(*theirs):
            missing, extra = sorted(set(theirs[0]) - set(ours[0])), sorted(set(ours[0]) - set(theirs[0]))
            accounts = sorted(set(theirs[1]) ^ set(ours[1]), key=str)
            yield f"state of {item.item_id}: missing {missing[:3]}, too many {extra[:3]}, accounts {accounts[:4]}"


_TRANSACTION = "transaction_id", "account_id", "amount", "currency", "date", "pending", "name", "merchant_name"
_TRANSACTION_FIELDS = attrgetter(*_TRANSACTION, "category_detailed")
_TRANSACTION_KEYS = itemgetter(*_TRANSACTION, "category_detailed")
_ACCOUNT = "current", "available", "limit", "currency"
_ACCOUNT_FIELDS, _ACCOUNT_KEYS = attrgetter(*_ACCOUNT), itemgetter("account_id", *_ACCOUNT)


def _state(memory: MemoryProjections, item: Item) -> State:
    transactions: list[TransactionState] = []
    for row in memory.rows.values():
        if row.item_id == item.item_id and row.removed_at is None:
            payload = codec.decoder(row.schema)(row.payload, 0)[0]
            transactions.append((item.item_id, *_TRANSACTION_FIELDS(payload)))
    accounts: list[AccountState] = []
    for (item_id, account_id), account in memory.accounts.items():
        if item_id == item.item_id and account.cached_payload is not None and item.accounts[account_id].has_rows:
            payload = codec.decoder(account.cached_payload_schema)(account.cached_payload, 0)[0]
            accounts.append((item_id, account_id, *_ACCOUNT_FIELDS(payload)))
    return transactions, accounts


def _truth(item: Item) -> State:
    truth = truth_of(item, version="v2")
    for row in (*truth["transactions"], *truth["accounts"]):
        row["currency"] = row["iso_currency_code"] or row["unofficial_currency_code"]
    transactions: list[TransactionState] = [(item.item_id, *_TRANSACTION_KEYS(row)) for row in truth["transactions"]]
    accounts: list[AccountState] = [
        (item.item_id, *_ACCOUNT_KEYS(row)) for row in truth["accounts"] if item.accounts[row["account_id"]].has_rows
    ]
    return transactions, accounts


def _replay(installation: Installation, rng: random.Random) -> MemoryProjections:
    """Fold the whole log once more, with other batches and another order of the partitions."""
    memory = MemoryProjections(installation.owners, quarantined=installation.projection.memory.quarantined)
    logs = [list(records) for records in installation.broker.topic("changesets").records]
    while any(logs):
        batch: list[Received] = []
        for _ in range(rng.randint(1, 2)):
            remaining = [records for records in logs if records]
            if remaining:
                records = rng.choice(remaining)
                size = rng.randint(1, 20)
                batch += records[:size]
                del records[:size]
        memory.project(batch)
    return memory


def _replay_differences(installation: Installation, replayed: MemoryProjections) -> Iterator[str]:
    """Compare the full digest of the live tables with that of a replay of the log."""
    live, again = installation.projection.memory.full(), replayed.full()
    if digest.full_digest(**live) == digest.full_digest(**again):
        return
    for name, rows in live.items():
        if rows != again[name]:
            first = next((pair for pair in zip(rows, again[name], strict=False) if pair[0] != pair[1]), None)
            yield f"replay of {name} differs: {len(rows)} rows and {len(again[name])}, first {first}"


def _chain_errors(installation: Installation) -> Iterator[str]:
    """Check that the counted records of each Item are one chain, and that no sound record was skipped.

    A record may be skipped where it, or the one before it, was appended without an answer or without a lease.
    """
    counted = {(record.context.partition, record.context.offset) for record in installation.projection.memory.folded}
    heads: dict[str, tuple[bytes, bool]] = {}
    for log in installation.broker.topic("changesets").records:
        for record in log:
            head, position = changesets.read(record.value).head, (record.partition, record.offset)
            if head.kind != gate.CHAINED or head.item_id is None:
                continue
            last, was_sound = heads.get(head.item_id, (None, True))
            if position in counted:
                if head.parent != last:
                    yield f"{head.item_id}: record {position} counted and does not follow the one before it"
                heads[head.item_id] = (head.id, position in installation.monitor.sound)
            elif position in installation.monitor.sound and was_sound:
                yield f"{head.item_id}: record {position}, of type {head.type}, was skipped without a fault"


def _publish_errors(installation: Installation, replayed: MemoryProjections) -> Iterator[str]:
    """Check that each topic has each event once and in order, after deduplication by event position."""
    ordered = sorted(replayed.folded, key=lambda record: (record.context.partition, record.context.offset))
    for lane, outgoing in build_records(changesets_with_events(ordered)).items():
        expected = [(_event_position(dict(record.headers)), record.value) for record in outgoing]
        events: list[tuple[tuple[int, int], bytes | None]] = []
        for record in installation.broker.topic(lane.topic.name).records[lane.partition]:
            position = _event_position(record.headers)
            if not events or position > events[-1][0]:
                events.append((position, record.value))
        if events != expected:
            yield f"published in {lane.topic.name}/{lane.partition}: {len(events)} events, {len(expected)} are true"


def _event_position(headers: dict[str, bytes]) -> tuple[int, int]:
    offset, index = headers[HEADER_POSITION].split(b".")
    return (int(offset), int(index))


def _missed_syncs(tables: Tables, scenario: Scenario) -> Iterator[str]:
    """Check that each Item was synced after its last change, or is stopped for a known reason."""
    for item in scenario.items:
        item_id, row = item.item_id, tables.rows.get(item.item_id)
        if row is None:
            yield f"{item_id} has no row"
        elif item_id in scenario.unlinked:
            if row.stopped != "unlinked" or tables.credentials[item_id].token is not None or not item.removed:
                yield f"{item_id} was to be unlinked and is {row.stopped}, removed at Plaid: {item.removed}"
        elif row.stopped is not None or tables.is_quarantined(item_id):
            if item_id not in scenario.explained:
                yield f"{item_id} is {row.stopped} for no reason: {row.last_error}"
        elif row.generation > row.done_generation:
            yield f"{item_id} is dirty: generation {row.generation}, done {row.done_generation}"
        elif row.last_synced_at is None or (item.last_successful_update or row.created_at) > row.last_synced_at:
            yield f"{item_id} changed at {item.last_successful_update} and was synced at {row.last_synced_at}"
