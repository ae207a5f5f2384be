"""Reasons for which a webhook is refused: a closed set, counted by name."""

# ruff: noqa: S105 - names of reasons that contain "token" are no passwords

from enum import StrEnum

from schemas.errors import Quarantine


class Reason(StrEnum):
    """Reason of a refusal. The values are metric labels and part of the answers."""

    TOKEN_MISSING = "token_missing"
    TOKEN_REPEATED = "token_repeated"
    TOKEN_TOO_LONG = "token_too_long"
    TOKEN_MALFORMED = "token_malformed"
    HEADER_MALFORMED = "header_malformed"
    HEADER_FORBIDDEN = "header_forbidden"
    ALGORITHM = "algorithm_not_es256"
    TYPE = "type_not_jwt"
    KEY_ID = "key_id_malformed"
    CLAIMS_MALFORMED = "claims_malformed"
    BODY_DIFFERS = "body_differs"
    KEY_UNKNOWN = "key_unknown"
    KEY_EXPIRED = "key_expired"
    KEY_UNUSABLE = "key_unusable"
    SIGNATURE_MALFORMED = "signature_malformed"
    SIGNATURE_WRONG = "signature_wrong"
    STALE = "stale"
    FUTURE = "future"
    ENVIRONMENT = "environment_differs"


class WebhookRefused(Quarantine):
    """A webhook is refused. The message is the reason alone: it never repeats bytes of the request."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason
