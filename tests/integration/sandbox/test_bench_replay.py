"""`tartan bench replay` on a small load: a real rebuild, beside the whole way and a re-synchronisation."""

import json

import pytest

from sandbox.bench.replay import ReplayOptions, run_replay


async def test_the_last_line_compares_a_rebuild_with_the_whole_way(capsys: pytest.CaptureFixture[str]) -> None:
    options = ReplayOptions(items=3, transactions=900, updates=4, processes=1, rounds=1, compares=True, as_json=True)

    code = await run_replay(options)

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert told["digest_equal"] is True
    assert told["transactions"] == 920
    assert told["seconds_by_phase"].keys() == {"load", "finish", "compare"}
    assert told["rounds"] == [told["transactions_per_s"]]
    ratio = told["transactions_per_s"] / told["end_to_end_transactions_per_s"]
    assert told["ratio_to_end_to_end"] == pytest.approx(ratio, abs=0.01)
    assert told["cpu_us_per_transaction"].keys() == {"workers", "postgres", "kafka"}
    assert all(spent > 0 for spent in told["cpu_us_per_transaction"].values())
    assert told["rss_mib"] >= told["rss_mib_end"] > 0
