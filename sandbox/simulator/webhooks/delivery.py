"""What becomes of a webhook: its copies, its retries, its end. Pure; `sender` posts what is due.

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
"""Answers in 24 hours below which the 90 percent rule does not speak: one refusal of one would be all."""

WINDOW_MAX = 20_000
"""Answers remembered for an endpoint; a day with more is judged by its youngest ones."""

RECORDS_MAX = 100_000
"""Attempts remembered for measurements; older ones are forgotten."""

FATES_MAX = 10_000
"""Fates declared at once; a test that needs more declares a rate."""

WAITING_MAX = 500_000
"""Deliveries waiting at once; beyond it a webhook is dropped and counted, as the memory is not for ever."""


class Webhook(msgspec.Struct, frozen=True, gc=False):
    """A webhook as it was made: its raw body is what is signed."""

    number: int
    item_id: str
    url: str
    code: str
    body: bytes
    made_at: dt.datetime


class WebhookFault(msgspec.Struct, kw_only=True):
    """What is declared to become of webhooks of an Item (None: any) and a code (None: any), `times` of them.

    `lost`: no attempt ever arrives. `repeated`: a second copy follows after `delay_s`. `late`: the only copy goes out
    so much later.
    """

    kind: Literal["lost", "repeated", "late"]
    item_id: str | None = None
    code: str | None = None
    times: int = 1
    delay_s: float = 0.0


class Record(msgspec.Struct):
    """One attempt, for measurements. Units: seconds since 1970; `status` 0 where nobody answered."""

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
    """One copy of a webhook on its way."""

    due_at: dt.datetime
    order: int
    webhook: Webhook = field(compare=False)
    attempt: int = field(default=1, compare=False)
    signature: str | None = field(default=None, compare=False)
    record: Record | None = field(default=None, compare=False)


class DeliveryQueue:
    """Decides when each copy of each webhook is tried, and when no more."""

    def __init__(self, *, seed: int, rates: WebhookRates, time_scale: float, in_flight_max: int) -> None:
        self._seed = seed
        self.rates = rates
        self._time_scale = time_scale
        self._in_flight_max = in_flight_max
        self._heap: list[Delivery] = []
        self._order = 0
        self._fates: list[WebhookFault] = []
        self._answers: dict[str, deque[tuple[dt.datetime, bool]]] = {}
        self.in_flight = 0
        self.counts: Counter[str] = Counter()
        self.records: deque[Record] = deque(maxlen=RECORDS_MAX)

    @property
    def quiet(self) -> bool:
        """Whether nothing is on its way and nothing waits."""
        return not self._heap and not self.in_flight

    @property
    def waiting(self) -> int:
        """Deliveries that wait for their time."""
        return len(self._heap)

    def declare(self, fate: WebhookFault) -> None:
        """Decide about webhooks to come. Raises: ValueError, where too much is decided already."""
        if len(self._fates) >= FATES_MAX:
            raise ValueError(f"more than {FATES_MAX} fates declared")
        self._fates.append(fate)

    def withdraw(self) -> int:
        """Forget the declared fates and say how many there were."""
        count = len(self._fates)
        self._fates.clear()
        return count

    def submit(self, webhook: Webhook, *, late_s: float = 0.0) -> None:
        """Take a webhook: a declared fate, else the seed, may lose it, repeat it or hold it back."""
        self.counts["made"] += 1
        declared = self._strike(webhook)
        drawn = copy_delays(self._seed, webhook.number, self.rates) if declared is None else _copies(declared)
        delays = [late_s + delay_s for delay_s in drawn]
        if not delays:
            self.counts["lost"] += 1
        for delay_s in delays:
            if len(self._heap) >= WAITING_MAX:
                self.counts["dropped"] += 1
                return
            self._push(webhook, webhook.made_at + self._scaled(delay_s), attempt=1)

    def due(self, now: dt.datetime) -> list[Delivery]:
        """Take what is due now, as many as may be on their way at once."""
        taken = []
        while self._heap and self._heap[0].due_at <= now and self.in_flight < self._in_flight_max:
            delivery = heapq.heappop(self._heap)
            webhook = delivery.webhook
            delivery.record = Record(
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
            taken.append(delivery)
        return taken

    def next_due_at(self) -> dt.datetime | None:
        """Say when the next delivery is due; None where nothing waits or no more may be on its way."""
        if not self._heap or self.in_flight >= self._in_flight_max:
            return None
        return self._heap[0].due_at

    def record_answer(self, delivery: Delivery, *, status: int, retry_after: str | None, now: dt.datetime) -> None:
        """Note an answer (`status` 0: none came) and plan what follows."""
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
            asked_s = retry_after_s(retry_after, now)
            wait_s = min(asked_s, RETRY_AFTER_MAX_S) if asked_s is not None else wait_s
        due_at = now + self._scaled(wait_s)
        if due_at > webhook.made_at + self._scaled(LIFE_S):
            self.counts["expired"] += 1
        elif self._rejects_nearly_all(answers, now):
            self.counts["abandoned"] += 1
        else:
            self._push(webhook, due_at, attempt=delivery.attempt + 1, signature=delivery.signature)

    def _strike(self, webhook: Webhook) -> WebhookFault | None:
        for fate in self._fates:
            if fate.item_id in (None, webhook.item_id) and fate.code in (None, webhook.code):
                fate.times -= 1
                if fate.times <= 0:
                    self._fates.remove(fate)
                return fate
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


def _copies(fate: WebhookFault) -> tuple[float, ...]:
    if fate.kind == "lost":
        return ()
    return (fate.delay_s,) if fate.kind == "late" else (0.0, fate.delay_s)


def copy_delays(seed: int, number: int, rates: WebhookRates) -> tuple[float, ...]:
    """Give the delay of each copy of a webhook in seconds: none where it is lost, two where it is repeated."""
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
    """Read a Retry-After header: seconds, an HTTP date or ISO 8601; None where it is none of them."""
    if text.strip().isdigit():
        return float(text)
    for read in (dt.datetime.fromisoformat, parsedate_to_datetime):
        try:
            at = read(text.strip())
        except ValueError:
            continue
        at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        return max(0.0, (at - now).total_seconds())
    return None
