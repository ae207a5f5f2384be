"""`tartan rebuild` on a real Kafka and a real Postgres."""

from collections.abc import AsyncIterator

import pytest

from projections.openings import COMPLETE
from tests.projections_log import account, added, balance, modified, removed, transaction
from tests.rebuild_world import World

USERS = range(1, 9)


@pytest.fixture
async def world(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[World]:
    made = World(kafka_address, topic_prefix, database)
    await made.open(USERS)
    yield made
    await made.close()


def history(world: World, *, changesets: int, each: int) -> None:
    """Items of all users with transactions, changes to them, and what takes them back."""
    for user in USERS:
        item = f"I{user}"
        world.log.link(item, user)
        for number in range(changesets):
            name = f"{item}-{number}"
            said = added(*(transaction(f"{name}-{at}", f"{at % 97}.{at % 89:02d}") for at in range(each)))
            if number:
                before = f"{item}-{number - 1}"
                said += modified(transaction(f"{before}-0", "12.5", category_primary="TRAVEL"))
                said += removed(f"{before}-1")
            is_last = number == changesets - 1
            world.log.sync(
                item, *said, *balance(account(current=f"{number}.50")), user=user,
                counts={"transaction.added": each, "transaction.modified": bool(number)},
                history_status=COMPLETE if is_last else None,
            )  # fmt: skip


async def test_a_rebuild_gives_the_live_version_again(world: World) -> None:
    history(world, changesets=3, each=20)
    await world.live()

    result = await world.rebuild()

    live, following = await world.both()
    assert live == following
    assert result.digest_equal
    assert result.comparison.differences == []
    assert result.comparison.accounts_compared == len(USERS)
    assert result.transactions_replayed == len(USERS) * (3 * 20 + 2)
