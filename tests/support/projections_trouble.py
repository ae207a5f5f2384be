"""Histories with failures: quarantines of an older release, poison, redrives, lost cursors, decisions."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from projections.gate.quarantine import QuarantineSpan
from schemas import events
from schemas.log.records import Transaction
from tests.support.projections_log import Log, account, added, balance, modified, removed, restated, transaction

ITEMS = 2
NAMES_MAX = 6

Step = tuple[str, int, int]
"""An act, the Item's number, and a variant."""

ACTS = (
    "sync",
    "sync",
    "sync",
    "restate",
    "restate",
    "incomplete",
    "approve",
    "reject",
    "stale_decision",
    "poison",
    "free",
    "repeat",
    "part",
    "state_of_nobody",
    *("redrive",) * 3,
)

steps = st.lists(
    st.tuples(st.sampled_from(ACTS), st.integers(0, ITEMS - 1), st.integers(0, 2**NAMES_MAX - 1)),
    min_size=1,
    max_size=20,
)
older = st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 12)), max_size=2)
"""Items that an older release quarantined, with the offset."""

FEW = 1
"""`restated.REMOVALS_ALWAYS_MAX` for these histories: they are too small for the real one to matter."""


@dataclass
class Trouble:
    """Log with many failures, and the quarantines that were stored before."""

    log: Log = field(default_factory=Log)
    quarantined: dict[str, list[QuarantineSpan]] = field(default_factory=dict)
    restated: dict[str, list[bytes]] = field(default_factory=dict)

    def act(self, act: str, number: int, variant: int) -> None:
        """Append the record of an act."""
        log, item = self.log, f"item{number}"
        named = [transaction(f"T{bit}", str(variant)) for bit in range(NAMES_MAX) if variant >> bit & 1]
        match act:
            case "sync":
                log.sync(item, *self._sync(named, variant))
            case "restate":
                log.restate(item, *restated(*named, permille=0 if variant % 3 else 1000))
                self.restated.setdefault(item, []).append(log.heads[item])
            case "incomplete":
                log.restate(item, *restated(*named, complete=False))
            case "approve" | "reject":
                self._decide(item, events.APPROVE_REMOVALS if act == "approve" else events.REJECT_REMOVALS)
            case "stale_decision":
                log.decide(item, events.APPROVE_REMOVALS, b"nothing waits")
            case "poison":
                head = log.heads[item]
                log.sync(item, keys=Log.stranger())
                if variant % 2:  # as if another worker had been faster: the chain goes on without it
                    log.heads[item] = head
            case "free":
                log.free(item, balance(account(current=str(variant)), realtime=True), type="balance")
            case "repeat":
                log.put(log.records[variant % len(log.records)].value, 1)
            case "part":
                name = b"part" + len(log.records).to_bytes(12, "big")
                log.append(item, added(*named), kind="part", type="part", parent=log.heads[item], id=name)
                if variant % 2:
                    log.sync(item, parts=[name])
            case "state_of_nobody":
                head = log.heads[item]
                log.sync(item, *added(*named), parent=b"no head")
                log.heads[item] = head
            case "redrive":
                log.redrive(item)

    def _sync(self, named: list[Transaction], variant: int) -> list[tuple[str, int, bytes]]:
        if variant % 4 == 0:
            return removed(*(row.transaction_id for row in named))
        if variant % 4 == 1:
            return [*added(*named), *balance(account(current=str(variant)))]
        if variant % 4 == 2 and named:
            posted = transaction(f"P{variant}", pending_transaction_id=named[0].transaction_id)
            return [*removed(named[0].transaction_id), *added(posted)]
        return modified(*named)

    def _decide(self, item: str, decision: str) -> None:
        """Decide on the last two full resyncs; the fold accepts the decision that a resync waits for."""
        for subject in self.restated.get(item, [])[-2:]:
            self.log.decide(item, decision, subject)


def trouble(acts: list[Step], before: list[tuple[int, int]]) -> Trouble:
    """Act out steps."""
    history = Trouble()
    for number in range(ITEMS):
        history.log.link(f"item{number}")
    for act in acts:
        history.act(*act)
    for number, offset in before:
        history.quarantined[f"item{number}"] = [QuarantineSpan(offset, None)]
    return history


troubles = st.builds(trouble, steps, older)
