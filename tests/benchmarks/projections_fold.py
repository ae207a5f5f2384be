"""What the projections spend on a transaction, part by part, without Kafka and Postgres.

    python -m tests.benchmarks.projections_fold [transactions] [rounds]

CPU time of this process, the best of the rounds, in µs a transaction: other work on the machine disturbs less so.
"""

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

from projections.decode import changeset
from projections.decode.log_record import decode_record
from projections.fold.fold import fold
from projections.gate.check import AcceptedRecord, GateCheck, Owners
from projections.model.unit_of_work import UnitOfWork
from projections.publish import kafka_records
from projections.publish.kafka_records import ChangesetEvents
from projections.store import copy_rows, rows
from sandbox.infra.generated_log import PER_CHANGESET, transactions
from schemas.encoding import codec
from schemas.log import changesets
from tests.support.projections_log import Log, added, keys_of, modified


class Bench:
    """One batch of changesets of one new Item, and what each part makes of it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.said = transactions(count, 1)
        log = Log()
        log.link("item")
        for begin in range(0, count, PER_CHANGESET):
            log.sync("item", *added(*self.said[begin : begin + PER_CHANGESET]))
        self.opened = [decode_record(record) for record in log.records]
        self.blocks = [changesets.unseal(record.envelope, keys_of(1)) for record in self.opened]

    def admit(self) -> list[AcceptedRecord]:
        """Gate, unseal, read."""
        owners = Owners({1: keys_of(1)}, {1: ("tenant", "user")})
        keeper = GateCheck(items={}, quarantined={}, known_ids=set(), owners=owners, poisoned={})
        return keeper.check(self.opened).accepted

    def folded(self) -> UnitOfWork:
        """Admit and fold."""
        working = UnitOfWork()
        for record in self.admit():
            fold(working, record)
        return working


def main(count: int, rounds: int = 10) -> None:
    """Print the table."""
    bench = Bench(count)
    working = bench.folded()
    outbound = [
        ChangesetEvents(0, folded.context.offset, folded.context.changeset_id, 1, "item", 0, folded.net_events)
        for folded in working.folded
    ]
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)

    def unseal() -> Any:
        return [changesets.unseal(record.envelope, keys_of(1)) for record in bench.opened]

    parts: dict[str, Callable[[], Any]] = {
        "unseal": unseal,
        "walk events": lambda: [list(codec.decode_events(block)) for block in bench.blocks],
        "read (with walk)": lambda: changeset.decode(bench.blocks),
        "admit (gate, unseal, read)": bench.admit,
        "admit and fold": bench.folded,
        "transactions for COPY": lambda: list(copy_rows.copy_transactions(working.new)),
        "transfers for COPY": lambda: list(copy_rows.copy_transfers(working.book.transfers)),
        "changesets (zstd, digest)": lambda: [rows.changeset_values(folded) for folded in working.folded],
        "records for Kafka": lambda: kafka_records.build_records(outbound),
    }
    spent = {name: _best(work, rounds) / count * 1e6 for name, work in parts.items()}
    for name, each in spent.items():
        print(f"{name:30} {each:6.2f} µs")
    core = sum(spent[name] for name in list(parts)[4:8])
    print(f"{'decode + fold + rows + events':30} {core:6.2f} µs")
    print(f"{'no-op modified':30} {_unchanged(bench, rounds):6.2f} µs")


def _unchanged(bench: Bench, rounds: int) -> float:
    """What a modified transaction costs that says nothing new."""
    working = bench.folded()
    item = working.items.get("item") or next(row for row in working.changed_items.values())
    read = changeset.decode([codec.encode_events(modified(*bench.said))])
    record = bench.admit()[-1]._replace(item=item, changeset=read)
    return _best(lambda: fold(working, record), rounds) / bench.count * 1e6


def _best(work: Callable[[], Any], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments or [10_000]))
