"""The gate, held by a golden log: every reader decides so, for ever."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.log import gate
from schemas.log.gate import ItemGate, Verdict
from schemas.log.records import Cause, Head
from tests.support.paths import GOLDEN

CASES = GOLDEN / "gate.json"


def head_of(row: dict[str, Any]) -> Head:
    parent = row.get("parent")
    return Head(
        id=row["id"].encode(),
        kind=row["kind"],
        type=row["type"],
        parent=parent.encode() if parent is not None else None,
        item_id=row["item_id"],
        user=row["user"],
        at=0,
        cause=Cause("schedule"),
        key_generation=1,
        parts=[part.encode() for part in row.get("parts", [])],
    )


class Log:
    """A reader's memory of what it accepted."""

    def __init__(self) -> None:
        self.items: dict[str | None, ItemGate] = {}
        self.free: set[bytes] = set()
        self.erased: set[int] = set()

    def read(self, head: Head) -> Verdict:
        item = self.items.get(head.item_id, ItemGate())
        verdict = gate.decide(head, item, erased=head.user in self.erased, known=head.id in self.free)
        if head.item_id is not None:
            self.items[head.item_id] = gate.advance(head, item, verdict)
        if verdict is Verdict.ACCEPTED and head.kind == gate.FREE:
            self.free.add(head.id)
        if verdict is Verdict.ACCEPTED and head.type == gate.ERASURE:
            self.erased.add(head.user)
        return verdict


def test_the_golden_log_is_decided_as_written() -> None:
    log = Log()

    for number, row in enumerate(json.loads(CASES.read_text("utf-8"))):
        verdict = log.read(head_of(row["head"]))

        assert verdict.value == row["verdict"], f"record {number}: {row['why']}"
        if "parts" in row:
            kept = log.items[row["head"]["item_id"]].parts
            assert [part.decode() for part in kept] == row["parts"], f"record {number}: {row['why']}"


def test_the_golden_log_shows_every_verdict() -> None:
    shown = {row["verdict"] for row in json.loads(CASES.read_text("utf-8"))}

    assert shown == {verdict.value for verdict in Verdict}


def chain(length: int) -> list[Head]:
    ids = [f"h{number}" for number in range(length)]
    return [
        head_of(
            {
                "id": own,
                "kind": "chained",
                "type": "sync" if before else "link",
                "item_id": "A",
                "user": 1,
                "parent": before,
            }
        )
        for own, before in zip(ids, [None, *ids], strict=False)
    ]


@given(st.data())
def test_repeats_in_any_place_change_nothing(data: st.DataObject) -> None:
    heads = chain(8)
    log: list[Head] = []
    for number, head in enumerate(heads):
        log.append(head)
        log += data.draw(st.lists(st.sampled_from(heads[: number + 1]), max_size=4))

    reader = Log()
    accepted = [head.id for head in log if reader.read(head) is Verdict.ACCEPTED]

    assert accepted == [head.id for head in heads]


@given(st.permutations(chain(6)))
def test_the_accepted_records_of_an_item_are_always_a_chain(log: list[Head]) -> None:
    reader = Log()

    accepted = [head for head in log if reader.read(head) is Verdict.ACCEPTED]

    assert [head.parent for head in accepted] == [None, *(head.id for head in accepted)][: len(accepted)]


@pytest.mark.parametrize("kind", ["chained", "part", "free"])
def test_nothing_of_an_erased_user_counts(kind: str) -> None:
    head = head_of({"id": "x", "kind": kind, "type": "link", "item_id": "A", "user": 1, "parent": None})

    assert gate.decide(head, ItemGate(), erased=True, known=False) is Verdict.ERASED
