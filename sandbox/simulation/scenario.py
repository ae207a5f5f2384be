"""What a seed lets happen: users who link and unlink, banks that change, and everything that goes wrong."""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from runtime.scheduler.types import Lane
from sandbox.simulation.bank_faults import Banking
from sandbox.simulation.engine.installation import Installation, user_number
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.engine.network import Armed, Blow
from sandbox.simulation.engine.worker import Worker
from sandbox.simulation.operator_actions import Operator
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control.faults import MUTATION, Fault

TENANTS = ("ash", "birch", "cedar", "dogwood")
BANKS = ("ins_109508", "ins_109509", "ins_109511")
WORKERS = ("w1", "w2", "w3")
PASSING = (
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
"""Codes of PLAID.md 1.9 after which an Item goes on by itself."""
ENDING = ("ITEM_NOT_FOUND", "INVALID_ACCESS_TOKEN", "ITEM_NOT_SUPPORTED", "PRODUCT_NOT_ENABLED")
"""Codes of PLAID.md 1.9 that stop an Item until somebody acts."""
BANK_CODES = PASSING[2:5]
BROKEN = ("TIMEOUT", "RESET", "TRUNCATED", "HTML")
SESSION_S = 30.0
"""After so long Kafka takes a silent process out of its group."""


class Act(NamedTuple):
    """Something that can happen, and how often compared with the others."""

    weight: int
    happen: Callable[[], None]


class Story:
    """One run's events. `ends_s`: when the faults end."""

    def __init__(self, installation: Installation, rng: random.Random) -> None:
        # Where no schedule heals, whatever a webhook fails to wake stays asleep, and is seen.
        self._is_healed = installation.is_scheduling
        self._installation = installation
        self._rng = rng
        self._hazards = installation.hazards
        self._plaid = installation.plaid_world
        self.items: list[Item] = []
        self.unlinked: set[str] = set()
        self.explained: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}
        self.buried: list[Process] = []
        self._users = 0
        self._is_over = False
        self._ingest_away_until = 0.0
        self.ends_s = rng.uniform(120.0, 900.0)
        installation.hazards.on_blow = self._blow
        self.operator = Operator(installation, random.Random(rng.random()))
        self._banking = Banking(installation, random.Random(rng.random()), self._later)
        self._acts = [
            Act(30, self._step),
            Act(3, self._link),
            Act(1, self._unlink),
            Act(3, self._with(self.operator.edit)),
            Act(3, self._ask),
            Act(4, self._mutate),
            Act(4, self._refuse),
            Act(1, self._end_an_item),
            Act(3, self._break_the_way),
            Act(2, self._limit),
            Act(2, self._with(self._banking.lose_the_cursor)),
            Act(2, self._with(self._banking.remove_many)),
            Act(1, self._with(self._banking.forget_the_history)),
            Act(2, self._with(self._banking.hide)),
            Act(2, self._with(self._banking.refresh)),
            Act(1, self._with(self._banking.be_late)),
            Act(1, self._with(self._blind)),
            Act(1, self._with(self.operator.redrive)),
            Act(1, self._with(self.operator.approve)),
            Act(2, self._bank_down),
            Act(3, self._login),
            Act(1, self._revoke),
            Act(4, lambda: self._hit(Blow.KILL)),
            Act(4, lambda: self._hit(Blow.FREEZE)),
            Act(2, self._store_away),
            Act(2, self._broker_away),
            Act(3, self._rebalance),
            Act(2, self._lag),
            Act(int(self._is_healed), self._ingest_away),
        ]

    async def run(self) -> None:
        """Let everything happen, then end all faults."""
        for name in WORKERS[: self._rng.randint(2, 3)]:
            self._start(name)
        for _ in range(self._rng.randint(3, 8)):
            self._link()
        loop = asyncio.get_running_loop()
        pause_s = self.ends_s / self._rng.randint(25, 70)
        weights = [act.weight for act in self._acts]
        while loop.time() < self.ends_s:
            await asyncio.sleep(self._rng.expovariate(1.0) * pause_s)
            self._rng.choices(self._acts, weights)[0].happen()
        self._heal()

    def ingest_answers(self) -> bool:
        """Whether webhooks are taken now."""
        return asyncio.get_running_loop().time() >= self._ingest_away_until

    def note(self, text: str) -> None:
        """Note what happens."""
        self._installation.trace.note(text)

    def _count(self, kind: str) -> None:
        self._hazards.counts[kind] += 1

    def _live(self) -> list[Item]:
        return [item for item in self.items if item.item_id not in self.unlinked and not item.removed]

    def _some(self) -> Item | None:
        live = self._live()
        return self._rng.choice(live) if live else None

    def _with(self, act: Callable[[Item], None]) -> Callable[[], None]:
        def happen() -> None:
            item = self._some()
            if item is not None:
                act(item)

        return happen

    # Users and banks.

    def _link(self) -> None:
        if len(self.items) >= 12:
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
        self.note(f"link {item.item_id} of {user}")

    def _unlink(self) -> None:
        item = self._some()
        if item is None or len(self._live()) < 3:
            return
        self._count("unlink")
        self.unlinked.add(item.item_id)
        self.note(f"unlink {item.item_id}")
        self._installation.ask(item.item_id, Lane.WEBHOOK)

    def _step(self) -> None:
        item = self._some()
        if item is not None:
            self.note(f"step {item.item_id}")
            self._plaid.step(item.item_id, changes=self._rng.randint(1, 6))
            if self._rng.random() < 0.5:
                # Once more while the pass that this one causes may be under way.
                self._later(self._rng.random() * 4.0, lambda: self._step_again(item))

    def _step_again(self, item: Item) -> None:
        if not item.removed:
            self.note(f"step again {item.item_id}")
            self._plaid.step(item.item_id)

    def _ask(self) -> None:
        item = self._some()
        if item is not None:
            self._installation.ask(item.item_id, Lane.MANUAL)

    # What Plaid and the banks do wrong.

    def _mutate(self) -> None:
        item = self._some()
        if item is not None:
            self._declare(item, MUTATION, page=self._rng.choice((2, 2, 3, None)), times=self._rng.choice((1, 2, 3, 7)))
            self._plaid.step(item.item_id, changes=8)

    def _refuse(self) -> None:
        item = self._some()
        if item is not None:
            endpoint = self._rng.choice(("/transactions/sync", "/transactions/sync", "/accounts/get", "/item/get"))
            page = self._rng.choice((None, 1, 2)) if endpoint == "/transactions/sync" else None
            self._declare(
                item,
                self._rng.choice(PASSING if self._is_healed else PASSING[:5]),
                endpoint=endpoint,
                page=page,
                times=self._rng.randint(1, 3),
            )

    def _end_an_item(self) -> None:
        item = self._some()
        if item is not None and len(self.explained) < 2:
            code = self._rng.choice(ENDING)
            self.explained[item.item_id] = code
            self._declare(item, code)

    def _break_the_way(self) -> None:
        item = self._some()
        if item is not None:
            self._declare(item, self._rng.choice(BROKEN), endpoint="*", times=self._rng.randint(1, 4))

    def _limit(self) -> None:
        item = self._some()
        if item is not None:
            self._declare(item, "TRANSACTIONS_SYNC_LIMIT", times=self._rng.randint(1, 3))

    def _declare(
        self, item: Item, code: str, *, endpoint: str = "/transactions/sync", page: int | None = None, times: int = 1
    ) -> None:
        self.note(f"fault {code} {item.item_id} {endpoint} page {page} times {times}")
        self._plaid.faults.declare(Fault(code=code, endpoint=endpoint, item_id=item.item_id, page=page, times=times))

    def _bank_down(self) -> None:
        bank = self._rng.choice(BANKS)
        if bank in self._plaid.institutions_down:
            return
        self._count("institution_down")
        self.note(f"bank down {bank}")
        self._plaid.institution_down(bank, code=self._rng.choice(BANK_CODES))
        self._later(self._rng.uniform(30.0, 600.0), lambda: self._plaid.institution_up(bank))

    def _login(self) -> None:
        item = self._some()
        if item is None or item.error_code is not None:
            return
        self._count("login_required")
        silent = self._is_healed and self._rng.random() < 0.3
        self.note(f"login required {item.item_id}")
        self._plaid.break_item(item, "ITEM_LOGIN_REQUIRED", silent=silent)
        self._later(self._rng.uniform(1.0, 300.0), lambda: self._repair(item))

    def _repair(self, item: Item) -> None:
        if item.error_code != "ITEM_LOGIN_REQUIRED" or item.removed:
            return
        self.note(f"login repaired {item.item_id}")
        self._plaid.repair_item(item, silent=self._is_healed and self._rng.random() < 0.2)
        if self._rng.random() < 0.5:
            # The word of the break arrives after that of the repair.
            self._count("repaired_before_told")
            error = {"error_code": "ITEM_LOGIN_REQUIRED", "error_type": "ITEM_ERROR"}
            self._plaid.notifier.notify(item, "ITEM", "ERROR", {"error": error})

    def _revoke(self) -> None:
        item = self._some()
        if item is None or len(self._live()) < 4:
            return
        self._count("permission_revoked")
        self.note(f"permission revoked {item.item_id}")
        self.explained[item.item_id] = "USER_PERMISSION_REVOKED"
        self._plaid.break_item(item, "USER_PERMISSION_REVOKED", silent=self._rng.random() < 0.3)

    # What our own parts do wrong.

    def _blind(self, item: Item) -> None:
        """The projections cannot read a user's records for a while; what they could not is redriven, perhaps early."""
        user = user_number(item.user)
        self._count("user_unreadable")
        self.note(f"unreadable {item.user}")
        self._installation.unreadable.add(user)
        self._plaid.step(item.item_id)
        if self._rng.random() < 0.5:
            self._later(self._rng.uniform(5.0, 60.0), lambda: self.operator.redrive(item))
        readable_s = self._rng.uniform(10.0, 200.0)
        self._later(readable_s, lambda: self._installation.unreadable.discard(user))
        if self._rng.random() < 0.5:
            self._later(readable_s + 1.0, lambda: self.operator.settle(self.items))

    def _hit(self, blow: Blow) -> None:
        name = self._rng.choice(sorted(self.workers))
        self._hazards.arm(name, Armed(blow, answered=self._rng.random() < 0.5))

    def _blow(self, process: Process, blow: Blow) -> None:
        self.note(f"{blow.value} {process.name}")
        self._later(self._rng.uniform(5.0, SESSION_S), lambda: self._leave(process))
        if blow is Blow.KILL:
            self._later(self._rng.choice((0.5, 5.0, 60.0)), lambda: self._restart(process))
        else:
            self._later(self._rng.choice((0.2, 8.0, 45.0, 150.0)), lambda: self._wake(process))

    def _leave(self, process: Process) -> None:
        if process.frozen:
            for group in self._installation.groups.values():
                group.leave(process)

    def _restart(self, process: Process) -> None:
        for group in self._installation.groups.values():
            group.leave(process)
        if process.name in self.workers and self.workers[process.name].process is process:
            self.buried.append(process)
            self._start(process.name)

    def _wake(self, process: Process) -> None:
        self.note(f"wakes {process.name}")
        process.wake()
        for group in self._installation.groups.values():
            group.join(process)

    def _start(self, name: str) -> None:
        self.note(f"start {name}")
        worker = self.workers[name] = Worker(self._installation, name, random.Random(self._rng.random()))
        for group in self._installation.groups.values():
            group.join(worker.process)
        worker.start()

    def _store_away(self) -> None:
        self._count("store_away")
        loop = asyncio.get_running_loop()
        self._installation.database.away_until = loop.time() + self._rng.choice((2.0, 20.0, 60.0))
        self.note("store away")
        if self._rng.random() < 0.5:
            self._installation.database.lost_answers_share = 0.05
            self._later(60.0, self._store_whole)

    def _store_whole(self) -> None:
        self._installation.database.lost_answers_share = 0.0

    def _broker_away(self) -> None:
        self._count("broker_away")
        loop = asyncio.get_running_loop()
        self._installation.broker.away_until = loop.time() + self._rng.choice((2.0, 20.0, 45.0))
        self._installation.broker.doubt_share = self._rng.choice((0.0, 0.1, 0.4))
        self.note("broker away")
        self._later(120.0, self._broker_whole)

    def _broker_whole(self) -> None:
        self._installation.broker.doubt_share = 0.0

    def _rebalance(self) -> None:
        self._count("rebalance")
        self.note("rebalance")
        for group in self._installation.groups.values():
            group.rebalance()

    def _lag(self) -> None:
        self._count("follower_lag")
        lag_s = self._rng.uniform(1.0, 30.0)
        for worker in self.workers.values():
            worker.lag_s = lag_s
        self._later(self._rng.uniform(30.0, 120.0), self._no_lag)

    def _no_lag(self) -> None:
        for worker in self.workers.values():
            worker.lag_s = 0.0

    def _ingest_away(self) -> None:
        self._count("ingest_away")
        self._ingest_away_until = asyncio.get_running_loop().time() + self._rng.uniform(5.0, 60.0)

    def _later(self, wait_s: float, act: Callable[[], None]) -> None:
        def unless_over() -> None:
            if not self._is_over:
                act()

        asyncio.get_running_loop().call_later(wait_s, unless_over)

    def _heal(self) -> None:
        """End every fault."""
        self.note("heal")
        self._is_over = True
        self._hazards.disarm()
        self._plaid.faults.withdraw()
        self._banking.heal()
        self._installation.unreadable.clear()
        for bank in sorted(self._plaid.institutions_down):
            self._plaid.institution_up(bank)
        for item in self.items:
            if item.error_code == "ITEM_LOGIN_REQUIRED" and not item.removed:
                self._plaid.repair_item(item)
        broker, database = self._installation.broker, self._installation.database
        broker.doubt_share = database.lost_answers_share = broker.away_until = database.away_until = 0.0
        self._ingest_away_until = 0.0
        self._no_lag()
        for worker in list(self.workers.values()):
            if worker.process.dead:
                self._restart(worker.process)
            elif worker.process.frozen:
                self._wake(worker.process)
