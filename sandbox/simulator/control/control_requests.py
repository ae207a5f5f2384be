"""What one may ask of the control API: its request bodies."""

from typing import Annotated, Any, Literal

import msgspec

ITEMS_AT_ONCE_MAX = 5_000
TRANSACTIONS_MAX = 200_000
"""History of one Item; at 2 kB a row this is 400 MB of memory."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=7 * 86_400)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class MakeItems(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/items`. With `count` above 1 the users are `user-1`, `user-2`, ...

    `relink` names an Item that is linked again under new ids; `exchange` shows the access token at once;
    `custom` is the configuration of one of Plaid's custom users, `{"override_accounts": [...]}`.
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


class MakeSteps(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/step`."""

    item_id: str | None = None
    changes: Positive = 1
    count: Positive = 1


class Live(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/activity`."""

    rate_per_s: float
    changes: Positive = 1


class Fire(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/webhooks`; without `item_ids`, every Item. `body` is sent as it is instead, to `url`."""

    item_ids: list[str] | None = None
    type: str = "TRANSACTIONS"
    code: str = "SYNC_UPDATES_AVAILABLE"
    extra: dict[str, Any] = {}
    times: Positive = 1
    body: dict[str, Any] | None = None
    url: str | None = None


class Link(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/link`: what a user does in Link with a link token."""

    link_token: str
    institution_id: str | None = None


class Rotate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/keys/rotate`."""

    expire_old: bool = True


class DeclareFault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/faults`: a fault of requests (`fail`), or of an Item or an institution.

    Units: `for_s` (an outage ends then), `late_s` (of the webhook that tells it), `initial_s` and `complete_s` (when
    a history that is read again is there) in seconds, scaled like all Plaid's waits; `count` rows or changes.
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


class DeclareWebhookFault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/fates`: what becomes of the next `times` webhooks of an Item and a code, or of any."""

    fate: Literal["lost", "repeated", "late"]
    item_id: str | None = None
    code: str | None = None
    times: Positive = 1
    delay_s: Seconds = 0.0


class SetRates(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/rates`: shares of what goes wrong by the seed; absent ones stay as they are."""

    webhooks_lost: Share | None = None
    webhooks_repeated: Share | None = None
    webhooks_delayed: Share | None = None
    webhooks_delay_max_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    sync_mutation: Share | None = None
    sync_failure: Share | None = None
    sync_other_failure: Share | None = None
    sync_failures: list[str] | None = None


class SetLimits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/limits`: a table of Plaid's, then single limits: endpoint -> [per Item or null, per client]."""

    table: Literal["off", "sandbox", "production"] | None = None
    limits: dict[str, tuple[Positive | None, Positive]] = {}
