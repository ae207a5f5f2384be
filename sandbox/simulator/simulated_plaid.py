"""Compose a simulated Plaid: bank, clock, scenarios, webhooks and injected faults.

Nothing here awaits. Delayed work (readiness, refreshes) waits in `tasks`, webhooks wait in `deliveries`.
"""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandbox.simulator.api.limits import TABLES, RateLimiter
from sandbox.simulator.api.plaid_errors import ITEM_STATES, OUTAGES, PlaidFailure, item_error
from sandbox.simulator.api.rendering import RenderCache, Variant
from sandbox.simulator.api.signing import Keyring
from sandbox.simulator.bank import relinked_ids, scenarios
from sandbox.simulator.bank.bank import Bank, Item, open_account
from sandbox.simulator.bank.generators import GeneratorSettings, TransactionGenerator, history
from sandbox.simulator.bank.institutions import INSTITUTIONS, ROTATION
from sandbox.simulator.bank.merchants import catalogue
from sandbox.simulator.bank.randomness import derive, plaid_id, token
from sandbox.simulator.bank.sync import INITIAL_DAYS, Pager
from sandbox.simulator.bank.transactions import Change
from sandbox.simulator.clock import Clock, RealClock
from sandbox.simulator.control import scripted_data
from sandbox.simulator.control.faults import Faults
from sandbox.simulator.options import Options
from sandbox.simulator.task_queue import TaskQueue
from sandbox.simulator.webhooks.delivery import DeliveryQueue
from sandbox.simulator.webhooks.notifications import Notifier

DAYS_REQUESTED_DEFAULT = 90
"""Source: Plaid API, /transactions/sync, days_requested."""

LINK_TOKENS_MAX = 10_000
"""Link tokens remembered; the oldest is dropped first, as Plaid's expire within hours."""

REQUEST_ID_LENGTH = 15


