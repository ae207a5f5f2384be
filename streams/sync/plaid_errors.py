"""Classify Plaid's errors, and derive an Item's state from them. Core.

Source: PLAID.md 1.5 and 1.9. Programs branch on `error_code`, never on the HTTP status or the message.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import OUTAGE_CODES
from runtime.scheduler.types import KnownHint
from schemas.events import ACTIVE, GONE, LOGIN_REQUIRED, PENDING_DISCONNECT, PENDING_EXPIRATION, REFUSED, REVOKED


class ErrorClass(Enum):
    """Class of a Plaid error, by the reaction to it. The values are labels of the metric `tartan_plaid_refusals`."""

    MUTATION = "restart"
    """The data changed between two pages: restart the update from its first cursor."""
    TRANSIENT = "soon"
    RATE_LIMIT = "limited"
    OUTAGE = "hours"
    """Retry in hours; a webhook ends the wait."""
    USER_ACTION = "user"
    """Stop until the user has acted."""
    GONE = "gone"
    """Stop: the Item does not exist any more."""
    REJECTED = "never"
    """Stop until an operator has acted."""
    CURSOR = "cursor"
    """The cursor is refused: a full resync is needed."""
    NOT_READY = "not_ready"


_CODES = {
    ErrorClass.MUTATION: ("TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION",),
    ErrorClass.TRANSIENT: ("INTERNAL_SERVER_ERROR", "PLANNED_MAINTENANCE"),
    # Wrong keys concern every Item alike: no Item is stopped for them.
    ErrorClass.OUTAGE: (*OUTAGE_CODES, "INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "UNAUTHORIZED_ACCESS"),
    ErrorClass.USER_ACTION: (
        *("ITEM_LOGIN_REQUIRED", "ITEM_LOCKED", "PASSWORD_RESET_REQUIRED", "USER_SETUP_REQUIRED", "NO_ACCOUNTS"),
        *("ACCESS_NOT_GRANTED", "INVALID_CREDENTIALS", "INVALID_MFA", "INVALID_UPDATED_USERNAME"),
    ),
    ErrorClass.GONE: ("ITEM_NOT_FOUND", "USER_PERMISSION_REVOKED", "INVALID_ACCESS_TOKEN", "ITEM_CONCURRENTLY_DELETED"),
    ErrorClass.REJECTED: (
        *("INSTITUTION_NO_LONGER_SUPPORTED", "UNSUPPORTED_RESPONSE", "ITEM_NOT_SUPPORTED", "PRODUCTS_NOT_SUPPORTED"),
        "PRODUCT_NOT_ENABLED",
    ),
    ErrorClass.NOT_READY: ("PRODUCT_NOT_READY",),
    ErrorClass.RATE_LIMIT: ("RATE_LIMIT", "INSTITUTION_RATE_LIMIT"),
}
_CLASSES = {code: error_class for error_class, codes in _CODES.items() for code in codes}
_STATES = {ErrorClass.USER_ACTION: LOGIN_REQUIRED, ErrorClass.GONE: GONE, ErrorClass.REJECTED: REFUSED}
STOPPING = frozenset(_STATES)
"""Classes after which an Item is in another state, and is not synced until somebody has acted."""
BROKEN = frozenset({ErrorClass.USER_ACTION, ErrorClass.GONE})
"""Classes of errors that concern the Item itself and not the request."""
REMOVED_CODES = frozenset({"ITEM_NOT_FOUND", "ITEM_CONCURRENTLY_DELETED"})
"""Codes of /item/remove after which the Item certainly does not exist any more."""
TOKEN_UNKNOWN = "INVALID_ACCESS_TOKEN"  # noqa: S105 - an error code
"""Code for a removed Item's token, and also for each token of a living Item where the API keys are wrong or those of
another environment."""

HINTED_STATES = {"PENDING_DISCONNECT": PENDING_DISCONNECT, "PENDING_EXPIRATION": PENDING_EXPIRATION}
"""States that only a webhook reports, by its code: /item/get cannot confirm them."""
NEW_ACCOUNTS = "NEW_ACCOUNTS_AVAILABLE"
REPAIRED = "LOGIN_REPAIRED"


class ItemState(NamedTuple):
    """State of an Item and the code behind it. `from_webhook`: appended even where the state was known before."""

    state: str
    code: str | None = None
    reason: str | None = None
    effective_at: str | None = None
    from_webhook: bool = False


def classify(error_type: str, error_code: str, *, with_cursor: bool = False) -> ErrorClass:
    """Return the class of an error; an unknown code is transient, because Plaid adds codes without notice.

    `with_cursor`: the request carried a cursor, so a field that Plaid refuses is that cursor.
    """
    if error_type == "RATE_LIMIT_EXCEEDED":
        return ErrorClass.RATE_LIMIT
    if error_code in _CLASSES:
        return _CLASSES[error_code]
    if error_code == "INVALID_FIELD" and with_cursor:
        return ErrorClass.CURSOR
    return ErrorClass.REJECTED if error_type == "INVALID_REQUEST" else ErrorClass.TRANSIENT


def stopped_state(error_class: ErrorClass, error_code: str, reason: str | None) -> ItemState:
    """Return the state of an Item after an error of a class in STOPPING."""
    state = REVOKED if error_code == "USER_PERMISSION_REVOKED" else _STATES[error_class]
    return ItemState(state, error_code, reason)


def item_state(
    answer: ItemAnswer, hints: Sequence[KnownHint], *, known_state: str | None, known_code: str | None
) -> ItemState:
    """Return an Item's state from /item/get, and from hints only where /item/get cannot report it.

    So an ERROR webhook that arrives after the repair stops nothing.
    """
    if answer.error_code is not None and _CLASSES.get(answer.error_code) in STOPPING:
        return stopped_state(_CLASSES[answer.error_code], answer.error_code, answer.error_reason)
    # A state that only webhooks report lasts where no hint led to this request.
    lasts = known_state in HINTED_STATES.values() or (known_state == ACTIVE and not hints)
    state = ItemState(known_state or ACTIVE, known_code) if lasts else ItemState(ACTIVE)
    for hint in hints:
        if hint.code in HINTED_STATES:
            if (state.state, state.code) == (HINTED_STATES[hint.code], hint.code) and not hint.fields:
                continue  # a repeat without fields keeps the reason and date of the first one
            ends_at = hint.fields.get("disconnect_time") or hint.fields.get("consent_expiration_time")
            state = ItemState(
                HINTED_STATES[hint.code],
                hint.code,
                hint.fields.get("reason"),
                ends_at or answer.consent_expiration_time,
                from_webhook=True,
            )
        elif hint.code == REPAIRED:
            state = ItemState(ACTIVE)
        elif hint.code == NEW_ACCOUNTS and state.state == ACTIVE:
            state = ItemState(ACTIVE, NEW_ACCOUNTS, from_webhook=True)
    return state
