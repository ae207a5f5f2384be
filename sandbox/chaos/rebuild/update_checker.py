"""Check the gateway's answers during a rebuild: each update of the log writer is visible whole or not at all."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sandbox.chaos.rebuild.log_writer import NAME, OPENING_BALANCE, amount
from sandbox.observe.read_load import ACCOUNTS, Check, Read


class UpdateChecker:
    """Find answers that contain a part of an update, or an older update than a read that ended before."""

    def __init__(self) -> None:
        self._last_read: dict[str, int] = {}
        """Last update of each user that any read returned."""

    def begin(self, read: Read) -> Check:
        """Return the check of a read that begins now; concurrent reads may return newer updates."""
        before = self._last_read.get(read.user, 0)
        return lambda read, answer: self._check(read, answer, before)

    def _check(self, read: Read, answer: Any, before: int) -> Sequence[str]:
        number, problems = update_of_accounts(answer) if read.entity == ACCOUNTS else update_of_transactions(answer)
        if number < before:
            problems = [*problems, f"shows update {number} after {before} was read"]
        self._last_read[read.user] = max(number, self._last_read.get(read.user, 0))
        return [f"{read.path} {problem}" for problem in problems]


def update_of_accounts(answer: Any) -> tuple[int, list[str]]:
    """Return the update that a user's balance shows, and problems."""
    balances = [account["current"] for account in answer["accounts"]]
    if len(balances) != 1:
        return 0, [f"shows {len(balances)} accounts"]
    return int(Decimal(balances[0])) - OPENING_BALANCE, []


def update_of_transactions(answer: Any) -> tuple[int, list[str]]:
    """Return the update that a page, newest first, shows, and problems.

    The last transaction is not final yet; all before it are, without gap.
    """
    if not answer["transactions"]:
        return 0, ["shows no transactions"]
    updates = [row for row in answer["transactions"] if row["name"].startswith(NAME)]
    numbers = [int(row["name"].removeprefix(NAME)) for row in updates]
    last = numbers[0] if numbers else 0
    problems = []
    if numbers != list(range(last, last - len(numbers), -1)):
        problems.append(f"shows updates {numbers}")
    elif len(updates) < len(answer["transactions"]) and len(numbers) != last:
        problems.append(f"shows {len(numbers)} of {last} updates")
    for number, row in zip(numbers, updates, strict=True):
        if Decimal(row["amount"]) != Decimal(amount(number, final=number != last)):
            problems.append(f"shows update {last}, and {row['amount']} of update {number}")
    return last, problems
