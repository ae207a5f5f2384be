"""Define Plaid's errors: types, codes, HTTP status and messages.

Source: Plaid documentation, Errors; the messages are Plaid's where they are published.
"""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.errors import TartanError


class Kind(NamedTuple):
    """The constant parts of an error code."""

    type: str
    status: int
    message: str
    display: str | None = None


_LIMIT = "rate limit exceeded for attempts to access this endpoint. please try again later"
_INSTITUTION = "this institution is not currently responding to this request. please try again soon"
_NO_RESPONSE = "This financial institution is not currently responding."
_MESSAGES: Mapping[str, Mapping[str, str]] = {
    "INVALID_REQUEST": {
        "MISSING_FIELDS": "the following required fields are missing",
        "UNKNOWN_FIELDS": "the following fields are not recognized by this endpoint",
        "INVALID_FIELD": "a field is invalid",
        "INVALID_BODY": "body could not be parsed as JSON",
        "NOT_FOUND": "not found",
        "SANDBOX_ONLY": "the endpoint is only available in the sandbox environment",
    },
    "INVALID_INPUT": {
        "INVALID_API_KEYS": "invalid client_id or secret provided",
        "INVALID_ACCESS_TOKEN": "could not find matching access token",
        "INVALID_PUBLIC_TOKEN": "could not find matching public token",
        "INVALID_LINK_TOKEN": "could not find matching link token",
        "INVALID_ACCOUNT_ID": "failed to find requested account ID for requested item",
        "INVALID_INSTITUTION": "invalid institution_id provided",
        "INVALID_PRODUCT": "client is not authorized to access the requested products",
        "INVALID_WEBHOOK_VERIFICATION_KEY_ID": "invalid key_id provided",
    },
    "INVALID_RESULT": {"LAST_UPDATED_DATETIME_OUT_OF_RANGE": "the balances are older than min_last_updated_datetime"},
    "SANDBOX_ERROR": {
        "SANDBOX_WEBHOOK_INVALID": "webhook could not be fired",
        "SANDBOX_PRODUCT_NOT_ENABLED": "the requested product is not enabled for the Item",
    },
    "TRANSACTIONS_ERROR": {
        "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION": "Underlying transaction data changed since last page was "
        "fetched. Please restart pagination from last update."
    },
    "ITEM_ERROR": {
        "ITEM_LOGIN_REQUIRED": "the login details of this item have changed (credentials, MFA, or required user "
        "action) and a user login is required to update this information. use Link's update mode to restore the item "
        "to a good state",
        "ITEM_LOCKED": "the account is locked. prompt the user to visit the institution's website and unlock their "
        "account",
        "ITEM_NOT_FOUND": "The Item you requested cannot be found. This Item does not exist, has been previously "
        "removed via /item/remove, or has had access removed by the user.",
        "ITEM_NOT_SUPPORTED": "this account is currently not supported",
        "ITEM_CONCURRENTLY_DELETED": "This item was deleted while the operation was in progress",
        "USER_PERMISSION_REVOKED": "the holder of this account has revoked their permission for your application to "
        "access it",
        "ACCESS_NOT_GRANTED": "access to this product was not granted for the account",
        "NO_ACCOUNTS": "no valid accounts exist for this Item",
        "INVALID_CREDENTIALS": "the provided credentials were not correct",
        "INVALID_MFA": "the provided MFA response was not correct",
        "INVALID_UPDATED_USERNAME": "the username is not correct",
        "PASSWORD_RESET_REQUIRED": "the user must log in directly to reset their password",
        "USER_SETUP_REQUIRED": "the user must log in directly and take an action",
        "PRODUCTS_NOT_SUPPORTED": "the product is not supported by this institution",
        "PRODUCT_NOT_READY": "the requested product is not yet ready",
        "PRODUCT_NOT_ENABLED": "the product is not enabled for this Item",
    },
    "INSTITUTION_ERROR": {
        "INSTITUTION_DOWN": _INSTITUTION,
        "INSTITUTION_NOT_RESPONDING": _INSTITUTION,
        "INSTITUTION_NOT_AVAILABLE": "this institution is not currently available",
        "INSTITUTION_NO_LONGER_SUPPORTED": "this institution is no longer supported",
        "UNSUPPORTED_RESPONSE": "the data returned by the institution is not supported",
    },
    "API_ERROR": {
        "INTERNAL_SERVER_ERROR": "an unexpected error occurred",
        "PLANNED_MAINTENANCE": "the Plaid API is temporarily unavailable due to planned maintenance. visit "
        "https://status.plaid.com/ for more information",
    },
    "RATE_LIMIT_EXCEEDED": {
        "RATE_LIMIT": _LIMIT,
        "INSTITUTION_RATE_LIMIT": _LIMIT,
        "TRANSACTIONS_LIMIT": _LIMIT,
        "TRANSACTIONS_SYNC_LIMIT": _LIMIT,
        "TRANSACTIONS_REFRESH_LIMIT": _LIMIT,
        "ACCOUNTS_LIMIT": _LIMIT,
        "ACCOUNTS_BALANCE_GET_LIMIT": _LIMIT,
        "BALANCE_LIMIT": _LIMIT,
        "ITEM_GET_LIMIT": _LIMIT,
    },
}
_STATUSES = {"NOT_FOUND": 404, "INTERNAL_SERVER_ERROR": 500, "PLANNED_MAINTENANCE": 503}
_DISPLAYS = {
    "ITEM_LOCKED": "The given account has been locked by the financial institution. Please visit your bank's website.",
    "INVALID_CREDENTIALS": "The username or password provided is incorrect. If you've recently updated your account "
    "with this institution, please retry and ensure you've entered the correct credentials.",
    "INSTITUTION_DOWN": _NO_RESPONSE,
    "INSTITUTION_NOT_RESPONDING": _NO_RESPONSE,
}
KINDS = {
    code: Kind(
        error_type,
        _STATUSES.get(code, 429 if error_type == "RATE_LIMIT_EXCEEDED" else 400),
        message,
        _DISPLAYS.get(code),
    )
    for error_type, messages in _MESSAGES.items()
    for code, message in messages.items()
}
"""Every code that the simulator can answer with; on demand any of them, for any endpoint."""

