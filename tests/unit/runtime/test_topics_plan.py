"""What a plan of topics says of each difference between table and cluster."""

from typing import Any

import pytest

from runtime.kafka.topics_plan import ExistingTopic, Plan, PlannedTopic, ReadProgress, plan
from schemas.topics import CHANGESETS, TRANSACTIONS, Topic

DAY_MS = 86_400_000
NO_LOSS = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "min.insync.replicas": "2"}
A_MONTH = {**NO_LOSS, "retention.ms": str(30 * DAY_MS)}


def wanted(topic: Topic) -> PlannedTopic:
    return PlannedTopic(topic, f"t.{topic.name}", 12, 3, NO_LOSS if topic is CHANGESETS else A_MONTH)


def found(topic: Topic, *, partitions: int = 12, replicas: int = 3, **settings: str) -> dict[str, ExistingTopic]:
    changed = {name.replace("_", "."): value for name, value in settings.items()}
    return {
        f"t.{topic.name}": ExistingTopic(partitions, partitions, replicas, {**wanted(topic).settings, **changed}, {})
    }


def planned(
    topic: Topic, there: dict[str, ExistingTopic], read: dict[str, ReadProgress] | None = None, **more: Any
) -> Plan:
    return plan([wanted(topic)], there, read or {}, **{"prefix": "t.", "address": "kafka:9092", **more})


def only(made: Plan) -> Any:
    [step] = made.steps
    return step


def test_a_topic_as_the_table_says_needs_nothing() -> None:
    assert planned(CHANGESETS, found(CHANGESETS), {"changesets": ReadProgress(100, 12)}) == Plan()


def test_a_missing_topic_is_created_with_all_its_settings() -> None:
    step = only(planned(TRANSACTIONS, {}))

    assert step.action == "create"
    assert step.line.startswith("+ t.transactions: create with 12 partitions, replication factor 3, cleanup.policy del")


@pytest.mark.parametrize("there", [6, 24])
def test_another_number_of_partitions_is_refused_whichever_way(there: int) -> None:
    step = only(planned(CHANGESETS, found(CHANGESETS, partitions=there)))

    assert (step.action, step.setting, step.old, step.new) == ("refuse", "partitions", str(there), "12")
    assert "ordered by key" in step.line


def test_another_number_of_partitions_than_postgres_keeps_positions_of_is_refused() -> None:
    for there in ({}, found(CHANGESETS)):
        assert only(planned(CHANGESETS, there, {"changesets": ReadProgress(0, 6)})).line.startswith(
            "! t.changesets: partitions 6 -> 12 refused: Postgres keeps positions of 6 partitions"
        )


def test_a_lost_topic_that_was_read_is_not_created_anew() -> None:
    step = only(planned(CHANGESETS, {}, {"changesets": ReadProgress(100, 12)}))

    assert step.action == "refuse"
    assert "Postgres has read it up to 100" in step.why
    assert only(planned(CHANGESETS, {}, {"changesets": ReadProgress(0, 12)})).action == "create"


def test_replicas_are_for_kafkas_own_tool_and_no_setting_asks_for_more_than_there_are() -> None:
    made = planned(CHANGESETS, found(CHANGESETS, replicas=1, min_insync_replicas="1"))

    replicas, in_sync = made.of("refuse")
    assert "kafka-reassign-partitions.sh --bootstrap-server kafka:9092" in replicas.line
    assert (in_sync.setting, in_sync.new) == ("min.insync.replicas", "2")
    assert len(made.steps) == 2


@pytest.mark.parametrize(
    ("settings", "deletes"),
    [
        ({"retention_ms": "-1"}, True),
        ({"retention_ms": str(31 * DAY_MS)}, True),
        ({"retention_ms": str(29 * DAY_MS)}, False),
        ({"cleanup_policy": "compact"}, True),
        ({"cleanup_policy": "compact,delete"}, False),
        ({"cleanup_policy": "compact", "retention_ms": str(DAY_MS)}, True),
        ({"retention_bytes": "1000"}, False),
        ({"min_insync_replicas": "1"}, False),
    ],
)
def test_a_change_that_deletes_records_says_so(settings: Any, deletes: bool) -> None:
    made = planned(TRANSACTIONS, found(TRANSACTIONS, **settings))

    assert {step.action for step in made.steps} == {"change"}
    assert {step.deletes for step in made.steps} == {deletes}
    assert all(("older than 30 days" in step.line) is deletes for step in made.steps)
    assert made.warnings == []


@pytest.mark.parametrize(
    "settings", [{"retention_ms": str(7 * DAY_MS)}, {"retention_bytes": "1000"}, {"cleanup_policy": "compact"}]
)
def test_truth_that_is_being_lost_is_a_warning_and_keeping_it_deletes_nothing(settings: Any) -> None:
    made = planned(CHANGESETS, found(CHANGESETS, **settings))

    [warning] = made.warnings
    assert "t.changesets IS LOSING RECORDS" in warning
    assert not only(made).deletes


def test_topics_of_our_prefix_that_nobody_knows_are_listed_and_others_are_not() -> None:
    there = {**found(CHANGESETS), "t.old": ExistingTopic(1, 1, 1, {}, {}), "other": ExistingTopic(1, 1, 1, {}, {})}

    assert planned(CHANGESETS, there) == Plan(unknown_topics=["t.old"])
    assert planned(CHANGESETS, there, prefix="").unknown_topics == []
