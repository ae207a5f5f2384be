"""Plan for a cluster's topics: the steps that create, change or refuse, by comparison with the table of topics."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from msgspec import Struct, field

from schemas.topics import Topic

FOR_EVER = -1
RETENTION, POLICY, REPLICAS_IN_SYNC = "retention.ms", "cleanup.policy", "min.insync.replicas"
LOSING = {RETENTION: "-1", "retention.bytes": "-1", POLICY: "delete"}
"""Settings by which a topic loses records, with the value at which none is lost."""


class PlannedTopic(NamedTuple):
    """A topic as the table and the settings define it."""

    topic: Topic
    name: str
    partitions: int
    replicas: int
    settings: Mapping[str, str]


class ExistingTopic(NamedTuple):
    """A topic in the cluster. `led`: partitions with a leader; `replicas`: the fewest of any partition.

    `own` are the settings of the topic itself; `settings` are all in force, the cluster's defaults included.
    """

    partitions: int
    led: int
    replicas: int
    settings: Mapping[str, str]
    own: Mapping[str, str]


class ReadProgress(NamedTuple):
    """The positions of a topic in Postgres: the furthest one, and the number of partitions that have one.

    `partitions` None: no reader stores one of every partition.
    """

    furthest: int
    partitions: int | None


class Step(Struct, frozen=True):
    """One difference between table and cluster, and the action about it."""

    action: Literal["create", "change", "refuse"]
    topic: str
    setting: str = ""
    old: str = ""
    new: str = ""
    deletes: bool = False
    why: str = ""

    @property
    def line(self) -> str:
        """The step as a line of a plan."""
        change = f"{self.setting} {self.old} -> {self.new}"
        match self.action:
            case "create":
                return f"+ {self.topic}: create with {self.new}"
            case "change":
                return f"~ {self.topic}: {change}" + (f" (deletes records: {self.why})" if self.deletes else "")
            case "refuse":
                return f"! {self.topic}: {change} refused: {self.why}"


class Plan(Struct, frozen=True):
    """All differences. `warnings`: records that are being lost; `unknown_topics`: topics of the prefix and no table."""

    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unknown_topics: list[str] = field(default_factory=list)

    def of(self, action: str) -> list[Step]:
        """Return the steps of an action."""
        return [step for step in self.steps if step.action == action]


def plan(
    topics: Iterable[PlannedTopic],
    existing: Mapping[str, ExistingTopic],
    progress: Mapping[str, ReadProgress],
    *,
    prefix: str,
    address: str,
) -> Plan:
    """Compare the table with the cluster.

    Shape: `existing` by full name; `progress` by the topic's short name, as far as Postgres answered.
    """
    rows = list(topics)
    steps = [
        step for row in rows for step in _steps(row, existing.get(row.name), progress.get(row.topic.name), address)
    ]
    warnings = [line for row in rows if row.name in existing for line in _losses(row, existing[row.name])]
    # Without a prefix every topic of the cluster would be unknown.
    planned = {row.name for row in rows}
    unknown = sorted(name for name in existing if prefix and name.startswith(prefix) and name not in planned)
    return Plan(steps, warnings, unknown)


def _refuse(topic: PlannedTopic, setting: str, old: object, new: object, why: str) -> Step:
    return Step("refuse", topic.name, setting, str(old), str(new), why=why)


def _steps(
    topic: PlannedTopic, existing: ExistingTopic | None, progress: ReadProgress | None, address: str
) -> Iterator[Step]:
    if progress is not None and progress.partitions not in (None, topic.partitions):
        why = f"Postgres keeps positions of {progress.partitions} partitions, TARTAN_PARTITIONS says {topic.partitions}"
        yield _refuse(topic, "partitions", progress.partitions, topic.partitions, why)
    elif existing is None and progress is not None and progress.furthest:
        why = (
            f"the topic is gone, and Postgres has read it up to {progress.furthest}: an empty one in its place would "
            "hide that; restore it, or begin with an empty database too"
        )
        yield _refuse(topic, "partitions", 0, topic.partitions, why)
    elif existing is None:
        settings = ", ".join(f"{name} {value}" for name, value in topic.settings.items())
        new = f"{topic.partitions} partitions, replication factor {topic.replicas}, {settings}"
        yield Step("create", topic.name, new=new)
    if existing is not None:
        yield from _differences(topic, existing, address)


def _differences(topic: PlannedTopic, existing: ExistingTopic, address: str) -> Iterator[Step]:
    if existing.partitions != topic.partitions:
        why = (
            f"topic {topic.name} has {existing.partitions} partitions, TARTAN_PARTITIONS says {topic.partitions}: "
            "records are ordered by key within a partition, so the number stays"
        )
        yield _refuse(topic, "partitions", existing.partitions, topic.partitions, why)
    if existing.replicas != topic.replicas:
        why = (
            f"replicas are moved by Kafka's own tool: list {topic.replicas} brokers for each partition in FILE, "
            f"and run kafka-reassign-partitions.sh --bootstrap-server {address} --reassignment-json-file FILE "
            "--execute"
        )
        yield _refuse(topic, "replication factor", existing.replicas, topic.replicas, why)
    for setting, new in topic.settings.items():
        if (old := existing.settings.get(setting, "")) != new:
            yield _change(topic, existing, setting, old, new)


def _change(topic: PlannedTopic, existing: ExistingTopic, setting: str, old: str, new: str) -> Step:
    if setting == REPLICAS_IN_SYNC and int(new) > existing.replicas:
        why = f"with {existing.replicas} replicas nothing could be written any more; replicas come first"
        return _refuse(topic, setting, old, new, why)
    old_ms, new_ms = _kept_ms(existing.settings), _kept_ms(topic.settings)
    deletes = setting in (RETENTION, POLICY) and new_ms != FOR_EVER and (old_ms == FOR_EVER or new_ms < old_ms)
    why = f"what is older than {new_ms / 86_400_000:g} days" if deletes else ""
    return Step("change", topic.name, setting, old, new, deletes=deletes, why=why)


def _kept_ms(settings: Mapping[str, str]) -> int:
    """Return the retention of records; FOR_EVER with compaction alone, which deletes none by age."""
    return int(settings[RETENTION]) if "delete" in settings[POLICY] else FOR_EVER


def _losses(topic: PlannedTopic, existing: ExistingTopic) -> Iterator[str]:
    """Warn of settings by which a topic loses records that nothing can make again."""
    if topic.topic.retention_ms is not None:
        return
    for setting, safe in LOSING.items():
        value = existing.settings.get(setting, safe)
        if value != safe:
            yield f"{topic.name} IS LOSING RECORDS: {setting} is {value}. Nothing can make them again: keep it {safe}"
