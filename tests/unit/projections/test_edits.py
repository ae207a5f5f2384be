"""What users say: kept field by field, merged, and laid over the bank's payload."""

import json

import pytest

from gateway.handlers import edit_fields
from projections.ledger import user_field_values
from schemas.errors import Quarantine
from tests.support.projections_log import transaction

NOTE = '{"reason":"rent May","payee":null}'


def test_fields_are_kept_with_the_offset_that_said_them_in_one_canonical_form() -> None:
    one = user_field_values.apply_edit(
        user_field_values.apply_edit(None, {"notes": "é", "category": "B"}, 3), {"category": "A"}, 5
    )

    assert one == '{"category":{"at":5,"value":"A"},"notes":{"at":3,"value":"é"}}'
    assert user_field_values.canonical(json.dumps(json.loads(one), indent=1)) == one


def test_null_clears_and_an_empty_text_is_a_value() -> None:
    fields = user_field_values.apply_edit(
        user_field_values.apply_edit(None, {"category": "A", "notes": "x"}, 1), {"category": None, "notes": ""}, 2
    )

    assert user_field_values.values(fields) == {"notes": ""}
    assert user_field_values.values_json(fields) == '{"notes":""}'
    assert user_field_values.values_json(user_field_values.apply_edit(None, {"category": None}, 1)) is None


def test_the_longest_words_of_however_many_rows_that_are_one_leave_room_for_the_next() -> None:
    wide = "\U0001f600"
    part = {"category": wide * 100, "amount": "-" + "1" * 38, "note": wide * edit_fields.SPLIT_NOTE_CHARS_MAX}
    longest = {
        "splits": edit_fields.splits([part] * edit_fields.SPLITS_MAX),
        "category": wide * edit_fields.TEXT_CHARS_MAX,
        "tags": edit_fields.tags([f"{number:02}" + wide * 98 for number in range(edit_fields.TAGS_MAX)]),
        "name": wide * edit_fields.NAME_CHARS_MAX,
    }
    fields: str | None = None
    for number in range(8):
        notes = f"{number}" + wide * (edit_fields.NOTES_CHARS_MAX - 1)
        fields = user_field_values.merge(
            fields, user_field_values.apply_edit(None, {**longest, "notes": notes}, number)
        )

    said = user_field_values.values(user_field_values.apply_edit(fields, {**longest, "category": "next"}, 9))

    assert said["category"] == "next"


def test_fields_of_later_versions_are_kept() -> None:
    later = user_field_values.apply_edit(None, {"mood": {"deep": ["kept", 1, True, None]}}, 1)

    assert user_field_values.values(user_field_values.apply_edit(later, {"name": "N"}, 2)) == {
        "mood": {"deep": ["kept", 1, True, None]},
        "name": "N",
    }


@pytest.mark.parametrize("value", [1.5, ["a\0"], {"\ud800": 1}])
def test_what_no_row_could_hold_byte_for_byte_is_refused(value: object) -> None:
    with pytest.raises(Quarantine):
        user_field_values.apply_edit(None, {"later": value}, 1)


def test_changed_names_the_fields_whose_value_differs() -> None:
    before = user_field_values.apply_edit(None, {"category": "A", "hidden": True, "tags": ["x"]}, 1)
    after = user_field_values.apply_edit(
        before, {"category": "A", "hidden": 1, "tags": None, "notes": None, "name": "N"}, 2
    )

    assert before != after
    assert user_field_values.changed_fields(before, after) == ["hidden", "name", "tags"]
    assert user_field_values.changed_fields(None, user_field_values.apply_edit(None, {"name": None}, 1)) == []


def test_two_rows_that_are_one_keep_the_later_word_of_each_field_and_the_notes_of_both() -> None:
    older = user_field_values.apply_edit(
        user_field_values.apply_edit(None, {"category": "A", "notes": "first"}, 1), {"tags": ["old"]}, 9
    )
    younger = user_field_values.apply_edit(
        None, {"category": "B", "notes": "second", "tags": ["new"], "hidden": True}, 5
    )

    both = user_field_values.merge(older, younger)

    assert user_field_values.values(both) == {
        "category": "B",
        "notes": "first\n---\nsecond",
        "tags": ["old"],
        "hidden": True,
    }
    assert (
        both
        == user_field_values.merge(younger, older)
        == user_field_values.merge(both, younger)
        == user_field_values.merge(older, both)
    )
    assert user_field_values.merge(None, older) == user_field_values.merge(older, None) == older


def test_a_later_clearing_is_the_later_word_of_two_rows_too() -> None:
    older = user_field_values.apply_edit(None, {"category": "A"}, 1)
    cleared = user_field_values.apply_edit(None, {"category": None}, 2)

    assert user_field_values.values(user_field_values.merge(older, cleared)) == {}


@pytest.mark.parametrize(
    ("users", "banks", "shown"),
    [
        (None, None, None),
        ("mine", None, "mine"),
        (None, "rent May", "rent May"),
        ("", "rent May", ""),
        ("mine", "rent May", "mine\n---\nrent May"),
        ("mine\n---\nrent May", "rent May", "mine\n---\nrent May"),
    ],
)
def test_notes_of_both_sides_are_shown_each_once(users: str | None, banks: str | None, shown: str | None) -> None:
    bank = transaction("T", payment_meta_json=json.dumps({"reason": banks, "payee": "P"}))

    assert user_field_values.effective(bank, {} if users is None else {"notes": users})["notes"] == shown


def test_readers_see_the_users_words_over_the_banks_with_both_beside_each_other() -> None:
    bank = transaction("T", payment_meta_json=NOTE)

    shown = user_field_values.effective(bank, {"category": "RENT", "hidden": True, "display_date": "2026-02-28"})

    assert (shown["category"], shown["hidden"], shown["display_date"]) == ("RENT", True, "2026-02-28")
    assert (shown["name"], shown["notes"], shown["tags"], shown["splits"]) == (bank.name, "rent May", [], [])
    assert shown["bank"] == {"name": "Coffee Shop", "category": "FOOD_AND_DRINK", "notes": "rent May"}


@pytest.mark.parametrize(
    ("amounts", "adds_up"),
    [
        (["30", "18.5"], True),
        (["50", "-1.5"], True),
        (["48.50"], True),
        (["30", "18.49"], False),
        ([], False),
        (["30", "x"], False),
        (["48.500000001"], False),
    ],
)
def test_splits_count_only_while_they_add_up_to_the_unit(amounts: list[str], adds_up: bool) -> None:
    said = {"splits": [{"category": "C", "amount": amount} for amount in amounts]}

    assert (user_field_values.splits(said, "48.5", "USD") is not None) is adds_up
    assert user_field_values.effective(transaction("T", "48.5"), said)["splits_stale"] is not adds_up


@pytest.mark.parametrize("splits", ["x", [1], [{"amount": "48.5"}], [{"category": 1, "amount": "48.5"}], [{}]])
def test_splits_that_are_none_have_no_effect(splits: object) -> None:
    assert user_field_values.splits({"splits": splits}, "48.5", "USD") is None
