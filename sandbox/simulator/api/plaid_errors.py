"""Plaid's errors: their types, codes, HTTP status and words.

Source: Plaid documentation, Errors; the words are Plaid's where they are published.
"""

from typing import NamedTuple

from schemas.errors import TartanError


class Kind(NamedTuple):
    """What one error code always comes with."""

    type: str
    status: int
    message: str
    display: str | None = None


_LIMIT = "rate limit exceeded for attempts to access this endpoint. please try again later"
_INSTITUTION = "this institution is not currently responding to this request. please try again soon"
_CREDENTIALS = (
    "The username or password provided is incorrect. If you've recently updated your account with this "
    "institution, please retry and ensure you've entered the correct credentials."
)

KINDS = {
    "MISSING_FIELDS": Kind("INVALID_REQUEST", 400, "the following required fields are missing"),
    "UNKNOWN_FIELDS": Kind("INVALID_REQUEST", 400, "the following fields are not recognized by this endpoint"),
    "INVALID_FIELD": Kind("INVALID_REQUEST", 400, "a field is invalid"),
    "INVALID_BODY": Kind("INVALID_REQUEST", 400, "body could not be parsed as JSON"),
    "NOT_FOUND": Kind("INVALID_REQUEST", 404, "not found"),
    "SANDBOX_ONLY": Kind("INVALID_REQUEST", 400, "the endpoint is only available in the sandbox environment"),
    "INVALID_API_KEYS": Kind("INVALID_INPUT", 400, "invalid client_id or secret provided"),
    "INVALID_ACCESS_TOKEN": Kind("INVALID_INPUT", 400, "could not find matching access token"),
    "INVALID_PUBLIC_TOKEN": Kind("INVALID_INPUT", 400, "could not find matching public token"),
    "INVALID_LINK_TOKEN": Kind("INVALID_INPUT", 400, "could not find matching link token"),
    "INVALID_ACCOUNT_ID": Kind("INVALID_INPUT", 400, "failed to find requested account ID for requested item"),
    "INVALID_INSTITUTION": Kind("INVALID_INPUT", 400, "invalid institution_id provided"),
    "INVALID_PRODUCT": Kind("INVALID_INPUT", 400, "client is not authorized to access the requested products"),
    "INVALID_WEBHOOK_VERIFICATION_KEY_ID": Kind("INVALID_INPUT", 400, "invalid key_id provided"),
    "LAST_UPDATED_DATETIME_OUT_OF_RANGE": Kind(
        "INVALID_RESULT", 400, "the balances are older than min_last_updated_datetime"
    ),
    "SANDBOX_WEBHOOK_INVALID": Kind("SANDBOX_ERROR", 400, "webhook could not be fired"),
    "SANDBOX_PRODUCT_NOT_ENABLED": Kind("SANDBOX_ERROR", 400, "the requested product is not enabled for the Item"),
    "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION": Kind(
        "TRANSACTIONS_ERROR",
        400,
        "Underlying transaction data changed since last page was fetched. Please restart pagination from last update.",
    ),
    "ITEM_LOGIN_REQUIRED": Kind(
        "ITEM_ERROR",
        400,
        "the login details of this item have changed (credentials, MFA, or required user action) and a user "
        "login is required to update this information. use Link's update mode to restore the item to a good "
        "state",
    ),
    "ITEM_LOCKED": Kind(
        "ITEM_ERROR",
        400,
        "the account is locked. prompt the user to visit the institution's website and unlock their account",
        "The given account has been locked by the financial institution. Please visit your bank's website.",
    ),
    "ITEM_NOT_FOUND": Kind(
        "ITEM_ERROR",
        400,
        "The Item you requested cannot be found. This Item does not exist, has been previously removed via "
        "/item/remove, or has had access removed by the user.",
    ),
    "ITEM_NOT_SUPPORTED": Kind("ITEM_ERROR", 400, "this account is currently not supported"),
    "ITEM_CONCURRENTLY_DELETED": Kind("ITEM_ERROR", 400, "This item was deleted while the operation was in progress"),
    "USER_PERMISSION_REVOKED": Kind(
        "ITEM_ERROR", 400, "the holder of this account has revoked their permission for your application to access it"
    ),
    "ACCESS_NOT_GRANTED": Kind("ITEM_ERROR", 400, "access to this product was not granted for the account"),
    "NO_ACCOUNTS": Kind("ITEM_ERROR", 400, "no valid accounts exist for this Item"),
    "INVALID_CREDENTIALS": Kind("ITEM_ERROR", 400, "the provided credentials were not correct", _CREDENTIALS),
    "INVALID_MFA": Kind("ITEM_ERROR", 400, "the provided MFA response was not correct"),
    "INVALID_UPDATED_USERNAME": Kind("ITEM_ERROR", 400, "the username is not correct"),
    "PASSWORD_RESET_REQUIRED": Kind("ITEM_ERROR", 400, "the user must log in directly to reset their password"),
    "USER_SETUP_REQUIRED": Kind("ITEM_ERROR", 400, "the user must log in directly and take an action"),
    "PRODUCTS_NOT_SUPPORTED": Kind("ITEM_ERROR", 400, "the product is not supported by this institution"),
    "PRODUCT_NOT_READY": Kind("ITEM_ERROR", 400, "the requested product is not yet ready"),
    "PRODUCT_NOT_ENABLED": Kind("ITEM_ERROR", 400, "the product is not enabled for this Item"),
    "INSTITUTION_DOWN": Kind(
        "INSTITUTION_ERROR", 400, _INSTITUTION, "This financial institution is not currently responding."
    ),
    "INSTITUTION_NOT_RESPONDING": Kind(
        "INSTITUTION_ERROR", 400, _INSTITUTION, "This financial institution is not currently responding."
    ),
    "INSTITUTION_NOT_AVAILABLE": Kind("INSTITUTION_ERROR", 400, "this institution is not currently available"),
    "INSTITUTION_NO_LONGER_SUPPORTED": Kind("INSTITUTION_ERROR", 400, "this institution is no longer supported"),
    "UNSUPPORTED_RESPONSE": Kind("INSTITUTION_ERROR", 400, "the data returned by the institution is not supported"),
    "INTERNAL_SERVER_ERROR": Kind("API_ERROR", 500, "an unexpected error occurred"),
    "PLANNED_MAINTENANCE": Kind(
        "API_ERROR",
        503,
        "the Plaid API is temporarily unavailable due to planned maintenance. visit "
        "https://status.plaid.com/ for more information",
    ),
    "RATE_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "INSTITUTION_RATE_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "TRANSACTIONS_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "TRANSACTIONS_SYNC_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "TRANSACTIONS_REFRESH_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "ACCOUNTS_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "ACCOUNTS_BALANCE_GET_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "BALANCE_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
    "ITEM_GET_LIMIT": Kind("RATE_LIMIT_EXCEEDED", 429, _LIMIT),
}
"""Every code that the simulator can answer with; on demand any of them, for any endpoint."""

