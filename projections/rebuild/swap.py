"""Swap: make the version that was filled beside the live one the live one, in one transaction. Shell.

Locks, in this order: the live positions (writers wait; readers go on), the other version's positions, the views of
`reads` (readers wait, for no longer than VIEWS_S). Until the COMMIT nothing has changed, and the end of this process
frees the locks. An attempt is bounded and repeated: it never waits in front of others for long.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from projections.rebuild import versions
from projections.rebuild.versions import NotSwapped, Version
from projections.store import views
from projections.store.tables import FOLD, NEXT, OLD, READS_SCHEMA, SCHEMA
from projections.store.views import Column
from runtime import crash_points, logs
from runtime.crash_points import CrashPoint
from runtime.postgres.errors import AWAY, reason
from runtime.postgres.pool import EPOCH, transaction
from runtime.retry import Backoff
from runtime.settings import Settings
from schemas.errors import Retry, TartanError

ATTEMPT_S = 5.0
"""Longest wait of writers; Postgres ends the transaction of a process that was stopped in it."""
WRITERS_S = 1.0
"""Longest wait for the lock on the live positions: writers that come after it wait as long."""
VIEWS_S = 0.6
"""Longest wait for the locks on the views: readers that come after them wait as long. It is below Postgres'
deadlock_timeout (1 s), so where a reader holds one view and requests another, this transaction is the one that ends."""
DEADLOCK_SHARE = 0.6
"""Of a deadlock_timeout that was set lower."""
POLL_S = 0.02
UNREAD_POLLS = 5
"""Polls for readers of the tables by their own names: readers of the views wait meanwhile."""
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 10.0
PATIENCE_S = 600.0
"""Time in which a swap is tried: a long report that reads the tables may delay it for minutes."""

BETWEEN = "projection_between"
"""Name of a schema within the transaction that exchanges two."""

CatchUp = Callable[[Mapping[int, int]], Awaitable[None]]
"""Loads the other version up to these positions, by partition: the live ones, which cannot change meanwhile."""
Tell = Callable[[str], None]
"""Prints a sentence for people: the reason of a failed attempt."""

_log = logs.logger(__name__)


class Swapped(NamedTuple):
    """Numbers of the live version and of the one that was live before, and how long writers waited."""

    live: int
    old: int
    attempts: int
    waited_s: float


class _NotYet(TartanError):
    """An attempt failed; the next one may succeed."""


class _Plan(NamedTuple):
    live: Version
    other: Version
    differs: bool


async def swap(
    settings: Settings, *, catch_up: CatchUp, differs: bool, tell: Tell, patience_s: float = PATIENCE_S
) -> Swapped:
    """Make the next version the live one. `differs`: its rows or net events are others, so streams restart.

    Raises: NotSwapped, with the obstacle; errors of `catch_up`. The live version then stays live.
    """
    return await _swap(settings, NEXT, catch_up, differs=differs, tell=tell, patience_s=patience_s)


async def swap_back(settings: Settings, *, tell: Tell, patience_s: float = PATIENCE_S) -> Swapped:
    """Make the version that was live before the live one again; both stay fed, so this can be undone by itself.

    Raises: NotSwapped, with the obstacle. The live version then stays live.
    """
    # Without catching up: processes of `tartan projections` feed the old version.
    return await _swap(settings, OLD, None, differs=None, tell=tell, patience_s=patience_s)


async def _swap(
    settings: Settings, schema: str, catch_up: CatchUp | None, *, differs: bool | None, tell: Tell, patience_s: float
) -> Swapped:
    plan = await _plan(settings, schema, differs)
    loop = asyncio.get_running_loop()
    deadline, backoff, attempts = loop.time() + patience_s, Backoff(PAUSE_S_MIN, PAUSE_S_MAX), 0
    while True:
        attempts += 1
        try:
            waited_s = await _attempt(settings, plan, catch_up)
            break
        except (_NotYet, Retry, *AWAY) as error:
            if await _is_done(settings, plan):
                waited_s = ATTEMPT_S
                break
            why = reason(error)
            _log.warning("versions not swapped yet", reason=why, attempts=attempts)
            pause_s = backoff.next_s()
            if loop.time() + pause_s > deadline:
                raise NotSwapped(f"not swapped after {attempts} attempts: {why}") from error
            tell(f"not swapped yet: {why}")
            await asyncio.sleep(pause_s)
    _log.info("versions swapped", live=plan.other.number, old=plan.live.number, attempts=attempts)
    return Swapped(plan.other.number, plan.live.number, attempts, waited_s)


async def _plan(settings: Settings, schema: str, differs: bool | None) -> _Plan:
    """Return the two versions to swap. Raises: NotSwapped, where they cannot be."""
    async with versions.owner(settings) as connection:
        existing = await versions.load_versions(connection)
        live, other, old = existing.get(SCHEMA), existing.get(schema), existing.get(OLD)
        if live is None or other is None:
            missing = SCHEMA if live is None else schema
            raise NotSwapped(f"no version is in the schema {missing}: `tartan rebuild --status` shows which there are")
        if other.fold != FOLD:
            raise NotSwapped(
                f"version {other.number} is of fold {other.fold}, this release's is {FOLD}: its own release swaps it"
            )
        if schema == NEXT and old is not None:
            raise NotSwapped(f"version {old.number} is still kept: `tartan rebuild --drop-old` first")
        if other.not_fed is not None:
            raise NotSwapped(f"version {other.number} is not fed any more: {other.not_fed}")
        if differs is None:
            # Two folds that agreed on the log of that day need not have agreed on what came since.
            was_different = await connection.fetchval(_DIFFERS, max(live.number, other.number))
            differs = bool(was_different) or live.fold != other.fold
        return _Plan(live, other, differs)


async def _is_done(settings: Settings, plan: _Plan) -> bool:
    """Return True where a COMMIT without an answer succeeded."""
    try:
        async with versions.owner(settings) as connection:
            return (await versions.load_versions(connection))[SCHEMA].number == plan.other.number
    except (Retry, *AWAY):
        return False


async def _attempt(settings: Settings, plan: _Plan, catch_up: CatchUp | None) -> float:
    """Swap, or change nothing; return how long writers waited. Raises: _NotYet, with the obstacle; AWAY."""
    other = plan.other.schema
    async with versions.owner(settings) as connection, versions.owner(settings) as observer:
        replacing = await _replacing_views(connection, other)
        views_s = min(VIEWS_S, DEADLOCK_SHARE * await connection.fetchval(_DEADLOCK_S))
        # Within a transaction the new value of this limit would be for the next one.
        await connection.execute(f"SET transaction_timeout = '{ATTEMPT_S + 1} s'")
        async with transaction(connection, f"SET LOCAL lock_timeout = '{WRITERS_S} s'"), asyncio.timeout(ATTEMPT_S):
            if not await connection.fetchval(_ALONE):
                raise _NotYet("another swap, or a migration, is under way")
            await _lock(connection, observer, f"LOCK TABLE {SCHEMA}.positions IN EXCLUSIVE MODE", SCHEMA)
            locked_at = asyncio.get_running_loop().time()
            crash_points.reach(CrashPoint.SWAP_LOCKED)
            await _require_unchanged(connection, plan)
            await _wait_until_none(connection, _UNPUBLISHED, _describe_unpublished)
            if catch_up is not None:
                live = await versions.positions(connection, SCHEMA)
                await catch_up({number: position.next for number, position in live.items()})
            await _wait_until_equal(connection, plan.other)
            await _lock(connection, observer, f"LOCK TABLE {other}.positions IN EXCLUSIVE MODE", other)
            await _wait_until_equal(connection, plan.other)
            await connection.execute(f"SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = '{views_s} s'")
            # One by one, and not by LOCK TABLE: that locks what is below a view too, and autovacuum may hold it long.
            await _lock(connection, observer, replacing, READS_SCHEMA)
            await _wait_until_unread(connection)
            renames = [(SCHEMA, BETWEEN), (other, SCHEMA), (BETWEEN, OLD)]
            await connection.execute("; ".join(f"ALTER SCHEMA {name} RENAME TO {new}" for name, new in renames))
            await _record_swap(connection, settings, plan)
            crash_points.reach(CrashPoint.SWAP_BEFORE_COMMIT)
    crash_points.reach(CrashPoint.SWAP_AFTER_COMMIT)
    return asyncio.get_running_loop().time() - locked_at


async def _lock(connection: asyncpg.Connection, observer: asyncpg.Connection, statement: str, schema: str) -> None:
    """Run a statement that waits for locks. Raises: _NotYet, with their holders."""
    blockers = asyncio.create_task(_blockers(observer, connection.get_server_pid()))
    try:
        await connection.execute(statement)
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError) as error:
        raise _NotYet(f"waits for {await blockers or 'others'}, to lock {schema}") from error
    except asyncpg.InvalidTableDefinitionError as error:
        raise NotSwapped(f"a view of {schema} cannot show the other version: {error}") from error
    finally:
        blockers.cancel()


async def _blockers(connection: asyncpg.Connection, waiting: int) -> str | None:
    await asyncio.sleep(VIEWS_S / 2)
    return await versions.blockers(connection, waiting)


async def _require_unchanged(connection: asyncpg.Connection, plan: _Plan) -> None:
    """Require the planned versions, which cannot change any more, and that no topic is being filled again.

    One half of such a topic would be of this version, the other of the next.
    """
    existing = await versions.load_versions(connection)
    numbers = [version and version.number for version in (existing.get(SCHEMA), existing.get(plan.other.schema))]
    if numbers[0] == plan.other.number:
        raise _NotYet("the last attempt went through")
    if numbers != [plan.live.number, plan.other.number]:
        raise NotSwapped(f"versions were swapped meanwhile: {SCHEMA} and {plan.other.schema} are {numbers} now")
    topics = await connection.fetchval(_HELD_TOPICS)
    if topics is not None:
        raise _NotYet(f"`tartan republish` fills {topics} from the live version: let it end, or give it up (--abandon)")


async def _wait_until_none(
    connection: asyncpg.Connection, query: str, describe: Callable[[Sequence[asyncpg.Record]], str]
) -> None:
    """Wait until a query returns no rows. Raises: _NotYet, with their description, after half of an attempt."""
    while rows := await connection.fetch(query):
        await asyncio.sleep(POLL_S)
        if await connection.fetchval(_LATE):
            raise _NotYet(describe(rows))


def _describe_unpublished(rows: Sequence[asyncpg.Record]) -> str:
    partition, position, published = rows[0]
    return (
        f"events of {len(rows)} partitions are not published: {partition} up to {published} of {position}; "
        "is `tartan projections` running?"
    )


async def _wait_until_equal(connection: asyncpg.Connection, other: Version) -> None:
    """Wait until the other version is at the live one's positions."""

    def describe(rows: Sequence[asyncpg.Record]) -> str:
        partition, position, reached = rows[0]
        return (
            f"version {other.number} is not where the live one is in {len(rows)} partitions: "
            f"{partition} at {reached} of {position}"
        )

    await _wait_until_none(connection, _DIFFERENT.format(other=other.schema), describe)


