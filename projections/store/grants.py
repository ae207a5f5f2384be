"""Who may do what: the role that projects only adds to the ledger, the role that erases only takes from it.

The login user of the stages owns the tables; the projector's sessions take on `projector`, so that not even a mistake
of this code changes a transfer. Rights are given again at each migration: what a revision adds is covered.
"""

from typing import NamedTuple

from projections.store.tables import READS_SCHEMA
from runtime.postgres.pool import CONTROL_SCHEMA


class Roles(NamedTuple):
    """Roles that cannot log in; they belong to the whole server."""

    projector: str = "tartan_projector"
    eraser: str = "tartan_eraser"


DEFAULT = Roles()


def statements(schema: str, roles: Roles) -> list[str]:
    """The statements that make the roles where they are missing, and give them their rights on a projection.

    A user who may not make roles or join them is told what somebody has to do who may.
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
    # Another database's migration may make the same role at the same moment.
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