ITEM_STATES = frozenset(code for code, kind in KINDS.items() if kind.type == "ITEM_ERROR")
"""Codes that an Item can carry as its own error until it is repaired."""

OUTAGES = frozenset(code for code, kind in KINDS.items() if kind.type == "INSTITUTION_ERROR")
"""Codes that a bank's outage can be answered with."""


class PlaidFailure(TartanError):
    """A request that Plaid refuses; the endpoint answers it in Plaid's error shape."""

    def __init__(self, code: str, message: str | None = None) -> None:
        self.code = code
        self.kind = KINDS[code]
        self.text = message or self.kind.message
        super().__init__(f"{code}: {self.text}")


def error_body(failure: PlaidFailure, request_id: str) -> dict[str, object]:
    """Give the body of a refused request, keys in the order in which Plaid sends them."""
    return {
        "display_message": failure.kind.display,
        "documentation_url": _documentation(failure.kind.type),
        "error_code": failure.code,
        "error_code_reason": None,
        "error_message": failure.text,
        "error_type": failure.kind.type,
        "request_id": request_id,
        "suggested_action": None,
    }


def item_error(code: str, *, reason: str | None = None) -> dict[str, object]:
    """Give an error as it stands in an Item or a webhook: with a status, without a request id."""
    kind = KINDS[code]
    return {
        "display_message": kind.display,
        "documentation_url": _documentation(kind.type),
        "error_code": code,
        "error_code_reason": reason,
        "error_message": kind.message,
        "error_type": kind.type,
        "status": kind.status,
        "suggested_action": None,
    }


def _documentation(error_type: str) -> str:
    return f"https://plaid.com/docs/?ref=error#{error_type.lower().replace('_', '-')}s"
