"""What is declared by name over the control API: faults of requests, of Items and of banks, and fates of webhooks."""

from collections.abc import Callable
from decimal import Decimal

from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control import failure_modes
from sandbox.simulator.control.control_requests import DeclareFault, DeclareWebhookFault
from sandbox.simulator.control.faults import Fault
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.delivery import WebhookFault


def declare(world: SimulatedPlaid, wish: DeclareFault) -> dict[str, object]:
    """Declare a fault of requests, or put an Item or a bank into a state.

    Raises: ValueError, PlaidFailure, where the wish names what there is not.
    """
    if wish.kind == "fail":
        fault = Fault(
            code=wish.code,
            endpoint=wish.endpoint,
            item_id=wish.item_id,
            institution_id=wish.institution_id,
            page=wish.page,
            times=wish.times,
            delay_s=wish.delay_s,
        )
        return {"number": world.faults.declare(fault).number}
    if wish.kind in ("institution_down", "institution_up"):
        _institution(world, wish)
    else:
        _OF_ITEM[wish.kind](world, world.item(_given(wish.item_id)), wish)
    return {"done": True}


def decide(world: SimulatedPlaid, wish: DeclareWebhookFault) -> None:
    """Declare what becomes of webhooks to come. Raises: ValueError, where too much is declared already."""
    world.deliveries.declare(
        WebhookFault(kind=wish.fate, item_id=wish.item_id, code=wish.code, times=wish.times, delay_s=wish.delay_s)
    )


def _institution(world: SimulatedPlaid, wish: DeclareFault) -> None:
    institution_id = wish.institution_id or world.item(_given(wish.item_id)).institution.institution_id
    if wish.kind == "institution_up":
        world.institution_up(institution_id)
        return
    # The default code of a wish is that of a request.
    code = "INSTITUTION_DOWN" if wish.code == "INTERNAL_SERVER_ERROR" else wish.code
    if wish.for_s is None:
        world.institution_down(institution_id, code=code)
    else:
        failure_modes.institution_down_for(world, institution_id, wish.for_s, code=code)


def _hide(world: SimulatedPlaid, item: Item, wish: DeclareFault) -> None:
    del world
    failure_modes.hide_account(item, wish.account_id or item.transaction_accounts[0].account_id)


def _show(world: SimulatedPlaid, item: Item, wish: DeclareFault) -> None:
    hidden = [account.account_id for account in item.accounts.values() if account.hidden]
    for account_id in [wish.account_id] if wish.account_id else hidden:
        failure_modes.show_account(world, item, account_id)


def _first_account(item: Item, wish: DeclareFault) -> str:
    return wish.account_id or next(iter(item.accounts))


_OF_ITEM: dict[str, Callable[[SimulatedPlaid, Item, DeclareFault], object]] = {
    "item_error": lambda world, item, wish: world.break_item(
        item, wish.code, reason=wish.reason, silent=wish.silent, late_s=wish.late_s
    ),
    "permission_revoked": lambda world, item, wish: world.break_item(
        item, "USER_PERMISSION_REVOKED", silent=wish.silent, late_s=wish.late_s
    ),
    "repair": lambda world, item, wish: world.repair_item(item, silent=wish.silent, late_s=wish.late_s),
    "account_revoked": lambda world, item, wish: failure_modes.revoke_account(world, item, _first_account(item, wish)),
    "account_reissued": lambda world, item, wish: failure_modes.reissue_account(
        world, item, wish.account_id or item.transaction_accounts[0].account_id
    ),
    "account_offered": lambda world, item, _wish: failure_modes.offer_account(world, item),
    "account_hidden": _hide,
    "account_shown": _show,
    "balance_drift": lambda _world, item, wish: failure_modes.drift(
        item, _first_account(item, wish), Decimal(wish.amount)
    ),
    "cursors_refused": lambda _world, item, _wish: failure_modes.refuse_cursors(item),
    "cursors_mutating": lambda _world, item, _wish: failure_modes.refuse_cursors(
        item, code="TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
    ),
    "history_unready": lambda world, item, wish: failure_modes.unready_history(
        world, item, initial_s=wish.initial_s, complete_s=wish.complete_s
    ),
    "rows_removed": lambda world, item, wish: failure_modes.remove_some(world, item, wish.count),
    "rows_returned": lambda world, item, wish: failure_modes.return_some(world, item, wish.count),
    "unseen": lambda _world, item, wish: failure_modes.add_unseen_changes(item, changes=wish.count),
    "polled": lambda world, item, _wish: world.poll(item),
    "ready": lambda world, item, _wish: world.become_ready(item),
}
"""What puts an Item into a state, by the name of the wish."""


def _given(item_id: str | None) -> str:
    if item_id is None:
        raise ValueError("item_id is missing")
    return item_id
