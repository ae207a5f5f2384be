"""Run the events that a seed chooses: users who link and unlink, banks that change, and all kinds of faults."""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from runtime.scheduler.types import Lane
from sandbox.simulation.bank_faults import BankFaults
from sandbox.simulation.engine.installation import Installation, user_number
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.engine.network import PlannedFault, ProcessFault
from sandbox.simulation.engine.worker import Worker
from sandbox.simulation.operator_actions import Operator
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control.faults import MUTATION, Fault

TENANTS = ("ash", "birch", "cedar", "dogwood")
BANKS = ("ins_109508", "ins_109509", "ins_109511")
WORKERS = ("w1", "w2", "w3")
ITEMS_MAX = 12
TRANSIENT_CODES = (
    "INTERNAL_SERVER_ERROR",
    "PLANNED_MAINTENANCE",
    "INSTITUTION_DOWN",
    "INSTITUTION_NOT_RESPONDING",
    "INSTITUTION_NOT_AVAILABLE",
    "ITEM_LOGIN_REQUIRED",
    "ITEM_LOCKED",
    "INVALID_CREDENTIALS",
    "PRODUCT_NOT_READY",
)
"""Codes of PLAID.md 1.9 after which an Item recovers by itself."""
PERMANENT_CODES = ("ITEM_NOT_FOUND", "INVALID_ACCESS_TOKEN", "ITEM_NOT_SUPPORTED", "PRODUCT_NOT_ENABLED")
"""Codes of PLAID.md 1.9 that stop an Item until a person acts."""
BANK_CODES = TRANSIENT_CODES[2:5]
CONNECTION_FAULTS = ("TIMEOUT", "RESET", "TRUNCATED", "HTML")
SYNC = "/transactions/sync"
SESSION_S = 30.0
"""Time after which Kafka removes a silent process from its group."""


class Event(NamedTuple):
    """A possible event and its relative frequency."""

    weight: int
    run: Callable[[], None]


