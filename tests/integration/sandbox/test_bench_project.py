"""`tartan bench project` on a small load: every part is measured, and all of it is projected."""

import json

import pytest

from sandbox.bench.project import ProjectOptions, run_project


async def test_the_last_line_says_how_fast_and_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    code = await run_project(ProjectOptions(items=3, transactions=900, updates=4, as_json=True))

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert (told["transactions"], told["changesets"]) == (900, 6)
    assert (told["updates"]["transactions"], told["updates"]["batches"]) == (20, 4)
    for measured in (told, told["updates"]):
        assert measured["transactions_per_s"] > 0
        assert measured["us_per_transaction"].keys() == {"read", "open", "fold", "rows", "write", "commit"}
        assert all(spent > 0 for spent in measured["us_per_transaction"].values())
