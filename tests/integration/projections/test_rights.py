"""The ledger is only added to: by the rights of the role that projects, and by a trigger for whoever has more."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import NamedTuple

import asyncpg
import pytest

from projections.store.connection import Session
from projections.store.grants import Roles
from projections.store.migrate import migrate
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from sandbox.infra.postgres import Postgres
from schemas.errors import Halt
from tests.support.projections_database import Database, fresh
from tests.support.projections_log import Log, added, transaction

CHANGES = (
    "UPDATE projection.ledger_transfers SET amount = amount + 1",
    "DELETE FROM projection.ledger_transfers",
    "TRUNCATE projection.ledger_transfers",
)


@pytest.fixture
async def projected(postgres: Postgres, template_dsn: str) -> AsyncIterator[Database]:
    """A database with a transfer."""
    log = Log()
    log.link("item")
    log.sync("item", *added(transaction("a")))
    async with fresh(postgres, f"rights_{uuid.uuid4().hex[:8]}") as database:
        await database.project(log.records)
        yield database


@pytest.mark.parametrize("change", CHANGES)
async def test_the_projectors_session_has_no_right_to_change_a_transfer(projected: Database, change: str) -> None:
    connection = await projected.connection()

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(change)

    assert await connection.fetchval("SELECT count(*) FROM projection.ledger_transfers") == 1


@pytest.mark.parametrize("change", CHANGES)
async def test_the_trigger_refuses_it_to_the_owner_too(projected: Database, change: str) -> None:
    connection = await asyncpg.connect(projected.dsn)
    try:
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute(change)
    finally:
        await connection.close()


async def test_the_role_that_erases_deletes_and_does_nothing_else(projected: Database) -> None:
    connection = await asyncpg.connect(projected.dsn, server_settings={"role": projected.settings.eraser_role})
    try:
        for change in (CHANGES[0], CHANGES[2], "SELECT FROM projection.transactions", "SELECT FROM tartan.users"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(change)
        assert await connection.execute("DELETE FROM projection.ledger_transfers WHERE user_number = 1") == "DELETE 1"
    finally:
        await connection.close()


async def test_a_missing_role_stops_the_process_and_says_what_to_do(database: str) -> None:
    settings = Settings(postgres_dsn=database, projector_role="nobody_made_this")  # type: ignore[arg-type]

    with pytest.raises(Halt, match=r"nobody_made_this.*tartan migrate"):
        await Session(settings).connection()
    with pytest.raises(Halt, match=r"nobody_made_this.*tartan migrate"):
        await open_pool(settings, stage="projections", role=settings.projector_role)


class Owned(NamedTuple):
    """An empty database, its owner's connection string and name, an administrator's connection, roles of its own."""

    dsn: str
    owner: str
    admin: asyncpg.Connection
    roles: Roles


@pytest.fixture
async def owned(postgres: Postgres) -> AsyncIterator[Owned]:
    suffix = uuid.uuid4().hex[:8]
    roles, owner, name = Roles(f"p_{suffix}", f"e_{suffix}"), f"owner_{suffix}", f"test_{suffix}"
    admin = await asyncpg.connect(await postgres.create_database(name))
    await admin.execute(f"CREATE ROLE {owner} LOGIN PASSWORD 'x'; ALTER DATABASE {name} OWNER TO {owner}")
    yield Owned(f"postgresql://{owner}:x@{postgres.address}/{name}", owner, admin, roles)
    await admin.close()
    await postgres.drop_database(name)
    server = await asyncpg.connect(postgres.dsn("postgres"))
    await server.execute(f"DROP ROLE IF EXISTS {', '.join((*roles, owner))}")
    await server.close()


async def test_a_user_who_may_not_make_roles_is_told_who_has_to_and_goes_on_once_it_is_done(owned: Owned) -> None:
    with pytest.raises(Halt, match=f"administrator has to run: CREATE ROLE {owned.roles.projector} NOLOGIN; GRANT"):
        await asyncio.to_thread(migrate, owned.dsn, owned.roles)
    for role in owned.roles:
        await owned.admin.execute(f"CREATE ROLE {role} NOLOGIN; GRANT {role} TO {owned.owner}")

    await asyncio.to_thread(migrate, owned.dsn, owned.roles)

    await refuses_changes(owned)


async def test_a_user_who_may_make_roles_makes_them_and_takes_them_on(owned: Owned) -> None:
    await owned.admin.execute(f"ALTER ROLE {owned.owner} CREATEROLE")

    for _ in range(2):
        await asyncio.to_thread(migrate, owned.dsn, owned.roles)

    await refuses_changes(owned)


async def refuses_changes(owned: Owned) -> None:
    session = Session(Settings(postgres_dsn=owned.dsn, projector_role=owned.roles.projector))  # type: ignore[arg-type]
    for change in CHANGES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await (await session.connection()).execute(change)
    await session.close()
    # Membership, which the owner has, is not enough: the role has to be taken on.
    connection = await asyncpg.connect(owned.dsn)
    with pytest.raises(asyncpg.RestrictViolationError):
        await connection.execute(CHANGES[1])
    await connection.close()