class Scenario:
    """The events of one run; the faults end at `ends_s`. `explained`: Items that may be stopped, by code."""

    def __init__(self, installation: Installation, rng: random.Random) -> None:
        # Without a schedule an Item that a webhook failed to mark due stays so, and the checks find it.
        self._has_schedule = installation.is_scheduling
        self._installation = installation
        self._rng = rng
        self._faults = installation.faults
        self._plaid = installation.simulated_plaid
        self.items: list[Item] = []
        self.unlinked: set[str] = set()
        self.explained: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}
        self.dead_processes: list[Process] = []
        self._users = 0
        self._is_over = False
        self._ingest_down_until = 0.0
        self.ends_s = rng.uniform(120.0, 900.0)
        installation.faults.on_fault = self._on_process_fault
        self.operator = Operator(installation, random.Random(rng.random()))
        self._bank_faults = BankFaults(installation, random.Random(rng.random()), self._later)
        self._events = [
            Event(30, self._with_item(self._step)),
            Event(3, self._link),
            Event(1, self._with_item(self._unlink)),
            Event(3, self._with_item(self.operator.edit)),
            Event(3, self._with_item(self._request_sync)),
            Event(4, self._with_item(self._mutate)),
            Event(4, self._with_item(self._refuse)),
            Event(1, self._with_item(self._fail_for_ever)),
            Event(3, self._with_item(self._break_connection)),
            Event(2, self._with_item(self._limit)),
            Event(2, self._with_item(self._bank_faults.refuse_cursor)),
            Event(2, self._with_item(self._bank_faults.remove_many)),
            Event(1, self._with_item(self._bank_faults.unready_history)),
            Event(2, self._with_item(self._bank_faults.hide_account)),
            Event(2, self._with_item(self._bank_faults.request_refresh)),
            Event(1, self._with_item(self._bank_faults.delay_webhook)),
            Event(1, self._with_item(self._make_user_unreadable)),
            Event(1, self._with_item(self.operator.redrive)),
            Event(1, self._with_item(self.operator.approve)),
            Event(2, self._break_bank),
            Event(3, self._with_item(self._require_login)),
            Event(1, self._with_item(self._revoke)),
            Event(4, lambda: self._plan_fault(ProcessFault.KILL)),
            Event(4, lambda: self._plan_fault(ProcessFault.FREEZE)),
            Event(2, self._stop_database),
            Event(2, self._stop_broker),
            Event(3, self._rebalance),
            Event(2, self._delay_follower),
            Event(int(self._has_schedule), self._stop_ingest),
        ]

    async def run(self) -> None:
        """Run all events, then end all faults."""
        for name in WORKERS[: self._rng.randint(2, 3)]:
            self._start(name)
        for _ in range(self._rng.randint(3, 8)):
            self._link()
        pause_s = self.ends_s / self._rng.randint(25, 70)
        weights = [event.weight for event in self._events]
        while self._time() < self.ends_s:
            await asyncio.sleep(self._rng.expovariate(1.0) * pause_s)
            self._rng.choices(self._events, weights)[0].run()
        self._end_faults()

    def is_ingest_up(self) -> bool:
        """Return whether webhooks are accepted now."""
        return self._time() >= self._ingest_down_until

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

    def _note(self, text: str) -> None:
        self._installation.trace.note(text)

    def _count(self, kind: str) -> None:
        self._faults.counts[kind] += 1

    def _live_items(self) -> list[Item]:
        return [item for item in self.items if item.item_id not in self.unlinked and not item.removed]

    def _with_item(self, action: Callable[[Item], None]) -> Callable[[], None]:
        """Return an event that applies an action to a random live Item."""

        def run() -> None:
            items = self._live_items()
            if items:
                action(self._rng.choice(items))

        return run

    def _later(self, wait_s: float, action: Callable[[], None]) -> None:
        def run_unless_over() -> None:
            if not self._is_over:
                action()

        asyncio.get_running_loop().call_later(wait_s, run_unless_over)

    # Users and banks.

    def _link(self) -> None:
        if len(self.items) >= ITEMS_MAX:
            return
        self._users += self._rng.random() < 0.8
        user = f"user-{self._users}"
        ready = self._rng.random() < 0.6
        item = self._plaid.create_item(
            user,
            institution_id=self._rng.choice(BANKS),
            transactions=self._rng.randint(0, 25),
            ready=ready,
            webhook_url="http://tartan.example/webhooks",
        )
        if not ready:
            self._count("not_ready")
        self.items.append(item)
        self._installation.link(item, tenant=TENANTS[self._users % len(TENANTS)])
        self._note(f"link {item.item_id} of {user}")

    def _unlink(self, item: Item) -> None:
        if len(self._live_items()) >= 3:
            self._count("unlink")
            self.unlinked.add(item.item_id)
            self._note(f"unlink {item.item_id}")
            self._installation.request_sync(item.item_id, Lane.WEBHOOK)

    def _step(self, item: Item) -> None:
        self._note(f"step {item.item_id}")
        self._plaid.step(item.item_id, changes=self._rng.randint(1, 6))
        if self._rng.random() < 0.5:
            # Once more while the sync run of this step may be in progress.
            self._later(self._rng.random() * 4.0, lambda: self._step_again(item))

    def _step_again(self, item: Item) -> None:
        if not item.removed:
            self._note(f"step again {item.item_id}")
            self._plaid.step(item.item_id)

    def _request_sync(self, item: Item) -> None:
        self._installation.request_sync(item.item_id, Lane.MANUAL)

    # Faults of Plaid and the banks.

    def _mutate(self, item: Item) -> None:
        self._declare(item, MUTATION, page=self._rng.choice((2, 2, 3, None)), times=self._rng.choice((1, 2, 3, 7)))
        self._plaid.step(item.item_id, changes=8)

    def _refuse(self, item: Item) -> None:
        endpoint = self._rng.choice((SYNC, SYNC, "/accounts/get", "/item/get"))
        page = self._rng.choice((None, 1, 2)) if endpoint == SYNC else None
        code = self._rng.choice(TRANSIENT_CODES if self._has_schedule else TRANSIENT_CODES[:5])
        self._declare(item, code, endpoint=endpoint, page=page, times=self._rng.randint(1, 3))

    def _fail_for_ever(self, item: Item) -> None:
        if len(self.explained) < 2:
            code = self._rng.choice(PERMANENT_CODES)
            self.explained[item.item_id] = code
            self._declare(item, code)

    def _break_connection(self, item: Item) -> None:
        self._declare(item, self._rng.choice(CONNECTION_FAULTS), endpoint="*", times=self._rng.randint(1, 4))

    def _limit(self, item: Item) -> None:
        self._declare(item, "TRANSACTIONS_SYNC_LIMIT", times=self._rng.randint(1, 3))

    def _declare(self, item: Item, code: str, *, endpoint: str = SYNC, page: int | None = None, times: int = 1) -> None:
        self._note(f"fault {code} {item.item_id} {endpoint} page {page} times {times}")
        self._plaid.faults.declare(Fault(code=code, endpoint=endpoint, item_id=item.item_id, page=page, times=times))

    def _break_bank(self) -> None:
        bank = self._rng.choice(BANKS)
        if bank in self._plaid.institutions_down:
            return
        self._count("institution_down")
        self._note(f"bank down {bank}")
        self._plaid.institution_down(bank, code=self._rng.choice(BANK_CODES))
        self._later(self._rng.uniform(30.0, 600.0), lambda: self._plaid.institution_up(bank))

    def _require_login(self, item: Item) -> None:
        if item.error_code is not None:
            return
        self._count("login_required")
        silent = self._has_schedule and self._rng.random() < 0.3
        self._note(f"login required {item.item_id}")
        self._plaid.break_item(item, "ITEM_LOGIN_REQUIRED", silent=silent)
        self._later(self._rng.uniform(1.0, 300.0), lambda: self._repair_login(item))

    def _repair_login(self, item: Item) -> None:
        if item.error_code != "ITEM_LOGIN_REQUIRED" or item.removed:
            return
        self._note(f"login repaired {item.item_id}")
        self._plaid.repair_item(item, silent=self._has_schedule and self._rng.random() < 0.2)
        if self._rng.random() < 0.5:
            # The webhook of the error arrives after that of the repair.
            self._count("repaired_before_told")
            error = {"error_code": "ITEM_LOGIN_REQUIRED", "error_type": "ITEM_ERROR"}
            self._plaid.notifier.notify(item, "ITEM", "ERROR", {"error": error})

    def _revoke(self, item: Item) -> None:
        if len(self._live_items()) >= 4:
            self._count("permission_revoked")
            self._note(f"permission revoked {item.item_id}")
            self.explained[item.item_id] = "USER_PERMISSION_REVOKED"
            self._plaid.break_item(item, "USER_PERMISSION_REVOKED", silent=self._rng.random() < 0.3)

    # Faults of the installation.

    def _make_user_unreadable(self, item: Item) -> None:
        """Make a user's records unreadable for the projections for a while, and redrive them, perhaps too early."""
        user = user_number(item.user)
        self._count("user_unreadable")
        self._note(f"unreadable {item.user}")
        self._installation.unreadable.add(user)
        self._plaid.step(item.item_id)
        if self._rng.random() < 0.5:
            self._later(self._rng.uniform(5.0, 60.0), lambda: self.operator.redrive(item))
        readable_s = self._rng.uniform(10.0, 200.0)
        self._later(readable_s, lambda: self._installation.unreadable.discard(user))
        if self._rng.random() < 0.5:
            self._later(readable_s + 1.0, lambda: self.operator.settle(self.items))

    def _plan_fault(self, fault: ProcessFault) -> None:
        name = self._rng.choice(sorted(self.workers))
        self._faults.plan(name, PlannedFault(fault, answered=self._rng.random() < 0.5))

    def _on_process_fault(self, process: Process, fault: ProcessFault) -> None:
        self._note(f"{fault.value} {process.name}")
        self._later(self._rng.uniform(5.0, SESSION_S), lambda: self._expire_session(process))
        if fault is ProcessFault.KILL:
            self._later(self._rng.choice((0.5, 5.0, 60.0)), lambda: self._restart(process))
        else:
            self._later(self._rng.choice((0.2, 8.0, 45.0, 150.0)), lambda: self._wake(process))

    def _expire_session(self, process: Process) -> None:
        if process.frozen:
            self._leave_groups(process)

    def _leave_groups(self, process: Process) -> None:
        for group in self._installation.groups.values():
            group.leave(process)

    def _join_groups(self, process: Process) -> None:
        for group in self._installation.groups.values():
            group.join(process)

    def _restart(self, process: Process) -> None:
        self._leave_groups(process)
        if process.name in self.workers and self.workers[process.name].process is process:
            self.dead_processes.append(process)
            self._start(process.name)

    def _wake(self, process: Process) -> None:
        self._note(f"wakes {process.name}")
        process.wake()
        self._join_groups(process)

    def _start(self, name: str) -> None:
        self._note(f"start {name}")
        worker = self.workers[name] = Worker(self._installation, name, random.Random(self._rng.random()))
        self._join_groups(worker.process)
        worker.start()

    def _stop_database(self) -> None:
        self._count("store_away")
        database = self._installation.database
        database.away_until = self._time() + self._rng.choice((2.0, 20.0, 60.0))
        self._note("store away")
        if self._rng.random() < 0.5:
            database.lost_answers_share = 0.05
            self._later(60.0, lambda: setattr(database, "lost_answers_share", 0.0))

    def _stop_broker(self) -> None:
        self._count("broker_away")
        broker = self._installation.broker
        broker.away_until = self._time() + self._rng.choice((2.0, 20.0, 45.0))
        broker.doubt_share = self._rng.choice((0.0, 0.1, 0.4))
        self._note("broker away")
        self._later(120.0, lambda: setattr(broker, "doubt_share", 0.0))

    def _rebalance(self) -> None:
        self._count("rebalance")
        self._note("rebalance")
        for group in self._installation.groups.values():
            group.rebalance()

    def _delay_follower(self) -> None:
        self._count("follower_lag")
        self._set_lag(self._rng.uniform(1.0, 30.0))
        self._later(self._rng.uniform(30.0, 120.0), lambda: self._set_lag(0.0))

    def _set_lag(self, lag_s: float) -> None:
        for worker in self.workers.values():
            worker.lag_s = lag_s

    def _stop_ingest(self) -> None:
        self._count("ingest_away")
        self._ingest_down_until = self._time() + self._rng.uniform(5.0, 60.0)

    def _end_faults(self) -> None:
        self._note("heal")
        self._is_over = True
        self._faults.clear()
        self._plaid.faults.withdraw()
        self._bank_faults.end()
        self._installation.unreadable.clear()
        for bank in sorted(self._plaid.institutions_down):
            self._plaid.institution_up(bank)
        for item in self.items:
            if item.error_code == "ITEM_LOGIN_REQUIRED" and not item.removed:
                self._plaid.repair_item(item)
        broker, database = self._installation.broker, self._installation.database
        broker.doubt_share = database.lost_answers_share = broker.away_until = database.away_until = 0.0
        self._ingest_down_until = 0.0
        self._set_lag(0.0)
        for worker in list(self.workers.values()):
            if worker.process.dead:
                self._restart(worker.process)
            elif worker.process.frozen:
                self._wake(worker.process)
