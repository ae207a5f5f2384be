"""A hundred seeds and more: whatever goes wrong, each run ends true. More with TARTAN_SIMULATION_SEEDS."""

import os
from collections.abc import Iterator

import pytest

from sandbox.simulation import run_seeds as command
from sandbox.simulation.engine import postgres
from sandbox.simulation.run import Outcome, simulate
from sandbox.simulation.run_seeds import POSTGRES_EVERY, SimulateOptions, run_seeds, run_simulate

SEEDS = int(os.environ.get("TARTAN_SIMULATION_SEEDS", "120"))
FAULTS = (
    "account_hidden",
    "append_in_doubt_later",
    "append_in_doubt_never",
    "append_in_doubt_now",
    "broker_away",
    "crash",
    "cursor_refused",
    "edit",
    "follower_lag",
    "history_unready",
    "html",
    "ingest_away",
    "institution_down",
    "item_quarantined",
    "item_redriven",
    "login_required",
    "many_removed",
    "not_ready",
    "permission_revoked",
    "plaid_institution_down",
    "plaid_internal_server_error",
    "plaid_invalid_access_token",
    "plaid_invalid_field",
    "plaid_item_login_required",
    "plaid_item_not_found",
    "plaid_item_not_supported",
    "plaid_planned_maintenance",
    "plaid_product_not_ready",
    "plaid_transactions_sync_limit",
    "plaid_transactions_sync_mutation_during_pagination",
    "plaid_user_permission_revoked",
    "rebalance",
    "redrive",
    "refresh_asked",
    "removals_approved",
    "repaired_before_told",
    "reset",
    "sigstop",
    "some_returned",
    "store_answer_lost",
    "store_away",
    "timeout",
    "truncated",
    "unlink",
    "update_in_parts",
    "user_unreadable",
    "webhook_answer_lost",
    "webhook_failed",
    "webhook_late",
    "webhook_lost",
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import structlog

    before = structlog.get_config()
    command.quiet()
    yield
    structlog.configure(**before)


@pytest.mark.timeout(1_800)
def test_every_seed_ends_true_and_every_fault_happens() -> None:
    failed: list[Outcome] = []

    tally = run_seeds(range(1, SEEDS + 1), on_failure=failed.append)

    assert not failed, "\n".join(
        f"tartan simulate --seed {one.seed} --trace\n  {one.problems[0]}\n    " + "\n    ".join(one.about)
        for one in failed[:3]
    )
    assert tally.runs == SEEDS
    assert tally.postgres_runs == SEEDS // POSTGRES_EVERY
    assert [kind for kind in FAULTS if not tally.faults[kind]] == []


def test_a_seed_repeats_itself_to_the_last_event() -> None:
    first, second = simulate(7), simulate(7)

    assert first.trace == second.trace
    assert first.faults == second.faults
    assert simulate(8).trace != first.trace


def test_a_seed_on_postgres_repeats_itself_to_the_last_event() -> None:
    outcomes = []
    with postgres.run_databases() as databases:
        for _ in range(2):
            with databases.database() as dsn:
                outcomes.append(simulate(20, dsn=dsn))

    first, second = outcomes
    assert first.problems == []
    assert first.claims > 10
    assert (first.trace, first.faults) == (second.trace, second.faults)


def test_the_command_ends_with_a_summary_and_fails_only_with_failures(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_simulate(SimulateOptions(seeds=2, json=True))

    last = capsys.readouterr().out.splitlines()[-1]
    assert code == 0
    assert last.startswith('{"runs": 2, "failures": 0, "faults": {')
