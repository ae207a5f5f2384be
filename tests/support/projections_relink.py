"""A login of the simulated bank that is linked more than once, its log, and who each transaction really is."""

import asyncio
import datetime as dt
import random
from decimal import Decimal

import msgspec

from projections.model.unit_of_work import Row
from sandbox.simulation.memory.projection_tables import MemoryProjections
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.transactions import Transaction
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.control.scripted_data import ScriptedChange, scripted_changes
from sandbox.simulator.inprocess import InProcessPlaid
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from schemas import events
from schemas.log.records import Item as ItemWords
from streams.sync import changeset, pages
from tests.support.projections_log import Log, about_item

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
BANK = "ins_109511"

Key = tuple[str, dt.date, Decimal, str]
"""What cannot be told apart: account (by mask), date, amount and description."""


class Login:
    """One user's login at one bank, and the log of what Plaid says of its Items."""

    def __init__(self, seed: int, *, transactions: int, lasting_ids: bool = True) -> None:
        self.world = SimulatedPlaid(Options(seed=seed, rate_limits="off", validate_requests=False), ManualClock(START))
        self.bank = InProcessPlaid(self.world, sleep=_never)
        self.rng = random.Random(seed)
        self.log = Log()
        self.lasting_ids = lasting_ids
        self.cursors: dict[str, str | None] = {}
        self.first = self.world.create_item("ada", institution_id=BANK, transactions=transactions, days=300)
        self.link(self.first)

    def link(self, item: Item) -> None:
        """Append the Item's root."""
        said = ItemWords(item.item_id, "active", institution_id=BANK, institution_name="InProcessPlaid")
        self.log.append(item.item_id, about_item(events.ITEM_LINKED, said), type="link")

    def pull(self, item: Item) -> None:
        """Append a sync with all that the bank says anew."""
        read = asyncio.run(self._read(item))
        accounts = read.accounts
        if not self.lasting_ids:
            accounts = {
                name: msgspec.structs.replace(one, persistent_account_id=None) for name, one in accounts.items()
            }
        said = changeset.encode_transactions(read.changes) + changeset.encode_balances(accounts)
        self.log.sync(item.item_id, *said, history_status=read.status)

    def unlink(self, item: Item) -> None:
        """Append the Item's end."""
        said = ItemWords(item.item_id, "unlinked", institution_id=BANK, institution_name="InProcessPlaid")
        self.log.append(item.item_id, about_item(events.ITEM_UNLINKED, said), type="unlink")

    def add_twins(self, item: Item, *, pairs: int) -> None:
        """Let purchases happen that nobody can tell apart, two and two."""
        account = next(one.account_id for one in item.accounts.values() if one.plan.type == "depository")
        wishes = [
            ScriptedChange(
                account_id=account,
                amount=f"{7 + number}.25",
                date=START.date() - dt.timedelta(4 + 9 * number),
                name="Twin Market",
                original_description=f"TWIN MARKET {number}",
            )
            for number in range(pairs)
            for _ in range(2)
        ]
        self.world.apply_update(item, lambda drawing: scripted_changes(drawing, wishes))

    def relink(self, old: Item, *, share_changed: float = 0.0) -> tuple[Item, dict[str, str]]:
        """Link the login again. Gives the Item, and its ids of transactions with those that they had.

        Of a share of them the bank now writes the description a little differently, or dates them a day later.
        """
        before = sorted(
            (row for row in old.live.values() if old.accounts[row.account_id].is_open),
            key=lambda row: (row.date, row.transaction_id),
        )
        new = self.world.relink(old)
        again = list(new.live.values())
        was = {now.transaction_id: then.transaction_id for now, then in zip(again, before, strict=True)}
        keys = {self.key(new, row) for row in again}
        for row in again:
            changed = self._otherwise(row)
            # What moves onto another one's place cannot be told from it: that is tested by itself.
            if self.rng.random() < share_changed and self.key(new, changed) not in keys:
                new.live[row.transaction_id] = changed
                new.log[:] = [
                    msgspec.structs.replace(one, transaction=changed) if one.transaction is row else one
                    for one in new.log
                ]
        return new, was

    def key(self, item: Item, row: Transaction) -> Key:
        """What a transaction cannot be told apart from others by."""
        return (item.accounts[row.account_id].mask, row.date, row.amount, row.original_description)

    def _otherwise(self, row: Transaction) -> Transaction:
        if self.rng.random() < 0.5:
            return msgspec.structs.replace(row, date=row.date + dt.timedelta(1))
        return msgspec.structs.replace(row, original_description=f"{row.original_description} US")

    async def _read(self, item: Item) -> pages.Update:
        cursor = self.cursors.get(item.item_id)
        found = []
        while True:
            page = await self.bank.sync_page(item.access_token, cursor)
            found.append(page)
            cursor = page.next_cursor
            if not page.has_more:
                break
        fresh = self.cursors.get(item.item_id) is None
        self.cursors[item.item_id] = cursor
        return pages.merge_pages(found, fresh=fresh)


def shown(memory: MemoryProjections) -> list[Row]:
    """What readers have."""
    return [row for row in memory.rows.values() if row.is_shown]


async def _never(_: float) -> None:
    raise AssertionError("a simulated bank without latency lets no time pass")
