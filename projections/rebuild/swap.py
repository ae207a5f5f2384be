"""The swap: the version that was filled beside the live one becomes the live one, in one transaction.

Locks, in this order: the live positions (writers wait; readers go on), the other version's positions, the views of
`reads` (readers wait, for no longer than VIEWS_S). Until the COMMIT nothing has changed, and whatever ends this
process before it frees the locks. An attempt is bounded and made again: it never waits in front of others for long.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
"""How long writers wait at the very most; Postgres ends the transaction of a process that was stopped in it."""
WRITERS_S = 1.0
"""How long the lock on the live positions may be waited for: writers that come after it wait as long."""
VIEWS_S = 0.6
"""How long the locks on the views may be waited for: readers that come after them wait as long. It is below Postgres'
deadlock_timeout (1 s), so where a reader holds one view and wants another, this transaction is the one that ends."""
DEADLOCK_SHARE = 0.6
"""Of a deadlock_timeout that was set lower."""
LOOK_S = 0.02
UNREAD_LOOKS = 5
"""Looks for those who read tables by their own names: readers of the views wait meanwhile."""
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 10.0
PATIENCE_S = 600.0
"""How long a swap is tried: a long report that reads the tables may hold it up for minutes."""

BETWEEN = "projection_between"
"""Name of a schema within the transaction that exchanges two."""

CatchUp = Callable[[Mapping[int, int]], Awaitable[None]]
"""Brings the other version to these positions, by partition: the live ones, which stand still meanwhile."""
Tell = Callable[[str], None]
"""Takes a sentence for people: why an attempt did not get through."""

_log = logs.logger(__name__)


class Swapped(NamedTuple):
    """Numbers of the live version and of the one that was live before, and how long writers waited."""

    live: int
    old: int
    attempts: int
    waited_s: float


class _NotYet(TartanError):
    """An attempt was given up; the next one may get through."""


class _Plan(NamedTuple):
    live: Version
    other: Version
    differs: bool


async def swap(
    settings: Settings, *, catch_up: CatchUp, differs: bool, tell: Tell, patience_s: float = PATIENCE_S
) -> Swapped:
    """Make the next version the live one. `differs`: its rows or net events are others, so streams begin anew.

    Idempotence: where it is live already, its number is given.
    Raises: NotSwapped, with what is in the way; whatever `catch_up` raises. The live version then goes on.
    """
    return await _swap(settings, NEXT, catch_up, differs=differs, tell=tell, patience_s=patience_s)


async def back(settings: Settings, *, tell: Tell, patience_s: float = PATIENCE_S) -> Swapped:
    """Make the version that was live before the live one again; both stay fed, so this can be undone by itself.

    Raises: NotSwapped, with what is in the way. The live version then goes on.
    """
    return await _swap(settings, OLD, _fed, differs=None, tell=tell, patience_s=patience_s)


async def _fed(_: Mapping[int, int]) -> None:
    """Processes of `tartan projections` bring the old version along."""


async def _swap(
    settings: Settings, schema: str, catch_up: CatchUp, *, differs: bool | None, tell: Tell, patience_s: float
) -> Swapped:
    plan = await _plan(settings, schema, differs)
    loop = asyncio.get_running_loop()
    until, backoff, attempts = loop.time() + patience_s, Backoff(PAUSE_S_MIN, PAUSE_S_MAX), 0
    while True:
        attempts += 1
        try:
            waited_s = await _attempt(settings, plan, catch_up)
        except (_NotYet, Retry, *AWAY) as error:
            if await _is_done(settings, plan):
                waited_s = ATTEMPT_S
                break
            why = reason(error)
            _log.warning("versions not swapped yet", reason=why, attempts=attempts)
            pause_s = backoff.next_s()
            if loop.time() + pause_s > until:
                raise NotSwapped(f"not swapped after {attempts} attempts: {why}") from error
            tell(f"not swapped yet: {why}")
            await asyncio.sleep(pause_s)
        else:
            break
    _log.info("versions swapped", live=plan.other.number, old=plan.live.number, attempts=attempts)
    return Swapped(plan.other.number, plan.live.number, attempts, waited_s)


async def _plan(settings: Settings, schema: str, differs: bool | None) -> _Plan:
    """What is to be swapped. Raises: NotSwapped, where it cannot be."""
    async with versions.owner(settings) as connection:
        found = await versions.found(connection)
        live, other, old = found.get(SCHEMA), found.get(schema), found.get(OLD)
        if live is None or other is None:
            missing = SCHEMA if live is None else schema
            raise NotSwapped(f"no version is in the schema {missing}: `tartan rebuild --status` shows which there are")
        if other.fold != FOLD:
            raise NotSwapped(
                f"version {other.number} is of fold {other.fold}, this release's is {FOLD}: its own release swaps it"
            )
        if schema == NEXT and old is not None:
            raise NotSwapped(f"version {old.number} is kept still: `tartan rebuild --drop-old` first")
        if other.not_fed is not None:
            raise NotSwapped(f"version {other.number} is not fed any more: {other.not_fed}")
        if differs is None:
            # Two folds that agreed on the log of that day need not have agreed on what came since.
            found_different = await connection.fetchval(_DIFFERS, max(live.number, other.number))
            differs = bool(found_different) or live.fold != other.fold
        return _Plan(live, other, differs)


async def _is_done(settings: Settings, plan: _Plan) -> bool:
    """Whether a COMMIT that got no answer went through."""
    try:
        async with versions.owner(settings) as connection:
            return (await versions.found(connection))[SCHEMA].number == plan.other.number
    except (Retry, *AWAY):
        return False


async def _attempt(settings: Settings, plan: _Plan, catch_up: CatchUp) -> float:
    """Swap, or change nothing. Gives how long writers waited. Raises: _NotYet, with who is in the way; AWAY."""
    async with versions.owner(settings) as connection, versions.owner(settings) as looking:
        replacing = await _replacing_views(connection, plan.other.schema)
        views_s = min(VIEWS_S, DEADLOCK_SHARE * await connection.fetchval(_DEADLOCK_S))
        # Within a transaction the new value of this limit would be for the next one.
        await connection.execute(f"SET transaction_timeout = '{ATTEMPT_S + 1} s'")
        async with transaction(connection, f"SET LOCAL lock_timeout = '{WRITERS_S} s'"), asyncio.timeout(ATTEMPT_S):
            if not await connection.fetchval(_ALONE):
                raise _NotYet("another swap, or a migration, is under way")
            await _lock(connection, looking, f"LOCK TABLE {SCHEMA}.positions IN EXCLUSIVE MODE", SCHEMA)
            began = asyncio.get_running_loop().time()
            crash_points.reach(CrashPoint.SWAP_LOCKED)
            await _require(connection, plan)
            await _not_filled(connection)
            await _published(connection)
            live = await versions.positions(connection, SCHEMA)
            await catch_up({number: position.next for number, position in live.items()})
            await _equal(connection, plan.other)
            await _lock(
                connection, looking, f"LOCK TABLE {plan.other.schema}.positions IN EXCLUSIVE MODE", plan.other.schema
            )
            await _equal(connection, plan.other)
            await connection.execute(f"SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = '{views_s} s'")
            # One by one, and not by LOCK TABLE: that locks what is below a view too, and autovacuum may hold it long.
            await _lock(connection, looking, replacing, READS_SCHEMA)
            await _unread(connection)
            await connection.execute(_renaming(plan.other.schema))
            await _noted(connection, settings, plan)
            crash_points.reach(CrashPoint.SWAP_BEFORE_COMMIT)
    crash_points.reach(CrashPoint.SWAP_AFTER_COMMIT)
    return asyncio.get_running_loop().time() - began


async def _lock(connection: asyncpg.Connection, looking: asyncpg.Connection, statement: str, schema: str) -> None:
    """Run a statement that waits for locks; where that is in vain, say for whom."""
    watching = asyncio.create_task(_blockers(looking, connection.get_server_pid()))
    try:
        await connection.execute(statement)
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError) as error:
        raise _NotYet(f"waits for {await watching or 'others'}, to lock {schema}") from error
    except asyncpg.InvalidTableDefinitionError as error:
        raise NotSwapped(f"a view of {schema} cannot show the other version: {error}") from error
    finally:
        watching.cancel()


async def _blockers(connection: asyncpg.Connection, waiting: int) -> str | None:
    await asyncio.sleep(VIEWS_S / 2)
    return await versions.blockers(connection, waiting)


async def _require(connection: asyncpg.Connection, plan: _Plan) -> None:
    """Whether the schemas still are what they were planned to be; from here on they stay it."""
    found = await versions.found(connection)
    numbers = [one and one.number for one in (found.get(SCHEMA), found.get(plan.other.schema))]
    if numbers[0] == plan.other.number:
        raise _NotYet("the last attempt went through")
    if numbers != [plan.live.number, plan.other.number]:
        raise NotSwapped(f"versions were swapped meanwhile: {SCHEMA} and {plan.other.schema} are {numbers} now")


async def _not_filled(connection: asyncpg.Connection) -> None:
    """Require that no topic is being filled again: one half of it would be of this version, the other of the next."""
    topics = await connection.fetchval(_FILLED)
    if topics is not None:
        raise _NotYet(f"`tartan republish` fills {topics} from the live version: let it end, or give it up (--abandon)")


async def _published(connection: asyncpg.Connection) -> None:
    """Wait until the events of all that the live version has committed are published."""
    while behind := await connection.fetch(_UNPUBLISHED):
        await asyncio.sleep(LOOK_S)
        if await connection.fetchval(_LATE):
            first = behind[0]
            raise _NotYet(
                f"events of {len(behind)} partitions are not published: {first['partition']} up to "
                f"{first['published']} of {first['position']}; is `tartan projections` running?"
            )


async def _equal(connection: asyncpg.Connection, other: Version) -> None:
    """Wait until the other version is where the live one is."""
    while different := await connection.fetch(_DIFFERENT.format(other=other.schema)):
        await asyncio.sleep(LOOK_S)
        if await connection.fetchval(_LATE):
            first = different[0]
            raise _NotYet(
                f"version {other.number} is not where the live one is in {len(different)} partitions: "
                f"{first['partition']} at {first['reached']} of {first['position']}"
            )


async def _unread(connection: asyncpg.Connection) -> None:
    """Require that nobody reads the tables by their own names: a backup would go on in another version."""
    for _ in range(UNREAD_LOOKS):
        who = await versions.holders(connection, SCHEMA)
        if who is None:
            return
        await asyncio.sleep(LOOK_S)
    raise _NotYet(f"waits for {who}, to rename {SCHEMA}")


async def _replacing_views(connection: asyncpg.Connection, schema: str) -> str:
    shown: dict[str, list[Column]] = {}
    for row in await connection.fetch(_SHOWN, READS_SCHEMA):
        shown.setdefault(row["view"], []).append(Column(row["name"], row["type"]))
    statements = ""
    # That view first on which snapshots begin: who has a snapshot then finishes, and does not meet this half-way.
    for name, select in sorted(views.selects(schema).items(), key=lambda view: view[0] != "positions"):
        given = [one.name for one in (await connection.prepare(select)).get_attributes()]
        statements += views.replacement(name, select, given, shown.get(name, [])) + "; "
    # One statement, so that its timeout is that of all of them.
    return f"DO $swap$ BEGIN {statements} END $swap$"


def _renaming(other: str) -> str:
    renamed = [(SCHEMA, BETWEEN), (other, SCHEMA), (BETWEEN, OLD)]
    return "; ".join(f"ALTER SCHEMA {before} RENAME TO {after}" for before, after in renamed)


async def _noted(connection: asyncpg.Connection, settings: Settings, plan: _Plan) -> None:
    await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {READS_SCHEMA} TO {settings.projector_role}")
    await connection.execute(_LIVE, plan.other.number, plan.other.fold, plan.other.made_at)
    await connection.execute(_OLD, plan.live.number, plan.live.fold, plan.live.made_at)
    if plan.other.number > plan.live.number:
        await connection.execute(_NOTE_DIFFERS, plan.other.number, plan.differs)
    if plan.differs:
        await connection.execute(_NEW_EPOCH)


# That of migrations: they replace the views too.
_ALONE = "SELECT pg_try_advisory_xact_lock(hashtextextended('tartan migrations', 0))"
_DEADLOCK_S = "SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'deadlock_timeout'"
_LATE = f"SELECT clock_timestamp() - now() > '{ATTEMPT_S / 2} s'::interval"

# One begins under the lock of a position.
_FILLED = "SELECT string_agg(DISTINCT topic, ', ') FROM tartan.held_topics"

_UNPUBLISHED = f"""
SELECT p.partition, p.position, coalesce(f.published, 0) AS published
  FROM {SCHEMA}.positions p LEFT JOIN tartan.published_checkpoints f USING (partition)
 WHERE coalesce(f.published, 0) < p.position ORDER BY p.partition"""

_DIFFERENT = f"""
SELECT partition, coalesce(l.position, 0) AS position, coalesce(o.position, 0) AS reached
  FROM {SCHEMA}.positions l FULL JOIN {{other}}.positions o USING (partition)
 WHERE (coalesce(l.position, 0), l.last_checksum) IS DISTINCT FROM (coalesce(o.position, 0), o.last_checksum)
 ORDER BY partition"""

_SHOWN = """
SELECT c.relname AS view, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE n.nspname = $1 AND c.relkind = 'v' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.relname, a.attnum"""

_DIFFERS = "SELECT (result->>'differs')::boolean FROM tartan.rebuilds WHERE number = $1"

_LIVE = """
INSERT INTO tartan.rebuilds AS r (number, fold, state, checkpoints, started_at, swapped_at)
VALUES ($1, $2, 'live', '{}', $3, now())
ON CONFLICT (number) DO UPDATE SET state = 'live', swapped_at = now()"""

_OLD = """
INSERT INTO tartan.rebuilds AS r (number, fold, state, checkpoints, started_at, swapped_at)
VALUES ($1, $2, 'old', '{}', $3, now())
ON CONFLICT (number) DO UPDATE SET state = 'old', swapped_at = now()"""

_NOTE_DIFFERS = """
UPDATE tartan.rebuilds SET result = coalesce(result, '{}') || jsonb_build_object('differs', $2::boolean)
 WHERE number = $1"""

_NEW_EPOCH = f"""
INSERT INTO tartan.facts (name, value) VALUES ('{EPOCH}', to_jsonb(gen_random_uuid()::text))
ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