ITEM_STATES = frozenset(_MESSAGES["ITEM_ERROR"])
"""Codes that an Item can have as its own error until it is repaired."""

OUTAGES = frozenset(_MESSAGES["INSTITUTION_ERROR"])
"""Codes of a bank's outage."""


class PlaidFailure(TartanError):
    """A request that Plaid refuses; the dispatcher answers it in Plaid's error shape."""

    def __init__(self, code: str, message: str | None = None) -> None:
        self.code = code
        self.kind = KINDS[code]
        self.text = message or self.kind.message
        super().__init__(f"{code}: {self.text}")


def error_body(failure: PlaidFailure, request_id: str) -> dict[str, object]:
    """Return the body of a refused request, keys in Plaid's order."""
    return _error(failure.code, failure.text, reason=None, origin={"request_id": request_id})


def item_error(code: str, *, reason: str | None = None) -> dict[str, object]:
    """Return the error of an Item or a webhook: with a status, without a request id."""
    return _error(code, KINDS[code].message, reason=reason, origin={"status": KINDS[code].status})


def _error(code: str, message: str, *, reason: str | None, origin: dict[str, object]) -> dict[str, object]:
    kind = KINDS[code]
    return {
        "display_message": kind.display,
        "documentation_url": f"https://plaid.com/docs/?ref=error#{kind.type.lower().replace('_', '-')}s",
        "error_code": code,
        "error_code_reason": reason,
        "error_message": message,
        "error_type": kind.type,
        **origin,
        "suggested_action": None,
    }
