"""The live view of a running world in the terminal: stages, rates, latencies, last messages."""

import time
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sandbox.infra.clients import Bank
from sandbox.infra.stack import Stack
from sandbox.observe.browsers import Watch
from sandbox.observe.observer import Observer


class View:
    """The live view: stages, rates, latencies, last events."""

    def __init__(self, world: Stack, observer: Observer, bank: Bank, watch: Watch) -> None:
        self._world, self._observer, self._bank, self._watch = world, observer, bank, watch
        self._before: tuple[float, dict[str, int]] | None = None

    async def shown(self) -> Group:
        """Draw it."""
        now, counts = time.monotonic(), await self._observer.counts() | {"pushes": self._watch.messages}
        before_at, before = self._before or (now - 1.0, counts)
        self._before = (now, counts)
        flow = Table(title="what flows", expand=True)
        for name in ("", "in all", "a second"):
            flow.add_column(name, justify="left" if not name else "right")
        for name in ("webhooks", "changesets", "events", "transactions", "transfers", "pushes"):
            rate = (counts[name] - before[name]) / max(now - before_at, 0.001)
            flow.add_row(name, f"{counts[name]:,}", f"{rate:,.1f}")
        return Group(self._stages(), flow, await self._latencies(), self._events(), Text("Ctrl-C stops it.", "dim"))

    def _stages(self) -> Table:
        table = Table(title="stages", expand=True)
        for name in ("process", "pid", "restarts"):
            table.add_column(name)
        for stage in self._world.stages.values():
            table.add_row(stage.name, str(stage.pid), str(stage.restarts))
        return table

    async def _latencies(self) -> Panel:
        deliveries = await self._bank.deliveries()
        row = await self._observer.webhook_to_row(deliveries)
        push = await self._observer.webhook_to_push(deliveries, self._watch.arrived)
        return Panel(
            f"webhook to committed row   p50 {_ms(row.p50)}   p99 {_ms(row.p99)}\n"
            f"webhook to the browser     p50 {_ms(push.p50)}   p99 {_ms(push.p99)}",
            title="latency",
        )

    def _events(self) -> Table:
        table = Table(title="last messages", expand=True)
        for name in ("user", "event", "what"):
            table.add_column(name, no_wrap=True)
        for user, message in self._watch.last:
            table.add_row(user, message["event"], _told(message["data"]))
        return table


def _ms(value: float | None) -> str:
    return "   –   " if value is None else f"{value:6.1f} ms"


def _told(data: dict[str, Any]) -> str:
    names = ("date", "merchant_name", "name", "amount", "current", "currency", "state")
    # The bank's own name often is the merchant's: once is enough.
    return " ".join(dict.fromkeys(str(data[name]) for name in names if data.get(name)))[:60]
