"""What is refused is told without what the bank said."""

from collections.abc import Callable

import asyncpg
import pytest

from projections.decode import transaction as payload
from projections.model import pg_copy
from runtime.postgres.errors import reason
from schemas.encoding import catalogue, codec
from schemas.errors import Quarantine
from tests.support.projections_log import transaction


def read(amount: str) -> object:
    data = codec.encode(transaction("T", amount))
    return payload.decoder(catalogue.TRANSACTION)(data, 0, len(data))


@pytest.mark.parametrize("work", [pg_copy.date, read])
def test_a_value_that_cannot_be_read_is_not_in_the_message(work: Callable[[str], object]) -> None:
    with pytest.raises(Quarantine) as refused:
        work("12.3x4")

    assert "12.3x4" not in str(refused.value)


def test_of_a_librarys_error_only_its_name_and_code_are_told() -> None:
    assert reason(ValueError("Jane Doe")) == "ValueError"
    assert reason(asyncpg.UniqueViolationError("Key (name)=(Jane Doe)")) == "UniqueViolationError, SQLSTATE 23505"
    assert reason(Quarantine("an amount is no decimal number")) == "an amount is no decimal number"
