"""Schedule webhooks: copies, retries and their end, without I/O; `sender` posts the due ones.

Source: Plaid documentation, Webhooks: anything but 200 within ten seconds is a failure; retries for up to 24 hours,
the first after 30 seconds, each wait four times the one before; 429 with Retry-After is honoured up to four hours;
no retries for an endpoint that rejected more than 90 percent of its webhooks in 24 hours.
"""

import datetime as dt
import heapq
from collections import Counter, deque
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from sandbox.simulator.bank.randomness import derive
from sandbox.simulator.options import WebhookRates

RETRY_FIRST_S = 30.0
RETRY_FACTOR = 4
LIFE_S = 24 * 3600.0
RETRY_AFTER_MAX_S = 4 * 3600.0
REJECTED_MAX = 0.9
REJECTED_OF_MIN = 10
"""Answers in 24 hours below which the 90 percent rule does not apply: one refusal of one would be 100 percent."""

WINDOW_MAX = 20_000
"""Answers remembered for an endpoint; a day with more is judged by its newest ones."""

RECORDS_MAX = 100_000
"""Attempts remembered for measurements; older ones are dropped."""

FAULTS_MAX = 10_000
"""Faults declared at once; a test that needs more declares a rate."""

WAITING_MAX = 500_000
"""Deliveries waiting at once; beyond it a webhook is dropped and counted."""


class Webhook(msgspec.Struct, frozen=True, gc=False):
    """A webhook; its raw body is signed."""

    number: int
    item_id: str
    url: str
    code: str
    body: bytes
    made_at: dt.datetime


class WebhookFault(msgspec.Struct, kw_only=True):
    """A declared fault of the next `times` webhooks of an Item (None: any) and a code (None: any).

    `lost`: no attempt is sent. `repeated`: a second copy follows after `delay_s`. `late`: the only copy is sent
    `delay_s` later.
    """

    kind: Literal["lost", "repeated", "late"]
    item_id: str | None = None
    code: str | None = None
    times: int = 1
    delay_s: float = 0.0


class Attempt(msgspec.Struct):
    """One attempt, for measurements. Units: seconds since 1970; `status` 0: no answer."""

    item_id: str
    code: str
    number: int
    attempt: int
    made_at: float
    sent_at: float
    answered_at: float | None = None
    status: int | None = None


@dataclass(order=True, slots=True)
class Delivery:
    """One copy of a webhook in delivery."""

    due_at: dt.datetime
    order: int
    webhook: Webhook = field(compare=False)
    attempt: int = field(default=1, compare=False)
    signature: str | None = field(default=None, compare=False)
    record: Attempt | None = field(default=None, compare=False)