async def _wait_until_unread(connection: asyncpg.Connection) -> None:
    """Wait until nobody reads the tables by their own names: a backup would continue in another version."""
    for _ in range(UNREAD_POLLS):
        holders = await versions.holders(connection, SCHEMA)
        if holders is None:
            return
        await asyncio.sleep(POLL_S)
    raise _NotYet(f"waits for {holders}, to rename {SCHEMA}")


async def _replacing_views(connection: asyncpg.Connection, schema: str) -> str:
    columns: dict[str, list[Column]] = {}
    for row in await connection.fetch(_VIEW_COLUMNS, READS_SCHEMA):
        columns.setdefault(row["view"], []).append(Column(row["name"], row["type"]))
    statements = ""
    # `positions` first, with which snapshots begin: a snapshot that has it finishes, and never reads half a swap.
    for name, select in sorted(views.selects(schema).items(), key=lambda view: view[0] != "positions"):
        selected = [attribute.name for attribute in (await connection.prepare(select)).get_attributes()]
        statements += views.replacement(name, select, selected, columns.get(name, [])) + "; "
    # One statement, so that its timeout is that of all of them.
    return f"DO $swap$ BEGIN {statements} END $swap$"


async def _record_swap(connection: asyncpg.Connection, settings: Settings, plan: _Plan) -> None:
    await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {READS_SCHEMA} TO {settings.projector_role}")
    for version, state in ((plan.other, "live"), (plan.live, "old")):
        await connection.execute(_STATE, version.number, version.fold, version.made_at, state)
    if plan.other.number > plan.live.number:
        await connection.execute(_NOTE_DIFFERS, plan.other.number, plan.differs)
    if plan.differs:
        await connection.execute(_NEW_EPOCH)


