"""Users, their numbers and their keys on a real Postgres."""

import asyncio

import asyncpg
import pytest

from runtime.users import keys as users
from runtime.users.keys import Destroyed, Keyring, User
from runtime.users.vault import Vault
from schemas.errors import Halt

AT_ONCE = 20
VAULT = Vault(b"k" * 32)


async def link(pool: asyncpg.Pool, user_id: str = "u-1", *, tenant: str = "acme") -> User:
    async with pool.acquire() as connection:
        return await users.find_or_create(connection, VAULT, tenant=tenant, user_id=user_id)


async def test_first_links_of_one_user_at_once_make_one_number_and_one_key(pool: asyncpg.Pool) -> None:
    made = await asyncio.gather(*(link(pool) for _ in range(AT_ONCE)))

    assert len(set(made)) == 1
    assert await pool.fetchval("SELECT count(*) FROM tartan.users") == 1
    assert await pool.fetchval("SELECT count(*) FROM tartan.user_keys") == 1
    async with pool.acquire() as connection:
        keys = await Keyring(VAULT).of(connection, [made[0].number])
    assert list(keys) == [made[0].number]


async def test_the_same_user_id_of_another_tenant_is_another_user(pool: asyncpg.Pool) -> None:
    ours, again, theirs = await link(pool), await link(pool), await link(pool, tenant="other")

    assert ours == again == User(ours.number, "acme", "u-1")
    assert theirs.number != ours.number
    async with pool.acquire() as connection:
        assert await users.find(connection, tenant="other", user_id="u-1") == theirs
        assert await users.find(connection, tenant="acme", user_id="u-2") is None


async def test_each_user_has_keys_of_their_own_and_a_process_started_later_finds_them_again(pool: asyncpg.Pool) -> None:
    numbers = [(await link(pool, f"u-{number}")).number for number in range(3)]

    async with pool.acquire() as connection:
        keyring = Keyring(VAULT)
        keys = await keyring.of(connection, numbers)
        from_memory = await keyring.of(connection, numbers)
        later = await Keyring(Vault(b"k" * 32)).of(connection, numbers)

    assert len({repr(key) for key in keys.values()}) == 3
    assert keys == from_memory == later


async def test_an_unknown_user_is_absent_and_a_destroyed_one_is_destroyed(pool: asyncpg.Pool) -> None:
    known, erased = await link(pool, "known"), await link(pool, "erased")
    await destroy(pool, erased)

    async with pool.acquire() as connection:
        keys = await Keyring(VAULT).of(connection, [known.number, erased.number, 4711])

    assert keys.keys() == {known.number, erased.number}
    assert isinstance(keys[erased.number], Destroyed)
    assert not isinstance(keys[known.number], Destroyed)


async def test_a_keyring_knows_a_key_until_it_is_told_to_forget_it(pool: asyncpg.Pool) -> None:
    user, keyring = await link(pool), Keyring(VAULT)
    async with pool.acquire() as connection:
        before = await keyring.of(connection, [user.number])
        await destroy(pool, user)
        remembered = await keyring.of(connection, [user.number])
        keyring.forget(user.number)
        keyring.forget(user.number)
        after = await keyring.of(connection, [user.number])

    assert remembered == before
    assert after == {user.number: Destroyed()}


async def test_a_wrong_master_key_halts(pool: asyncpg.Pool) -> None:
    user = await link(pool)

    async with pool.acquire() as connection:
        with pytest.raises(Halt, match=rf"data-key/{user.number}/1: is TARTAN_KEY_ENCRYPTION_KEY right"):
            await Keyring(Vault(b"x" * 32)).of(connection, [user.number])


async def test_a_key_row_of_another_user_does_not_open(pool: asyncpg.Pool) -> None:
    mine, theirs = await link(pool, "mine"), await link(pool, "theirs")
    await pool.execute(
        "UPDATE tartan.user_keys SET wrapped = (SELECT wrapped FROM tartan.user_keys WHERE user_number = $1)"
        " WHERE user_number = $2",
        theirs.number,
        mine.number,
    )

    async with pool.acquire() as connection:
        with pytest.raises(Halt, match=str(mine.number)):
            await Keyring(VAULT).of(connection, [mine.number])


async def test_a_keyring_forgets_the_oldest_beyond_its_bound(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "CACHED_USERS_MAX", 2)
    numbers = [(await link(pool, f"u-{number}")).number for number in range(5)]

    async with pool.acquire() as connection:
        keyring = Keyring(VAULT)
        keys = await keyring.of(connection, numbers)
        again = await keyring.of(connection, numbers)

    assert keys.keys() == set(numbers)
    assert again == keys
    assert len(keyring._known) == 2


async def test_a_first_link_is_committed_synchronously(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SET synchronous_commit = off")
        async with connection.transaction():
            await users.find_or_create(connection, VAULT, tenant="acme", user_id="u-1")
            within = await connection.fetchval("SHOW synchronous_commit")
        after = await connection.fetchval("SHOW synchronous_commit")

    assert (within, after) == ("on", "off")


async def destroy(pool: asyncpg.Pool, user: User) -> None:
    """What an erasure does to a key."""
    await pool.execute(
        "UPDATE tartan.user_keys SET wrapped = NULL, state = 'destroyed', destroyed_at = now() WHERE user_number = $1",
        user.number,
    )