class DeliveryQueue:
    """Schedule the attempts of each copy of each webhook."""

    def __init__(self, *, seed: int, rates: WebhookRates, time_scale: float, in_flight_max: int) -> None:
        self._seed = seed
        self.rates = rates
        self._time_scale = time_scale
        self._in_flight_max = in_flight_max
        self._heap: list[Delivery] = []
        self._order = 0
        self._faults: list[WebhookFault] = []
        self._answers: dict[str, deque[tuple[dt.datetime, bool]]] = {}
        self.in_flight = 0
        self.counts: Counter[str] = Counter()
        self.records: deque[Attempt] = deque(maxlen=RECORDS_MAX)

    @property
    def quiet(self) -> bool:
        """No delivery waits or is in flight."""
        return not self._heap and not self.in_flight

    @property
    def waiting(self) -> int:
        """Number of deliveries that wait for their time."""
        return len(self._heap)

    def declare(self, fault: WebhookFault) -> None:
        """Declare a fault of coming webhooks. Raises: ValueError, where too many are declared."""
        if len(self._faults) >= FAULTS_MAX:
            raise ValueError(f"more than {FAULTS_MAX} faults declared")
        self._faults.append(fault)

    def withdraw(self) -> int:
        """Delete the declared faults and return their number."""
        count = len(self._faults)
        self._faults.clear()
        return count

    def submit(self, webhook: Webhook, *, late_s: float = 0.0) -> None:
        """Add a webhook; a declared fault, else the seed, may lose, repeat or delay it."""
        self.counts["made"] += 1
        fault = self._take_match(webhook)
        drawn = copy_delays(self._seed, webhook.number, self.rates) if fault is None else _faulty_delays(fault)
        delays = [late_s + delay_s for delay_s in drawn]
        if not delays:
            self.counts["lost"] += 1
        for delay_s in delays:
            if len(self._heap) >= WAITING_MAX:
                self.counts["dropped"] += 1
                return
            self._push(webhook, webhook.made_at + self._scaled(delay_s), attempt=1)

    def due(self, now: dt.datetime) -> list[Delivery]:
        """Return the due deliveries, as many as may be in flight at once."""
        due = []
        while self._heap and self._heap[0].due_at <= now and self.in_flight < self._in_flight_max:
            delivery = heapq.heappop(self._heap)
            webhook = delivery.webhook
            delivery.record = Attempt(
                webhook.item_id,
                webhook.code,
                webhook.number,
                delivery.attempt,
                webhook.made_at.timestamp(),
                now.timestamp(),
            )
            self.records.append(delivery.record)
            self.in_flight += 1
            self.counts["sent"] += 1
            due.append(delivery)
        return due

    def next_due_at(self) -> dt.datetime | None:
        """Return the time of the next delivery; None where none waits or no more may be in flight."""
        if not self._heap or self.in_flight >= self._in_flight_max:
            return None
        return self._heap[0].due_at

    def record_answer(self, delivery: Delivery, *, status: int, retry_after: str | None, now: dt.datetime) -> None:
        """Record an answer (`status` 0: none came) and schedule a retry, if there is one."""
        self.in_flight -= 1
        webhook = delivery.webhook
        if delivery.record is not None:
            delivery.record.status = status
            delivery.record.answered_at = now.timestamp()
        answers = self._answers.setdefault(webhook.url, deque(maxlen=WINDOW_MAX))
        answers.append((now, status == 200))
        if status == 200:
            self.counts["acked"] += 1
            return
        self.counts["failed"] += 1
        wait_s = RETRY_FIRST_S * RETRY_FACTOR ** (delivery.attempt - 1)
        if status == 429 and retry_after is not None:
            requested_s = retry_after_s(retry_after, now)
            wait_s = min(requested_s, RETRY_AFTER_MAX_S) if requested_s is not None else wait_s
        due_at = now + self._scaled(wait_s)
        if due_at > webhook.made_at + self._scaled(LIFE_S):
            self.counts["expired"] += 1
        elif self._rejects_nearly_all(answers, now):
            self.counts["abandoned"] += 1
        else:
            self._push(webhook, due_at, attempt=delivery.attempt + 1, signature=delivery.signature)

    def _take_match(self, webhook: Webhook) -> WebhookFault | None:
        for fault in self._faults:
            if fault.item_id in (None, webhook.item_id) and fault.code in (None, webhook.code):
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
                return fault
        return None

    def _push(self, webhook: Webhook, due_at: dt.datetime, *, attempt: int, signature: str | None = None) -> None:
        self._order += 1
        heapq.heappush(self._heap, Delivery(due_at, self._order, webhook, attempt, signature))

    def _rejects_nearly_all(self, answers: deque[tuple[dt.datetime, bool]], now: dt.datetime) -> bool:
        while answers and now - answers[0][0] > self._scaled(LIFE_S):
            answers.popleft()
        rejected = sum(1 for _, accepted in answers if not accepted)
        return len(answers) >= REJECTED_OF_MIN and rejected > len(answers) * REJECTED_MAX

    def _scaled(self, seconds: float) -> dt.timedelta:
        return dt.timedelta(seconds=seconds * self._time_scale)


def _faulty_delays(fault: WebhookFault) -> tuple[float, ...]:
    if fault.kind == "lost":
        return ()
    return (fault.delay_s,) if fault.kind == "late" else (0.0, fault.delay_s)


def copy_delays(seed: int, number: int, rates: WebhookRates) -> tuple[float, ...]:
    """Draw the delay of each copy of a webhook in seconds: none where it is lost, two where it is repeated."""
    if not (rates.lost or rates.repeated or rates.delayed):
        return (0.0,)
    rng = derive(seed, "webhook fate", number)
    if rng.random() < rates.lost:
        return ()
    first_s = rng.random() * rates.delay_max_s if rng.random() < rates.delayed else 0.0
    if rng.random() < rates.repeated:
        return (first_s, first_s + rng.random() * rates.delay_max_s)
    return (first_s,)


def retry_after_s(text: str, now: dt.datetime) -> float | None:
    """Parse a Retry-After header: seconds, an HTTP date or ISO 8601; None where it is invalid."""
    if text.strip().isdigit():
        return float(text)
    for parse in (dt.datetime.fromisoformat, parsedate_to_datetime):
        try:
            retry_at = parse(text.strip())
        except ValueError:
            continue
        retry_at = retry_at if retry_at.tzinfo else retry_at.replace(tzinfo=dt.UTC)
        return max(0.0, (retry_at - now).total_seconds())
    return None
