"""Live view of a running stack in the terminal: stages, rates, latencies, last messages."""

import time
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sandbox.infra.stack import Stack
from sandbox.observe.browsers import Browsers
from sandbox.observe.observer import Session


class LiveView:
    """Draw the view; rates are those since the drawing before."""

    def __init__(self, stack: Stack, session: Session, browsers: Browsers) -> None:
        self._stack, self._session, self._browsers = stack, session, browsers
        self._before: tuple[float, dict[str, int]] | None = None

    async def draw(self) -> Group:
        """Read the present state and return it as tables."""
        now = time.monotonic()
        counts = await self._session.observer.counts() | {"pushes": self._browsers.messages}
        before_at, before = self._before or (now - 1.0, counts)
        self._before = (now, counts)
        flow = Table("", title="what flows", expand=True)
        for name in ("in all", "a second"):
            flow.add_column(name, justify="right")
        for name in ("webhooks", "changesets", "events", "transactions", "transfers", "pushes"):
            rate = (counts[name] - before[name]) / max(now - before_at, 0.001)
            flow.add_row(name, f"{counts[name]:,}", f"{rate:,.1f}")
        stages = Table("process", "pid", "restarts", title="stages", expand=True)
        for stage in self._stack.stages.values():
            stages.add_row(stage.name, str(stage.pid), str(stage.restarts))
        messages = Table(title="last messages", expand=True)
        for name in ("user", "event", "content"):
            messages.add_column(name, no_wrap=True)
        for user, message in self._browsers.last:
            messages.add_row(user, message["event"], _summary(message["data"]))
        return Group(stages, flow, await self._latencies(), messages, Text("Ctrl-C stops it.", "dim"))

    async def _latencies(self) -> Panel:
        deliveries = await self._session.bank.deliveries()
        row = await self._session.observer.webhook_to_row(deliveries)
        push = await self._session.observer.webhook_to_push(deliveries, self._browsers.arrived_at)
        return Panel(
            f"webhook to committed row   p50 {_ms(row.p50)}   p99 {_ms(row.p99)}\n"
            f"webhook to the browser     p50 {_ms(push.p50)}   p99 {_ms(push.p99)}",
            title="latency",
        )


def _ms(value: float | None) -> str:
    return "   –   " if value is None else f"{value:6.1f} ms"


def _summary(data: dict[str, Any]) -> str:
    names = ("date", "merchant_name", "name", "amount", "current", "currency", "state")
    # The bank's own name often equals the merchant's: show it once.
    return " ".join(dict.fromkeys(str(data[name]) for name in names if data.get(name)))[:60]
