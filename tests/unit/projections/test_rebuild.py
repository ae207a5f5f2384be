"""What a rebuild decides without a database: work dealt out, reasons against it, how differences are told."""

from hypothesis import given
from hypothesis import strategies as st

from projections.rebuild import compare_versions
from projections.rebuild.differences import Difference, RowDigest, Subject, TableDifference, notes, with_items
from projections.rebuild.preflight import LogExtent, Versions, log_problems, topic_problems, version_problems
from projections.rebuild.workers import assign_partitions
from projections.store import tables
from runtime.kafka.topics_plan import Step

TOPIC = "t.changesets"
ONE_BEGUN = Versions(live=1, following=1, old=None, positions={0: 10}, reached={0: 3})


@given(st.dictionaries(st.integers(0, 50), st.integers(1, 1_000), min_size=1, max_size=20), st.integers(1, 8))
def test_each_partition_is_dealt_once_and_no_worker_has_much_more_than_its_share(
    left: dict[int, int], workers: int
) -> None:
    hands = assign_partitions(left, workers)

    assert sorted(number for hand in hands for number in hand) == sorted(left)
    assert len(hands) == min(workers, len(left))
    heaviest = max(sum(left[number] for number in hand) for hand in hands)
    assert heaviest <= sum(left.values()) / len(hands) + max(left.values())


def test_a_version_that_is_begun_goes_on_where_nothing_is_against_it() -> None:
    assert list(version_problems(ONE_BEGUN, fold=1, restart=False, swaps=True)) == []


def test_another_fold_and_positions_beyond_the_live_ones_are_refused_until_restart() -> None:
    ahead = ONE_BEGUN._replace(reached={0: 11})

    assert "fold is 2" in next(version_problems(ONE_BEGUN, fold=2, restart=False, swaps=True))
    assert "the database went back" in next(version_problems(ahead, fold=1, restart=False, swaps=True))
    assert list(version_problems(ahead, fold=2, restart=True, swaps=True)) == []


def test_a_kept_old_version_is_in_the_way_of_a_swap_alone() -> None:
    kept = ONE_BEGUN._replace(old=1)

    assert len(list(version_problems(kept, fold=1, restart=False, swaps=True))) == 1
    assert list(version_problems(kept, fold=1, restart=False, swaps=False)) == []


def test_missing_ranges_are_named_where_the_live_version_has_read_them() -> None:
    kept = {0: LogExtent((0, 4), 20), 1: LogExtent(None, 7), 2: LogExtent((0, 99), 100)}

    reasons = list(log_problems(kept, {0: 10, 1: 8, 2: 0}, topic=TOPIC, has_archive=False))

    assert len(reasons) == 2
    assert reasons[0] == f"{TOPIC} 0: offsets 0 to 4 are gone, and there is no archive"
    assert reasons[1].startswith(f"{TOPIC} 1 ends at 7, and the live version has read it up to 8")


def test_a_topic_that_loses_records_is_refused_unless_they_are_archived() -> None:
    steps = [
        Step("change", TOPIC, "retention.ms", "1000", "-1"),
        Step("change", "t.push", "retention.ms", "1", "2"),
        Step("change", TOPIC, "min.insync.replicas", "1", "2"),
    ]

    assert len(list(topic_problems(steps, topic=TOPIC, has_archive=False))) == 1
    assert list(topic_problems(steps, topic=TOPIC, has_archive=True)) == []


def test_every_table_of_a_version_is_compared() -> None:
    declared = {table.name for table in tables.metadata.sorted_tables}

    assert {*compare_versions.SUBJECTS, "positions"} == declared


def test_rows_are_counted_by_where_they_are_and_named_by_their_keys() -> None:
    subject, found = Subject(1, "I", "A"), TableDifference()
    rows = [RowDigest(subject, str(number), (number, 5)) for number in range(9)]

    for row in rows[:5]:
        found.count(row, None, ["a", "b"])
    found.count(None, rows[5], ["a", "b"])
    found.count(rows[6], rows[6]._replace(hashes=(6, 7)), ["a", "b"])
    found.count(rows[7], rows[7], ["a", "b"])

    assert (found.only_live, found.only_next, found.different, found.columns) == (5, 1, 1, ["b"])
    assert found.examples == ["only_live 0", "only_live 1", "only_live 2", "only_next 5", "different 6"]


def test_what_the_ledger_says_of_an_account_is_told_with_its_item_where_that_is_known() -> None:
    rows, transfers = TableDifference(1), TableDifference(2)
    found = [
        Difference(1, "", "A", {"ledger_transfers": transfers}),
        Difference(1, "I", "A", {"transactions": rows}),
        Difference(1, "", "B", {"ledger_transfers": transfers}),
    ]

    told = with_items(found)

    assert [(one.item_id, one.account_id, sorted(one.tables)) for one in told] == [
        ("", "B", ["ledger_transfers"]),
        ("I", "A", ["ledger_transfers", "transactions"]),
    ]


def test_former_versions_that_the_live_tables_lack_are_told_in_words() -> None:
    lacking = Difference(1, "I", "", {"transaction_versions": TableDifference(only_next=3)})
    other = Difference(1, "I", "", {"transaction_versions": TableDifference(different=1, only_next=3)})

    assert "3 transaction_versions" in notes([lacking])[0]
    assert notes([lacking, other]) == []