@dataclass(frozen=True, slots=True)
class LinkSession:
    """The request of `/link/token/create`; the simulator's Link creates an Item from it."""

    user: str
    webhook_url: str | None
    products: tuple[str, ...]
    access_token: str | None
    days_requested: int


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The update of one step; without changes where Plaid cannot reach the bank."""

    item: Item
    changes: Sequence[Change]
    at: dt.datetime


class SimulatedPlaid:
    """One simulated Plaid. `on_wake` is called when a task or a delivery was added."""

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        self.options = options
        self.clock = clock or RealClock(options.start_at)
        self.bank = Bank(INSTITUTIONS)
        self.render_cache = RenderCache()
        self.keyring = Keyring(options.seed, self.clock.now())
        self.faults = Faults(options.seed, options.faults)
        self.rate_limiter = RateLimiter(TABLES[options.rate_limits])
        self.pager = Pager(
            seed=options.seed, unfolded_share=options.unfolded_share, page_split_share=options.page_split_share
        )
        self.deliveries = DeliveryQueue(
            seed=options.seed,
            rates=options.webhooks,
            time_scale=options.time_scale,
            in_flight_max=options.deliveries_in_flight_max,
        )
        self.generator_settings = GeneratorSettings(catalogue(options.seed), options.novelty)
        self.institutions_down: dict[str, str] = {}
        """Codes of outages by institution."""
        self.link_sessions: dict[str, LinkSession] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        self.on_wake: Callable[[], None] = lambda: None
        self.tasks = TaskQueue(self.clock, time_scale=options.time_scale, on_wake=self._wake)
        self.notifier = Notifier(
            self.clock,
            self.keyring,
            self.deliveries,
            rotate_key_every=options.rotate_key_every,
            resign_retries=options.resign_retries,
            on_wake=self._wake,
        )
        self._steps = 0
        self._request_ids = derive(options.seed, "request ids")
        self._tokens = derive(options.seed, "tokens")

    def create_item(
        self,
        user: str,
        *,
        institution_id: str | None = None,
        transactions: int | None = None,
        days: int | None = None,
        webhook_url: str | None = None,
        products: tuple[str, ...] = ("transactions",),
        ready: bool = True,
        custom: str | None = None,
    ) -> Item:
        """Create an Item with a history that is there at once (`ready`) or arrives in the two steps of Plaid.

        `custom` is a custom user's configuration, which then defines the accounts and rows.
        Raises: PlaidFailure, where the institution is unknown or the configuration is invalid.
        """
        ordinal = len(self.bank.items)
        institution = self.bank.institutions.get(institution_id or ROTATION[ordinal % len(ROTATION)])
        if institution is None:
            raise PlaidFailure("INVALID_INSTITUTION")
        if custom is not None:
            institution = scripted_data.custom_user(custom, institution)
        now = self.clock.now()
        item = self.bank.open_item(
            derive(self.options.seed, "item", ordinal),
            user=user,
            institution=institution,
            created_at=now,
            webhook_url=webhook_url or self.options.webhook_url,
            products=products,
        )
        rng = derive(self.options.seed, "history", ordinal)
        generator = TransactionGenerator(rng, item, self.generator_settings, now)
        if custom is not None:
            past = scripted_data.custom_history(generator, custom)
        else:
            count = self.options.history_transactions if transactions is None else transactions
            past = history(generator, transactions=count, days=days or self.options.history_days)
        if ready:
            self._complete_history(item, past)
        else:
            first_day = now.date() - dt.timedelta(INITIAL_DAYS)
            item.recent_history = [c for c in past if c.transaction.date > first_day]
            item.older_history = [c for c in past if c.transaction.date <= first_day]
            self.tasks.add(self.options.initial_update_delay_s, lambda: self._finish_initial(item))
            self.tasks.add(self.options.historical_update_delay_s, lambda: self._finish_historical(item))
        return item

    def relink(self, old: Item) -> Item:
        """Link the same login again: the same accounts and rows under new ids.

        Source: measured re-links, 0 of 108 transaction ids shared; `persistent_account_id` and mask stay.
        """
        ordinal = len(self.bank.items)
        item = self.bank.open_item(
            derive(self.options.seed, "item", ordinal),
            user=old.user,
            institution=old.institution,
            created_at=self.clock.now(),
            webhook_url=old.webhook_url,
            products=old.products,
        )
        changes = relinked_ids.relinked_changes(derive(self.options.seed, "relink", ordinal), old, item)
        self._complete_history(item, changes)
        return item

    def prerender(self, item: Item) -> None:
        """Render an Item's rows before the first request, in the variant of the usual request."""
        variant = Variant(original_description=True, category_version=self.options.category_version)
        for row in item.live.values():
            self.render_cache.body(row, variant)

    def step(self, item_id: str | None = None, *, changes: int = 1) -> UpdateResult | None:
        """Create a random update of an Item, or of one that the seed chooses, and send its webhook.

        Returns None where there is no Item to choose. Raises: PlaidFailure, where the Item is unknown.
        """
        self._steps += 1
        if item_id is None:
            chosen = self.bank.draw(derive(self.options.seed, "chosen", self._steps), self.reachable)
            if chosen is None:
                return None
            item = chosen
        else:
            item = self.item(item_id)
        if not self.reachable(item):
            item.withheld_changes += changes
            return UpdateResult(item, (), self.clock.now())
        return self._update(item, lambda generator: scenarios.step(generator, changes=changes))

    def refresh(self, item: Item) -> None:
        """Update an Item after a delay, if Plaid can reach its bank then.

        The update has the changes that waited unseen at the bank, else those of the sandbox's dynamic user.
        """

        def update() -> None:
            if item.removed:
                return
            if not self.reachable(item):
                item.last_failed_update = self.clock.now()
            elif item.withheld_changes:
                self._catch_up(item)
            else:
                self._update(item, scenarios.refreshed)

        self.tasks.add(self.options.refresh_delay_s, update)

    def apply_update(self, item: Item, generate: Callable[[TransactionGenerator], list[Change]]) -> UpdateResult:
        """Apply exactly this update. Raises: ValueError, where Plaid cannot reach the bank."""
        if not self.reachable(item):
            raise ValueError(f"Item {item.item_id} cannot be reached: an update would not be seen")
        return self._update(item, generate)

    def item(self, item_id: str) -> Item:
        """Return an Item that is not removed. Raises: PlaidFailure (ITEM_NOT_FOUND)."""
        item = self.bank.items.get(item_id)
        if item is None or item.removed:
            raise PlaidFailure("ITEM_NOT_FOUND")
        return item

    def reachable(self, item: Item) -> bool:
        """Return whether Plaid can read the Item's bank now."""
        is_up = item.error_code is None and self.outage_code(item) is None
        return is_up and item.phase != "NOT_READY" and bool(item.transaction_accounts)

    def outage_code(self, item: Item) -> str | None:
        """Return the code of its bank's outage; None where the bank is up."""
        return self.institutions_down.get(item.institution.institution_id)

    def poll(self, item: Item) -> None:
        """Poll the bank, as Plaid does a few times a day; this counts as an update even without changes."""
        if self.reachable(item):
            item.last_successful_update = self.clock.now()
            self._catch_up(item)
        else:
            item.last_failed_update = self.clock.now()

    def break_item(
        self, item: Item, code: str, *, reason: str | None = None, silent: bool = False, late_s: float = 0.0
    ) -> None:
        """Put an Item into an error state and send the webhook, `late_s` late and unless `silent`."""
        if code not in ITEM_STATES:
            raise ValueError(f"{code!r} is not a state of an Item")
        item.error_code, item.error_reason = code, reason
        item.last_failed_update = self.clock.now()
        if not silent:
            webhook_code = "USER_PERMISSION_REVOKED" if code == "USER_PERMISSION_REVOKED" else "ERROR"
            error = item_error(code, reason=reason)
            self.notifier.notify(item, "ITEM", webhook_code, {"error": error}, late_s=late_s)

    def repair_item(self, item: Item, *, silent: bool = False, late_s: float = 0.0) -> None:
        """Clear an Item's error; the bank's changes of the meantime arrive in one update."""
        item.error_code = item.error_reason = None
        if not silent:
            self.notifier.notify(item, "ITEM", "LOGIN_REPAIRED", {}, late_s=late_s)
        self._catch_up(item)

    def institution_down(
        self, institution_id: str, *, code: str = "INSTITUTION_DOWN", for_s: float | None = None
    ) -> None:
        """Begin a bank's outage, for a time or until `institution_up`: refuse every request that needs the bank.

        `/item/get` and `/item/remove` do not need the bank and go on.
        Raises: PlaidFailure, where there is no such bank; ValueError, where the code is not of banks.
        """
        if institution_id not in self.bank.institutions:
            raise PlaidFailure("INVALID_INSTITUTION")
        if code not in OUTAGES:
            raise ValueError(f"{code!r} is no outage of a bank")
        self.institutions_down[institution_id] = code
        if for_s is not None:
            self.tasks.add(for_s, lambda: self.institution_up(institution_id))

    def institution_up(self, institution_id: str) -> None:
        """End a bank's outage; the changes of the meantime arrive."""
        self.institutions_down.pop(institution_id, None)
        for item in self.bank.active_items():
            if item.institution.institution_id == institution_id:
                self._catch_up(item)

    def become_ready(self, item: Item) -> None:
        """Finish an Item's first fetches now."""
        self._finish_initial(item)
        self._finish_historical(item)

    def public_token(self, item: Item) -> str:
        """Create a public token."""
        return self.bank.offer(item, self._tokens, self.clock.now())

    def new_access_token(self, item: Item) -> str:
        """Replace an Item's access token."""
        return self.bank.rotate(item, self._tokens)

    def link_token(self, session: LinkSession) -> str:
        """Store a Link session and return its token."""
        link_token = token("link", self._tokens)
        while len(self.link_sessions) >= LINK_TOKENS_MAX:
            del self.link_sessions[next(iter(self.link_sessions))]
        self.link_sessions[link_token] = session
        return link_token

    def complete_link(self, link_token: str, *, institution_id: str | None) -> Item:
        """Complete Link as a user does: create a new Item, or in update mode repair the old one.

        Raises: PlaidFailure (INVALID_LINK_TOKEN).
        """
        session = self.link_sessions.pop(link_token, None)
        if session is None:
            raise PlaidFailure("INVALID_LINK_TOKEN")
        if session.access_token is not None:
            item = self.bank.by_access_token(session.access_token)
            if item is None:
                raise PlaidFailure("INVALID_ACCESS_TOKEN")
            self._add_offered_accounts(item)
            self.repair_item(item, silent=item.error_code is None)
            return item
        return self.create_item(
            session.user,
            institution_id=institution_id,
            days=session.days_requested,
            webhook_url=session.webhook_url,
            products=session.products,
            ready=False,
        )

    def request_id(self) -> str:
        """Return the next request id."""
        return plaid_id(self._request_ids)[:REQUEST_ID_LENGTH]

    def _add_offered_accounts(self, item: Item) -> None:
        rng = derive(self.options.seed, "offered", item.ordinal, len(item.accounts))
        for _ in range(item.offered_accounts):
            plan = rng.choice(item.institution.plans)
            account = open_account(rng, plan._replace(name=f"{plan.name} {len(item.accounts) + 1}"))
            item.accounts[account.account_id] = account
        item.offered_accounts = 0

    def _wake(self) -> None:
        self.on_wake()

    def _update(self, item: Item, generate: Callable[[TransactionGenerator], list[Change]]) -> UpdateResult:
        now = self.clock.now()
        rng = derive(self.options.seed, "step", item.ordinal, item.updates)
        changes = generate(TransactionGenerator(rng, item, self.generator_settings, now))
        item.apply(changes)
        item.last_successful_update = now
        if item.synced_once:
            self.notifier.notify_updates(item)
        if self.options.legacy_webhooks:
            self.notifier.notify_legacy_update(item, changes)
        return UpdateResult(item, changes, now)

    def _complete_history(self, item: Item, changes: Sequence[Change]) -> None:
        item.apply_history(changes)
        item.phase = "HISTORICAL_UPDATE_COMPLETE"
        item.last_successful_update = self.clock.now()

    def _finish_initial(self, item: Item) -> None:
        if item.phase == "NOT_READY" and not item.removed:
            item.phase = "INITIAL_UPDATE_COMPLETE"
            self._add_history(item, item.recent_history, legacy_code="INITIAL_UPDATE")
            item.recent_history = []

    def _finish_historical(self, item: Item) -> None:
        if item.phase == "INITIAL_UPDATE_COMPLETE" and not item.removed:
            item.phase = "HISTORICAL_UPDATE_COMPLETE"
            self._add_history(item, item.older_history, legacy_code="HISTORICAL_UPDATE")
            item.older_history = []

    def _add_history(self, item: Item, changes: Sequence[Change], *, legacy_code: str) -> None:
        item.apply_history(changes)
        item.last_successful_update = self.clock.now()
        if item.synced_once:
            self.notifier.notify_updates(item)
        if self.options.legacy_webhooks:
            self.notifier.notify_legacy_history(item, legacy_code, len(changes))
        self._catch_up(item)

    def _catch_up(self, item: Item) -> None:
        if item.withheld_changes and self.reachable(item):
            changes, item.withheld_changes = item.withheld_changes, 0
            self._update(item, lambda generator: scenarios.step(generator, changes=changes))
