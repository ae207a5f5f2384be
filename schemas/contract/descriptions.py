"""Meaning of each field of the public events, for docs/events.md and the AsyncAPI document. Pure.

Separate from the schemas, which never change: a better description here needs no new version there.
"""

from collections.abc import Mapping

TRANSACTION_EVENT: Mapping[str, str] = {
    "id": "Tartan's own id of the transaction, 32 hex digits: the record's key. It outlives pending to posted, a new "
    "link of the same bank and every change of Plaid's id.",
    "tenant": "the tenant that the user belongs to",
    "user_id": "the application's own id of the user",
    "item_id": "Plaid's id of the Item that reports the transaction now",
    "version": "1 for the first event of this id, then one more with each event of it",
    "known_at": "when Tartan knew it: microseconds since 1970, UTC. Never goes back within a partition.",
    "changeset": "32 hex digits: the id of the update that caused it; `tartan explain` takes it",
    "changed": "names of the fields that differ between `previous` and `transaction`, and `user_fields.NAME` of user "
    "fields that changed; empty for added and removed",
    "transaction": "the bank's last values, also where the transaction was removed",
    "previous": "the bank's values before a modification; null for added and removed",
    "user_fields_json": "fields that the user set, a JSON object of field to value (category, notes, tags, name, "
    "display_date, hidden, splits); null where there never were any. They override the bank's values; a field that "
    "the user cleared is not in it.",
    "previous_user_fields_json": "the same before a modification; null for added and removed",
}

TRANSACTION: Mapping[str, str] = {
    "transaction_id": "Plaid's id; it changes when a pending transaction posts. Not a key: use `id`.",
    "account_id": "Plaid's id of the account; unique within `item_id`",
    "amount": "plain decimal text without exponent, as exact as the bank gave it; positive leaves the account",
    "iso_currency_code": "ISO 4217; null where the currency has none",
    "unofficial_currency_code": "where there is no ISO code; read as ISO's XXX where both are null",
    "pending": "true until the bank has booked it; amount, date and name of a pending one may still change",
    "pending_transaction_id": "Plaid's id of the pending transaction that this one is the posting of",
    "date": "YYYY-MM-DD: the day it was booked, or occurred where pending; the bank's day, without a time zone",
    "datetime": "ISO 8601 as Plaid wrote it, where the bank tells a time",
    "authorized_date": "YYYY-MM-DD: the day it was authorized",
    "authorized_datetime": "ISO 8601 as Plaid wrote it",
    "name": "the description as Plaid shows it",
    "merchant_name": "the merchant's name, cleaned by Plaid",
    "merchant_entity_id": "Plaid's id of the merchant, the same for all users",
    "original_description": "the bank's own text",
    "logo_url": "of the merchant",
    "website": "of the merchant",
    "category_primary": "personal_finance_category.primary; new values come without notice",
    "category_detailed": "personal_finance_category.detailed; new values come without notice",
    "category_confidence": "VERY_HIGH, HIGH, MEDIUM, LOW, UNKNOWN; new values come without notice",
    "category_version": "version of Plaid's taxonomy",
    "category_icon_url": "of the category",
    "payment_channel": "online, in store, other; new values come without notice",
    "transaction_code": "kind of the transaction, of European banks",
    "transaction_type": "Plaid's older division: place, digital, special, unresolved",
    "merchant_category_code": "MCC, four digits",
    "check_number": "of a check",
    "account_owner": "which of an account's cards it is, where the bank reports it",
    "location_json": "JSON as Plaid sent it: address, city, lat, lon, store_number, …",
    "counterparties_json": "JSON as Plaid sent it: an array of {name, type, entity_id, confidence_level, …}",
    "payment_meta_json": "JSON as Plaid sent it: payee, payer, reference_number, reason, …",
    "extra_json": "a JSON object of every field that Plaid sent and this schema has no name for; null where none",
}

