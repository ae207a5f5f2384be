"""`tartan rebuild` under writes and reads, killed and resumed, swapped, taken back and forward: nobody notices."""

import json
from pathlib import Path

import pytest

from sandbox.chaos.rebuild.scenario import RebuildOptions, run_rebuild
from sandbox.infra.cluster import ClusterOptions
from sandbox.infra.stack import StackOptions

TRANSACTIONS, KILLS = 50_000, 3
CHANGESETS_PER_S, READS_PER_S = 40.0, 40.0
"""What two cores do beside a rebuild; `tartan chaos --rebuild` asks for 200 and 500."""


@pytest.mark.timeout(600)
async def test_three_kills_of_a_rebuild_under_writes_and_reads_are_noticed_by_nobody(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kafka_address: str, topic_prefix: str, database: str
) -> None:
    stack = StackOptions(
        folder=tmp_path,
        environment={"TARTAN_TOPIC_PREFIX": topic_prefix},
        cluster=ClusterOptions(kafka_address=kafka_address, postgres_dsn=database),
    )
    options = RebuildOptions(
        transactions=TRANSACTIONS,
        kills=KILLS,
        changesets_per_s=CHANGESETS_PER_S,
        reads_per_s=READS_PER_S,
        seed=7,
        as_json=True,
        stack=stack,
    )

    code = await run_rebuild(options)

    output = capsys.readouterr()
    result = json.loads(output.out.splitlines()[-1])
    assert (code, result["failures"]) == (0, 0), output.err
    assert result["kills"] == KILLS
    assert result["killed"].keys() == {"rebuild.load", "rebuild.swap.before_commit", "projections.load"}
    assert result["rebuild"]["digest_equal"] is True
    assert result["rebuild"]["transactions_replayed"] > 0
    assert (result["failed_reads"], result["contradictory_reads"], result["duplicate_pushes"]) == (0, 0, 0)
    assert result["updates"] > 0
    assert result["reads"] > 0
    assert result["pushes"] > 0
