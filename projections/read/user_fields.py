"""Names and rules of the fields that a user sets on a transaction, for the gateway."""

from projections.ledger.user_field_values import CATEGORY as CATEGORY
from projections.ledger.user_field_values import DISPLAY_DATE as DISPLAY_DATE
from projections.ledger.user_field_values import HIDDEN as HIDDEN
from projections.ledger.user_field_values import NAME as NAME
from projections.ledger.user_field_values import NOTES as NOTES
from projections.ledger.user_field_values import SPLITS as SPLITS
from projections.ledger.user_field_values import TAGS as TAGS
from projections.ledger.user_field_values import splits as splits
