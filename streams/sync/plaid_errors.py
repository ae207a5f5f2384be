"""What Plaid's codes ask for: the action after an error, and the state of an Item. Core.

Source: PLAID.md 1.5 and 1.9. Programs branch on `error_code`, never on the HTTP status or the message.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple

from runtime.plaid.models import OUTAGE_CODES, ItemAnswer
from runtime.scheduler.types import KnownHint
from schemas.events import ACTIVE, GONE, LOGIN_REQUIRED, PENDING_DISCONNECT, PENDING_EXPIRATION, REFUSED, REVOKED


class Action(Enum):
    """What to do after an error of Plaid's."""

    RESTART = "restart the loop from its first cursor"
    SOON = "try again soon"
    LIMITED = "wait for the rate limit's minute"
    HOURS = "try again in hours"
    USER = "stop until the user has acted"
    GONE = "stop, the Item is gone"
    NEVER = "stop, an operator has to look"
    CURSOR = "the cursor is broken"
    NOT_READY = "the history is not there yet"


_CODES: dict[Action, frozenset[str]] = {
    Action.RESTART: frozenset({"TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"}),
    Action.SOON: frozenset({"INTERNAL_SERVER_ERROR", "PLANNED_MAINTENANCE"}),
    # Wrong keys concern every Item alike: no Item is stopped for them.
    Action.HOURS: frozenset({*OUTAGE_CODES, "INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "UNAUTHORIZED_ACCESS"}),
    Action.USER: frozenset(
        {
            "ITEM_LOGIN_REQUIRED",
            "ITEM_LOCKED",
            "PASSWORD_RESET_REQUIRED",
            "USER_SETUP_REQUIRED",
            "ACCESS_NOT_GRANTED",
            "INVALID_CREDENTIALS",
            "INVALID_MFA",
            "INVALID_UPDATED_USERNAME",
            "NO_ACCOUNTS",
        }
    ),
    Action.GONE: frozenset(
        {"ITEM_NOT_FOUND", "USER_PERMISSION_REVOKED", "INVALID_ACCESS_TOKEN", "ITEM_CONCURRENTLY_DELETED"}
    ),
    Action.NEVER: frozenset(
        {
            "INSTITUTION_NO_LONGER_SUPPORTED",
            "UNSUPPORTED_RESPONSE",
            "ITEM_NOT_SUPPORTED",
            "PRODUCTS_NOT_SUPPORTED",
            "PRODUCT_NOT_ENABLED",
        }
    ),
    Action.NOT_READY: frozenset({"PRODUCT_NOT_READY"}),
}
_ACTIONS = {code: action for action, codes in _CODES.items() for code in codes}
_STATES = {Action.USER: LOGIN_REQUIRED, Action.GONE: GONE, Action.NEVER: REFUSED}
STOPPING = frozenset(_STATES)
"""Actions after which an Item is in another state, and not synced before somebody acted."""
_REMOVED_CODES = frozenset({"ITEM_NOT_FOUND", "ITEM_CONCURRENTLY_DELETED"})
_LIMIT_CODES = frozenset({"RATE_LIMIT", "INSTITUTION_RATE_LIMIT"})

HINTED_STATES = {"PENDING_DISCONNECT": PENDING_DISCONNECT, "PENDING_EXPIRATION": PENDING_EXPIRATION}
"""Webhook codes whose state /item/get cannot confirm: their word is taken."""
NEW_ACCOUNTS = "NEW_ACCOUNTS_AVAILABLE"
REPAIRED = "LOGIN_REPAIRED"


class ItemState(NamedTuple):
    """An Item's state and the code behind it. `told`: a webhook's word, to be told even where the state was known."""

    state: str
    code: str | None = None
    reason: str | None = None
    effective_at: str | None = None
    told: bool = False


def action(error_type: str, error_code: str, *, with_cursor: bool = False) -> Action:
    """What to do after an error. An unknown code is tried again: codes are added without notice.

    `with_cursor`: the request carried one, so a field that Plaid does not take is that cursor.
    """
    if error_type == "RATE_LIMIT_EXCEEDED" or error_code in _LIMIT_CODES:
        return Action.LIMITED
    if error_code in _ACTIONS:
        return _ACTIONS[error_code]
    if error_code == "INVALID_FIELD" and with_cursor:
        return Action.CURSOR
    if error_type == "INVALID_REQUEST":
        return Action.NEVER
    return Action.SOON


def is_removed(error_code: str) -> bool:
    """Whether a refusal of /item/remove says that there is no such Item any more, which is what was wanted.

    INVALID_ACCESS_TOKEN does not (see `is_token_unknown`): wrong keys or another environment are answered so for
    Items that live and cost.
    """
    return error_code in _REMOVED_CODES


def is_token_unknown(error_code: str) -> bool:
    """Whether Plaid knows the token for none: its Item is removed, or the keys are another environment's."""
    return error_code == "INVALID_ACCESS_TOKEN"


def refused_state(action: Action, error_code: str, reason: str | None) -> ItemState:
    """The state of an Item whose request was refused so that one of STOPPING follows."""
    if error_code == "USER_PERMISSION_REVOKED":
        return ItemState(REVOKED, error_code, reason)
    return ItemState(_STATES[action], error_code, reason)


def bank_updated_at(answer: ItemAnswer) -> datetime | None:
    """When Plaid last read the bank with success, as /item/get says; None where it says nothing that is a time."""
    try:
        at = datetime.fromisoformat(answer.last_successful_update or "")
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def item_state(
    answer: ItemAnswer, hints: Sequence[KnownHint], *, known_state: str | None, known_code: str | None
) -> ItemState:
    """An Item's state from what /item/get says now, and from hints only where it cannot say.

    So an ERROR webhook that arrives after the repair stops nothing.
    """
    if answer.error_code is not None and _ACTIONS.get(answer.error_code) in STOPPING:
        return refused_state(_ACTIONS[answer.error_code], answer.error_code, answer.error_reason)
    # What only webhooks tell outlasts a question that no webhook led to.
    kept = known_state in HINTED_STATES.values() or (known_state == ACTIVE and not hints)
    state = ItemState(known_state or ACTIVE, known_code) if kept else ItemState(ACTIVE)
    for hint in hints:
        if hint.code in HINTED_STATES:
            state = _hinted(hint, answer)
        elif hint.code == REPAIRED:
            state = ItemState(ACTIVE)
        elif hint.code == NEW_ACCOUNTS and state.state == ACTIVE:
            state = ItemState(ACTIVE, NEW_ACCOUNTS, told=True)
    return state


def _hinted(hint: KnownHint, answer: ItemAnswer) -> ItemState:
    ends = hint.fields.get("disconnect_time") or hint.fields.get("consent_expiration_time")
    return ItemState(
        HINTED_STATES[hint.code],
        hint.code,
        hint.fields.get("reason"),
        ends or answer.consent_expiration_time,
        told=True,
    )
