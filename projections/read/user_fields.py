"""Names and rules of the fields that a user sets on a transaction, for the gateway."""

from projections.ledger.override_rules import CATEGORY as CATEGORY
from projections.ledger.override_rules import DISPLAY_DATE as DISPLAY_DATE
from projections.ledger.override_rules import HIDDEN as HIDDEN
from projections.ledger.override_rules import NAME as NAME
from projections.ledger.override_rules import NOTES as NOTES
from projections.ledger.override_rules import SPLITS as SPLITS
from projections.ledger.override_rules import TAGS as TAGS
from projections.ledger.override_rules import splits as splits