# The lock of migrations, which replace the views too.
_ALONE = "SELECT pg_try_advisory_xact_lock(hashtextextended('tartan migrations', 0))"
_DEADLOCK_S = "SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'deadlock_timeout'"
_LATE = f"SELECT clock_timestamp() - now() > '{ATTEMPT_S / 2} s'::interval"

# A refill begins under the lock of a position.
_HELD_TOPICS = "SELECT string_agg(DISTINCT topic, ', ') FROM tartan.held_topics"

_UNPUBLISHED = f"""
SELECT p.partition, p.position, coalesce(f.published, 0) AS published
  FROM {SCHEMA}.positions p LEFT JOIN tartan.published_checkpoints f USING (partition)
 WHERE coalesce(f.published, 0) < p.position ORDER BY p.partition"""

_DIFFERENT = f"""
SELECT partition, coalesce(l.position, 0) AS position, coalesce(o.position, 0) AS reached
  FROM {SCHEMA}.positions l FULL JOIN {{other}}.positions o USING (partition)
 WHERE (coalesce(l.position, 0), l.last_checksum) IS DISTINCT FROM (coalesce(o.position, 0), o.last_checksum)
 ORDER BY partition"""

_VIEW_COLUMNS = """
SELECT c.relname AS view, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE n.nspname = $1 AND c.relkind = 'v' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.relname, a.attnum"""

_DIFFERS = "SELECT (result->>'differs')::boolean FROM tartan.rebuilds WHERE number = $1"

_STATE = """
INSERT INTO tartan.rebuilds AS r (number, fold, state, checkpoints, started_at, swapped_at)
VALUES ($1, $2, $4, '{}', $3, now())
ON CONFLICT (number) DO UPDATE SET state = excluded.state, swapped_at = now()"""

_NOTE_DIFFERS = """
UPDATE tartan.rebuilds SET result = coalesce(result, '{}') || jsonb_build_object('differs', $2::boolean)
 WHERE number = $1"""

_NEW_EPOCH = f"""
INSERT INTO tartan.facts (name, value) VALUES ('{EPOCH}', to_jsonb(gen_random_uuid()::text))
ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