BALANCE_EVENT: Mapping[str, str] = {
    "tenant": TRANSACTION_EVENT["tenant"],
    "user_id": TRANSACTION_EVENT["user_id"],
    "item_id": "Plaid's id of the Item that the account belongs to",
    "known_at": TRANSACTION_EVENT["known_at"],
    "changeset": TRANSACTION_EVENT["changeset"],
    "source": "`cached`: what came with a sync, as old as the bank's last contact with Plaid; `realtime`: asked of the "
    "bank at that moment",
    "account": "the account and its balances now",
    "previous": "the last values of the same source; null at the first report",
}

ACCOUNT: Mapping[str, str] = {
    "account_id": "Plaid's id of the account: the record's key",
    "persistent_account_id": "an id that outlives a new link, where the bank gives one",
    "name": "as the bank or the user calls it",
    "official_name": "the bank's official name of it",
    "mask": "the last digits of the account's number",
    "type": "depository, credit, loan, investment, other; new values come without notice",
    "subtype": "checking, savings, credit card, mortgage, …; new values come without notice",
    "holder_category": "personal or business",
    "verification_status": "of an account that Plaid verifies by other means than a login",
    "current": "decimal text: what is held (depository, investment) or owed (credit, loan); null where unknown",
    "available": "decimal text: what can be spent, pending included; null where the bank does not say",
    "limit": "decimal text: of a credit line or an overdraft",
    "iso_currency_code": "ISO 4217; null where the currency has none",
    "unofficial_currency_code": "where there is no ISO code",
    "last_updated_datetime": "ISO 8601: time of the bank's balance, where the bank reports it. Its change alone is "
    "no event.",
    "extra_json": TRANSACTION["extra_json"],
}

ITEM_EVENT: Mapping[str, str] = {
    "tenant": TRANSACTION_EVENT["tenant"],
    "user_id": TRANSACTION_EVENT["user_id"],
    "known_at": TRANSACTION_EVENT["known_at"],
    "changeset": TRANSACTION_EVENT["changeset"],
    "item": "the Item and its state now",
    "previous_state": "the state before; null where the Item is new",
}

ITEM: Mapping[str, str] = {
    "item_id": "Plaid's id of the Item, one login at one bank: the record's key",
    "state": "active, login_required, pending_disconnect, pending_expiration, revoked, gone, refused, unlinked; be "
    "ready for others",
    "code": "Plaid's error_code or webhook_code behind the state",
    "reason": "Plaid's error_code_reason, where there is one",
    "effective_at": "when a consent expires or a connection ends, as Plaid wrote it",
    "institution_id": "Plaid's id of the bank",
    "institution_name": "the bank's name",
    "history_status": "transactions_update_status: NOT_READY, INITIAL_UPDATE_COMPLETE, HISTORICAL_UPDATE_COMPLETE",
    "extra_json": TRANSACTION["extra_json"],
}

RECORDS: Mapping[str, Mapping[str, str]] = {
    "TransactionEvent": TRANSACTION_EVENT,
    "Transaction": TRANSACTION,
    "BalanceEvent": BALANCE_EVENT,
    "Account": ACCOUNT,
    "ItemEvent": ITEM_EVENT,
    "Item": ITEM,
}
"""By the record's name in its schema."""

EVENTS: Mapping[str, str] = {
    "transaction.added": "A transaction is there that readers did not have: new, or back after a removal "
    "(`version` above 1).",
    "transaction.modified": "The bank or the user changed it. Pending to posted is this: "
    "`id` stays, `transaction.transaction_id` and `pending` change.",
    "transaction.removed": "It is not there any more: the bank took it back, or it turned out to be another one that "
    "is known. `transaction` holds its last values.",
    "balance.updated": "The bank reports another balance, name or limit of an account, or the account for the first "
    "time.",
    "item.linked": "A user linked a bank; transactions and balances follow.",
    "item.unlinked": "The link ended. Its transactions stay as they are and are not removed by it; nothing more comes "
    "of this Item.",
    "item.state_changed": "The Item works again, or does not: see `item.state`. From login_required on, the user has "
    "to log in at the bank again.",
}
"""Meaning of each type of event."""
