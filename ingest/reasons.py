"""Why a webhook is refused: a closed set, counted by name."""

# ruff: noqa: S105 - names of reasons that speak of tokens are no passwords

from enum import StrEnum

from schemas.errors import Quarantine


class Reason(StrEnum):
    """What is wrong with a webhook. The values are labels of metrics and words of answers."""

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


class Refused(Quarantine):
    """This webhook is not taken. The message is the reason alone: it never repeats what was sent."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason
