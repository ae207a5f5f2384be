"""Versions of the projections: which one the live tables are, what became of each rebuild, and a check for feeders.

The first revision creates the control tables as they are today: here they are added where they are missing.
"""

from alembic import op
from sqlalchemy.schema import CreateTable

from projections.store import tables
from runtime.postgres import control_tables as control

revision = "0006"
down_revision = "0005"

_REQUIRE = """
CREATE OR REPLACE FUNCTION tartan.require_version(wanted_fold integer, wanted_number integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    found record;
BEGIN
    SELECT number, fold INTO found FROM version;
    IF found.fold IS DISTINCT FROM wanted_fold OR found.number <> coalesce(wanted_number, found.number) THEN
        RAISE EXCEPTION USING ERRCODE = 'TV001', MESSAGE = concat(
            'these tables are version ', found.number, ' of fold ', found.fold, ', wanted is ',
            coalesce('version ' || wanted_number, 'any version'), ' of fold ', wanted_fold);
    END IF;
END $$"""


def upgrade() -> None:
    """Apply this revision."""
    op.execute(CreateTable(tables.version, if_not_exists=True))
    # What was live before there were versions was filled by the first fold.
    op.execute(f"INSERT INTO {tables.version.fullname} (number, fold) VALUES (1, 1)")
    op.execute(CreateTable(control.rebuilds, if_not_exists=True))
    op.execute(_REQUIRE)
