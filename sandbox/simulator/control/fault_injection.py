"""Declare faults by name over the control API: of requests, Items, banks and webhooks."""

from collections.abc import Callable
from decimal import Decimal

from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control import failure_modes
from sandbox.simulator.control.control_requests import DeclareFault, DeclareWebhookFault
from sandbox.simulator.control.faults import Fault
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.delivery import WebhookFault


def declare_fault(plaid: SimulatedPlaid, body: DeclareFault) -> dict[str, object]:
    """Declare a fault of requests, or put an Item or a bank into a state.

    Raises: ValueError, PlaidFailure, where the body names something that does not exist.
    """
    if body.kind == "fail":
        fault = Fault(
            code=body.code,
            endpoint=body.endpoint,
            item_id=body.item_id,
            institution_id=body.institution_id,
            page=body.page,
            times=body.times,
            delay_s=body.delay_s,
        )
        return {"number": plaid.faults.declare(fault).number}
    if body.kind in ("institution_down", "institution_up"):
        _set_institution(plaid, body)
    else:
        _SET_ITEM[body.kind](plaid, _item(plaid, body), body)
    return {"done": True}


def declare_webhook_fault(plaid: SimulatedPlaid, body: DeclareWebhookFault) -> None:
    """Declare a fault of coming webhooks. Raises: ValueError, where too many are declared."""
    fault = WebhookFault(kind=body.fate, item_id=body.item_id, code=body.code, times=body.times, delay_s=body.delay_s)
    plaid.deliveries.declare(fault)


def _set_institution(plaid: SimulatedPlaid, body: DeclareFault) -> None:
    institution_id = body.institution_id or _item(plaid, body).institution.institution_id
    if body.kind == "institution_up":
        plaid.institution_up(institution_id)
        return
    # The default code of a body is that of a request.
    code = "INSTITUTION_DOWN" if body.code == "INTERNAL_SERVER_ERROR" else body.code
    plaid.institution_down(institution_id, code=code, for_s=body.for_s)


def _show_accounts(plaid: SimulatedPlaid, item: Item, body: DeclareFault) -> None:
    hidden = [account.account_id for account in item.accounts.values() if account.hidden]
    for account_id in [body.account_id] if body.account_id else hidden:
        failure_modes.show_account(plaid, item, account_id)


def _account_id(item: Item, body: DeclareFault) -> str:
    return body.account_id or next(iter(item.accounts))


def _transaction_account_id(item: Item, body: DeclareFault) -> str:
    return body.account_id or item.transaction_accounts[0].account_id


_SET_ITEM: dict[str, Callable[[SimulatedPlaid, Item, DeclareFault], object]] = {
    "item_error": lambda plaid, item, body: plaid.break_item(
        item, body.code, reason=body.reason, silent=body.silent, late_s=body.late_s
    ),
    "permission_revoked": lambda plaid, item, body: plaid.break_item(
        item, "USER_PERMISSION_REVOKED", silent=body.silent, late_s=body.late_s
    ),
    "repair": lambda plaid, item, body: plaid.repair_item(item, silent=body.silent, late_s=body.late_s),
    "account_revoked": lambda plaid, item, body: failure_modes.revoke_account(plaid, item, _account_id(item, body)),
    "account_reissued": lambda plaid, item, body: failure_modes.reissue_account(
        plaid, item, _transaction_account_id(item, body)
    ),
    "account_offered": lambda plaid, item, _body: failure_modes.offer_account(plaid, item),
    "account_hidden": lambda _plaid, item, body: failure_modes.hide_account(item, _transaction_account_id(item, body)),
    "account_shown": _show_accounts,
    "balance_drift": lambda _plaid, item, body: failure_modes.drift(
        item, _account_id(item, body), Decimal(body.amount)
    ),
    "cursors_refused": lambda _plaid, item, _body: failure_modes.refuse_cursors(item),
    "cursors_mutating": lambda _plaid, item, _body: failure_modes.refuse_cursors(
        item, code="TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
    ),
    "history_unready": lambda plaid, item, body: failure_modes.unready_history(
        plaid, item, initial_s=body.initial_s, complete_s=body.complete_s
    ),
    "rows_removed": lambda plaid, item, body: failure_modes.remove_rows(plaid, item, body.count),
    "rows_returned": lambda plaid, item, body: failure_modes.return_rows(plaid, item, body.count),
    "unseen": lambda _plaid, item, body: failure_modes.add_unseen_changes(item, changes=body.count),
    "polled": lambda plaid, item, _body: plaid.poll(item),
    "ready": lambda plaid, item, _body: plaid.become_ready(item),
}
"""State changes of an Item by the kind of the fault."""


def _item(plaid: SimulatedPlaid, body: DeclareFault) -> Item:
    if body.item_id is None:
        raise ValueError("item_id is missing")
    return plaid.item(body.item_id)
