"""What the peer prints is read as it means it, and compared by medians."""

from pathlib import Path

import pytest

from sandbox.bench import peer
from sandbox.bench.peer import Load, Peer, PeerRun, Round, backfill_load, comparison, parse
from sandbox.infra.postgres import PostgresOptions
from schemas.errors import Halt

LOAD = Load(items=10, pages=5, per_page=500)
RECORDED = """\
{"profile":"tuned","scenario":"backfill","run":0,"items":10,"pages":5,"per":500,"rows":25000,"txPerS":24731,\
"p50":987.8,"p99":1038,"ack50":61.55,"ack99":74.28,"rssMiB":"54/73/140/126","cpuS":"0.38/0.71/2.5/1.58"}
MEDIAN tuned backfill unnest batch 500 workers 2 +ledger sync 16 delay 0 ms: 24731 tx/s, webhook->row p50 987.8 ms \
p99 1038.0 ms, ack p50 61.55 p99 74.28 ms
"""


def test_a_recorded_run_is_read() -> None:
    assert parse(RECORDED, LOAD) == PeerRun(25000, 24731, 987.8, 1038.0)


def test_what_node_prints_before_the_result_is_passed_over() -> None:
    noise = "(node:1) Warning: something old\nIMPORTANT! Eviction policy is allkeys-lru\n"

    assert parse(noise + RECORDED, LOAD).rows == 25000


def test_a_run_that_did_not_store_everything_is_no_result() -> None:
    with pytest.raises(Halt, match="stored 25000 of 50000"):
        parse(RECORDED, LOAD._replace(items=20))


@pytest.mark.parametrize("output", ["", "usage: node peer.js", "{not json", '{"rows": 1}', '{"rows": null}'])
def test_what_is_no_result_is_refused(output: str) -> None:
    with pytest.raises(Halt, match="peer"):
        parse(output, LOAD)


@pytest.mark.parametrize(
    ("items", "transactions", "load"),
    [
        (40, 100_000, Load(40, 5, 500)),
        (40, 25_000, Load(40, 2, 312)),
        (10, 10, Load(10, 1, 1)),
        (10, 5, Load(10, 1, 1)),
        (1, 501, Load(1, 2, 250)),
    ],
)
def test_the_peer_gets_as_many_items_and_about_as_many_transactions(items: int, transactions: int, load: Load) -> None:
    assert backfill_load(items=items, transactions=transactions) == load


def test_the_comparison_is_of_medians() -> None:
    rounds = [Round(30_000, run(20_000)), Round(9_000, run(10_000)), Round(26_000, run(20_000))]

    assert comparison(rounds, PeerRun(5000, 490, 5.3, 14.2)) == {
        "peer": {"transactions_per_s": 20_000, "webhook_to_row_ms": {"p50": 5.3, "p99": 14.2}},
        "ratio_to_peer": 1.3,
        "ratios": [1.5, 0.9, 1.3],
    }


def test_what_the_peer_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Peer(tmp_path, PostgresOptions())

    with pytest.raises(Halt, match=r"no peer\.js in"):
        given.parts()
    (tmp_path / "peer.js").touch()
    with pytest.raises(Halt, match="npm install"):
        given.parts()
    (tmp_path / "node_modules").mkdir()
    monkeypatch.setattr(peer.shutil, "which", lambda name: None)
    with pytest.raises(Halt, match="Node and redis-server"):
        given.parts()


def run(transactions_per_s: int) -> PeerRun:
    return PeerRun(1, transactions_per_s, 1.0, 2.0)
