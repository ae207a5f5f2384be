"""What the table of topics asks of a cluster: what to create, what to change, what to refuse. Core."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from msgspec import Struct, field

from schemas.topics import Topic

FOR_EVER = -1
RETENTION, POLICY, REPLICAS_IN_SYNC = "retention.ms", "cleanup.policy", "min.insync.replicas"
LOSING = {RETENTION: "-1", "retention.bytes": "-1", POLICY: "delete"}
"""Settings by which a topic loses records, with the value at which none is lost."""


class PlannedTopic(NamedTuple):
    """A topic as the table and the settings want it."""

    topic: Topic
    name: str
    partitions: int
    replicas: int
    settings: Mapping[str, str]


class ExistingTopic(NamedTuple):
    """A topic as the cluster has it: its fewest replicas, how many partitions have a leader, its settings in force.

    `own` are the settings that were made for it; the others come from the cluster's defaults.
    """

    partitions: int
    led: int
    replicas: int
    settings: Mapping[str, str]
    own: Mapping[str, str]


class ReadProgress(NamedTuple):
    """What Postgres knows of a topic: how far its readers have come, and of how many partitions it keeps positions.

    `partitions` None: no reader keeps one of every partition.
    """

    furthest: int
    partitions: int | None


class Step(Struct, frozen=True):
    """One difference between table and cluster, and what `apply` does about it."""

    action: Literal["create", "change", "refuse"]
    topic: str
    setting: str = ""
    old: str = ""
    new: str = ""
    deletes: bool = False
    why: str = ""

    @property
    def line(self) -> str:
        """The step as a plan shows it."""
        change = f"{self.setting} {self.old} -> {self.new}"
        match self.action:
            case "create":
                return f"+ {self.topic}: create with {self.new}"
            case "change":
                return f"~ {self.topic}: {change}" + (f" (deletes records: {self.why})" if self.deletes else "")
            case "refuse":
                return f"! {self.topic}: {change} refused: {self.why}"


class Plan(Struct, frozen=True):
    """All differences. `warnings`: truth that is being lost, and what was not compared.

    `unknown_topics`: topics of our prefix that the table does not name.
    """

    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unknown_topics: list[str] = field(default_factory=list)

    def of(self, action: str) -> list[Step]:
        """The steps of one kind."""
        return [step for step in self.steps if step.action == action]


def plan(
    wanted: Iterable[PlannedTopic],
    found: Mapping[str, ExistingTopic],
    read: Mapping[str, ReadProgress],
    *,
    prefix: str,
    address: str,
) -> Plan:
    """Compare. `found` by full name, `read` by the topic's short name, as far as Postgres could be asked."""
    rows = list(wanted)
    steps = [step for row in rows for step in _steps(row, found.get(row.name), read.get(row.topic.name), address)]
    warnings = [line for row in rows if row.name in found for line in _losses(row, found[row.name])]
    # Without a prefix every topic of the cluster would be a stranger.
    ours = {row.name for row in rows}
    unknown_topics = sorted(name for name in found if prefix and name.startswith(prefix) and name not in ours)
    return Plan(steps, warnings, unknown_topics)


def _steps(
    wanted: PlannedTopic, found: ExistingTopic | None, read: ReadProgress | None, address: str
) -> Iterator[Step]:
    numbered = f"{wanted.partitions} partitions"
    if read is not None and read.partitions is not None and read.partitions != wanted.partitions:
        yield Step(
            "refuse",
            wanted.name,
            "partitions",
            str(read.partitions),
            str(wanted.partitions),
            why=f"Postgres keeps positions of {read.partitions} partitions, TARTAN_PARTITIONS says {wanted.partitions}",
        )
    elif found is None and read is not None and read.furthest:
        yield Step(
            "refuse",
            wanted.name,
            "partitions",
            "0",
            str(wanted.partitions),
            why=f"the topic is gone, and Postgres has read it up to {read.furthest}: an empty one in its place would "
            "hide that; restore it, or begin with an empty database too",
        )
    elif found is None:
        settings = ", ".join(f"{name} {value}" for name, value in wanted.settings.items())
        yield Step("create", wanted.name, new=f"{numbered}, replication factor {wanted.replicas}, {settings}")
    if found is not None:
        yield from _differences(wanted, found, address)


def _differences(wanted: PlannedTopic, found: ExistingTopic, address: str) -> Iterator[Step]:
    if found.partitions != wanted.partitions:
        yield Step(
            "refuse",
            wanted.name,
            "partitions",
            str(found.partitions),
            str(wanted.partitions),
            why=f"topic {wanted.name} has {found.partitions} partitions, TARTAN_PARTITIONS says {wanted.partitions}: "
            "records are ordered by key within a partition, so the number stays",
        )
    if found.replicas != wanted.replicas:
        yield Step(
            "refuse",
            wanted.name,
            "replication factor",
            str(found.replicas),
            str(wanted.replicas),
            why=f"replicas are moved by Kafka's own tool: list {wanted.replicas} brokers for each partition in FILE, "
            f"and run kafka-reassign-partitions.sh --bootstrap-server {address} --reassignment-json-file FILE "
            "--execute",
        )
    for setting, new in wanted.settings.items():
        if (old := found.settings.get(setting, "")) != new:
            yield _change(wanted, found, setting, old, new)


def _change(wanted: PlannedTopic, found: ExistingTopic, setting: str, old: str, new: str) -> Step:
    if setting == REPLICAS_IN_SYNC and int(new) > found.replicas:
        return Step(
            "refuse",
            wanted.name,
            setting,
            old,
            new,
            why=f"with {found.replicas} replicas nothing could be written any more; replicas come first",
        )
    kept, keeps = _kept_ms(found.settings), _kept_ms(wanted.settings)
    deletes = setting in (RETENTION, POLICY) and keeps != FOR_EVER and (kept == FOR_EVER or keeps < kept)
    why = f"what is older than {keeps / 86_400_000:g} days" if deletes else ""
    return Step("change", wanted.name, setting, old, new, deletes=deletes, why=why)


def _kept_ms(settings: Mapping[str, str]) -> int:
    """How long records are kept whatever their keys: compaction alone deletes none by age."""
    return int(settings[RETENTION]) if "delete" in settings[POLICY] else FOR_EVER


def _losses(wanted: PlannedTopic, found: ExistingTopic) -> Iterator[str]:
    """In which settings a topic that nothing can make again loses records."""
    if wanted.topic.retention_ms is not None:
        return
    for setting, safe in LOSING.items():
        value = found.settings.get(setting, safe)
        if value != safe:
            yield f"{wanted.name} IS LOSING RECORDS: {setting} is {value}. Nothing can make them again: keep it {safe}"
