"""What answers of the gateway say of how far they have read the writer's updates, and whether that can be."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sandbox.chaos.rebuild.writer import OPENED_WITH, amount
from sandbox.observe.read_load import ACCOUNTS, Check, Read

NAME = "UPDATE "


class UpdateChecker:
    """Checks that an answer shows each update whole or not at all, and none older than was read before."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        """The last update of a user that anybody has read."""

    def begun(self, read: Read) -> Check:
        """The check of a read that begins now: what others read meanwhile may be newer."""
        seen = self.seen.get(read.user, 0)
        return lambda read, told: self._check(read, told, seen)

    def _check(self, read: Read, told: Any, seen: int) -> Sequence[str]:
        number, wrong = of_accounts(told) if read.what == ACCOUNTS else of_transactions(told)
        if number < seen:
            wrong = [*wrong, f"shows update {number} after {seen} was read"]
        self.seen[read.user] = max(number, self.seen.get(read.user, 0))
        return [f"{read.path} {one}" for one in wrong]


def of_accounts(told: Any) -> tuple[int, list[str]]:
    """The update that a user's account shows, and what is wrong."""
    balances = [account["current"] for account in told["accounts"]]
    if len(balances) != 1:
        return 0, [f"shows {len(balances)} accounts"]
    return int(Decimal(balances[0])) - OPENED_WITH, []


def of_transactions(told: Any) -> tuple[int, list[str]]:
    """The update that a page, newest first, shows: the last one is not final yet, all before it are, without gap."""
    if not told["transactions"]:
        return 0, ["shows no transactions"]
    shown = [row for row in told["transactions"] if row["name"].startswith(NAME)]
    numbers = [int(row["name"].removeprefix(NAME)) for row in shown]
    last = numbers[0] if numbers else 0
    wrong = []
    if numbers != list(range(last, last - len(numbers), -1)):
        wrong.append(f"shows updates {numbers}")
    elif len(shown) < len(told["transactions"]) and len(numbers) != last:
        wrong.append(f"shows {len(numbers)} of {last} updates")
    for number, row in zip(numbers, shown, strict=True):
        wanted = amount(number, final=number != last)
        if Decimal(row["amount"]) != Decimal(wanted):
            wrong.append(f"shows update {last}, and {row['amount']} of update {number}")
    return last, wrong
