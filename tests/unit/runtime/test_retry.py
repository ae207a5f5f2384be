"""A repeated check outlives every error, and says so while it fails."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from runtime.retry import RepeatedCheck


@pytest.mark.parametrize("error", [asyncpg.InvalidPasswordError("wrong"), MemoryError(), TimeoutError(), KeyError("x")])
async def test_no_error_ends_a_check_and_the_last_one_is_a_reason(error: Exception) -> None:
    results: Iterator[Exception | None] = iter([None, error, error, None])
    reasons: list[list[str]] = []
    done = asyncio.Event()

    async def check() -> None:
        reasons.append(repeated.reasons)
        result = next(results, None)
        if len(reasons) == 5:
            done.set()
        if result is not None:
            raise result

    repeated = RepeatedCheck("Postgres", check, every_s=0.0)
    task = asyncio.create_task(repeated.run())
    await asyncio.wait_for(done.wait(), 5)
    task.cancel()

    failed = [f"Postgres: {str(error) or type(error).__name__}"]
    assert reasons[:5] == [["Postgres: not checked yet"], [], failed, failed, []]
