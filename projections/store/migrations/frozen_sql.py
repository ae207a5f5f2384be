"""Run the frozen SQL of a revision: a later change of the tables' definitions must not change an earlier revision."""

from importlib import resources

from alembic import op


def execute(name: str) -> None:
    """Emit the statements of a file in `versions`."""
    sql = resources.files("projections.store.migrations.versions").joinpath(name).read_text("utf-8")
    op.execute(sql.replace(":", r"\:"))
