"""Reasons why an Item is not synced any more, each with its remedy."""

LOGIN_REQUIRED, REVOKED, GONE = "login_required", "revoked", "gone"
REFUSED, QUARANTINED, ERASED, UNLINKED = "refused", "quarantined", "erased", "unlinked"

REMEDIES = {
    LOGIN_REQUIRED: "The user has to sign in at the bank again: open Link in update mode for this Item. "
    "It then goes on by itself.",
    REVOKED: "The user took the permission back at the bank or at Plaid. Only a new link brings the data again.",
    GONE: "Plaid does not know the Item's token. If that is so for many Items, TARTAN_PLAID_* are of another "
    "environment; otherwise only a new link brings the data again.",
    REFUSED: "Plaid refuses this Item for good; the error's code says why. Once that is mended (a product enabled, a "
    "contract signed), ask for a sync: it is tried again.",
    QUARANTINED: "A record of this Item could not be processed, or an operator set it aside; nothing is lost. An "
    "operator looks (tartan items show, tartan dead-letters list) and frees it: tartan items redrive.",
    ERASED: "The user was erased, and nothing of them is asked for any more.",
    UNLINKED: "The Item is unlinked. Link it again to go on.",
}


def remedy(stopped: str | None) -> str | None:
    """Return the remedy of a stop reason; None without one."""
    return REMEDIES.get(stopped or "")
