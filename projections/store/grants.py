"""Grant rights on a projection: the projector's role may only insert into the ledger, the eraser's only delete.

The login user of the stages owns the tables. The projector's sessions switch to the role `projector`, so that not even
a mistake of this code changes a transfer. Each migration grants the rights again, so new tables are covered.
"""

from typing import NamedTuple

from projections.store.tables import READS_SCHEMA
from runtime.postgres.pool import CONTROL_SCHEMA


class Roles(NamedTuple):
    """Names of the roles, which cannot log in and belong to the whole server."""

    projector: str = "tartan_projector"
    eraser: str = "tartan_eraser"


DEFAULT = Roles()


def statements(schema: str, roles: Roles) -> list[str]:
    """Return the statements that create missing roles and grant them their rights on a projection.

    Where the user may not create or grant roles, the error names the statements for an administrator.
    """
    projector, eraser = roles
    transfers = f"{schema}.ledger_transfers"
    return [
        *(_role(name) for name in roles),
        *(f"GRANT USAGE ON SCHEMA {name} TO {projector}" for name in (schema, READS_SCHEMA, CONTROL_SCHEMA)),
        *(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {projector}"
            for name in (schema, CONTROL_SCHEMA)
        ),
        *(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {name} TO {projector}" for name in (schema, CONTROL_SCHEMA)),
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {READS_SCHEMA} TO {projector}",
        f"REVOKE UPDATE, DELETE, TRUNCATE ON {transfers} FROM {projector}",
        f"GRANT USAGE ON SCHEMA {schema} TO {eraser}",
        f"GRANT SELECT, DELETE ON {transfers} TO {eraser}",
        f"""CREATE OR REPLACE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF TG_OP = 'DELETE' AND current_user = '{eraser}' THEN
                    RETURN NULL;
                END IF;
                RAISE EXCEPTION 'ledger transfers are only inserted, a correction is a reversal'
                    USING ERRCODE = 'restrict_violation';
            END $$""",
    ]


def _role(name: str) -> str:
    # Another database's migration may create the same role at the same moment.
    return f"""DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
                BEGIN
                    CREATE ROLE {name} NOLOGIN;
                EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
                END;
            END IF;
            IF NOT pg_has_role(current_user, '{name}', 'SET') THEN
                EXECUTE format('GRANT {name} TO %I WITH INHERIT FALSE, SET TRUE', current_user);
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE EXCEPTION 'an administrator has to run: CREATE ROLE {name} NOLOGIN; GRANT {name} TO %',
                quote_ident(current_user) USING ERRCODE = 'insufficient_privilege';
        END $$"""
