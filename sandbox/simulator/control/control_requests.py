"""Define the request bodies of the control API."""

from typing import Annotated, Any, Literal

import msgspec

ITEMS_AT_ONCE_MAX = 5_000
TRANSACTIONS_MAX = 200_000
"""Rows of one Item's history; at 2 kB a row this is 400 MB of memory."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=7 * 86_400)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request body without unknown fields."""


class CreateItems(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/items`. With `count` above 1 the users are `user-1`, `user-2`, ...

    `relink`: an Item to link again under new ids. `exchange`: return the access token at once. `custom`: the
    configuration of one of Plaid's custom users, `{"override_accounts": [...]}`.
    """

    user: str = "user"
    count: Annotated[int, msgspec.Meta(ge=1, le=ITEMS_AT_ONCE_MAX)] = 1
    transactions: Annotated[int, msgspec.Meta(ge=0, le=TRANSACTIONS_MAX)] | None = None
    days: Annotated[int, msgspec.Meta(ge=1, le=730)] | None = None
    institution_id: str | None = None
    webhook: str | None = None
    ready: bool = True
    prerender: bool = True
    exchange: bool = False
    relink: str | None = None
    custom: dict[str, Any] | None = None


class RunSteps(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/step`."""

    item_id: str | None = None
    changes: Positive = 1
    count: Positive = 1


class SetActivity(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/activity`."""

    rate_per_s: float
    changes: Positive = 1


class SendWebhooks(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/webhooks`; without `item_ids`, for every Item. With `body`, this body to `url` instead."""

    item_ids: list[str] | None = None
    type: str = "TRANSACTIONS"
    code: str = "SYNC_UPDATES_AVAILABLE"
    extra: dict[str, Any] = {}
    times: Positive = 1
    body: dict[str, Any] | None = None
    url: str | None = None


class CompleteLink(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/link`: complete Link for a link token."""

    link_token: str
    institution_id: str | None = None


class RotateKey(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/keys/rotate`."""

    expire_old: bool = True


class DeclareFault(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/faults`: a fault of requests (`fail`), of an Item or of an institution.

    Units: seconds, multiplied by `time_scale`: `for_s` (duration of an outage), `late_s` (delay of its webhook),
    `initial_s` and `complete_s` (until the parts of a history that is read again are ready). `count`: rows or changes.
    """

    kind: Literal[
        "fail",
        "item_error",
        "repair",
        "permission_revoked",
        "account_revoked",
        "account_reissued",
        "account_offered",
        "account_hidden",
        "account_shown",
        "balance_drift",
        "cursors_refused",
        "cursors_mutating",
        "history_unready",
        "rows_removed",
        "rows_returned",
        "unseen",
        "polled",
        "ready",
        "institution_down",
        "institution_up",
    ] = "fail"
    code: str = "INTERNAL_SERVER_ERROR"
    reason: str | None = None
    endpoint: str = "/transactions/sync"
    item_id: str | None = None
    institution_id: str | None = None
    account_id: str | None = None
    page: Positive | None = None
    times: Positive | None = 1
    silent: bool = False
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0
    amount: str = "0"
    count: Positive = 1
    for_s: Seconds | None = None
    late_s: Seconds = 0.0
    initial_s: Seconds = 3.0
    complete_s: Seconds = 20.0


class DeclareWebhookFault(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/fates`: a fault of the next `times` webhooks, of any or of an Item and a code."""

    fate: Literal["lost", "repeated", "late"]
    item_id: str | None = None
    code: str | None = None
    times: Positive = 1
    delay_s: Seconds = 0.0


class SetRates(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/rates`: shares that fail by the seed; an absent field keeps its value."""

    webhooks_lost: Share | None = None
    webhooks_repeated: Share | None = None
    webhooks_delayed: Share | None = None
    webhooks_delay_max_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    sync_mutation: Share | None = None
    sync_failure: Share | None = None
    sync_other_failure: Share | None = None
    sync_failures: list[str] | None = None


class SetLimits(Request, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/limits`: a table, then single limits: endpoint -> [per Item or null, per client]."""

    table: Literal["off", "sandbox", "production"] | None = None
    limits: dict[str, tuple[Positive | None, Positive]] = {}
