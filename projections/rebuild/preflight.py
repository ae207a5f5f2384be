"""Whether a rebuild can begin: each reason against it in one sentence. Core."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from runtime.kafka.topics_plan import LOSING, Step

NO_TABLES = "there is no live version to rebuild: run `tartan migrate`"


class Versions(NamedTuple):
    """The versions that there are. Folds, None where there is no such version; positions are by partition."""

    live: int
    following: int | None
    old: int | None
    positions: Mapping[int, int]
    reached: Mapping[int, int]


class Kept(NamedTuple):
    """A partition of the log: first and last offset that neither archive nor topic has, if any, and its next one."""

    missing: tuple[int, int] | None
    end: int


def of_versions(versions: Versions, *, fold: int, restart: bool, swaps: bool) -> list[str]:
    """What the versions in the database say against a rebuild."""
    found = []
    if versions.following not in (None, fold) and not restart:
        found.append(
            f"a version of fold {versions.following} is begun, and this code's fold is {fold}: "
            "`tartan rebuild --restart` drops it and begins anew"
        )
    for number, reached in sorted(versions.reached.items() if not restart else ()):
        if reached > versions.positions.get(number, 0):
            found.append(
                f"partition {number} of the version that is begun is at {reached}, and the live one at "
                f"{versions.positions.get(number, 0)}: the database went back; `tartan rebuild --restart` begins anew"
            )
    if versions.old is not None and swaps:
        found.append(
            "the version before the live one is still kept: drop it with `tartan rebuild --drop-old`, or do not swap "
            "with --no-swap"
        )
    return found


def of_topic(steps: Iterable[Step], *, topic: str, has_archive: bool) -> Iterator[str]:
    """What the cluster's topic says against a rebuild, by the steps of a plan."""
    for step in steps:
        if step.topic != topic:
            continue
        if step.action == "create":
            yield f"there is no topic {topic}"
        elif step.setting == "partitions":
            yield step.why
        elif step.setting in LOSING and step.new == LOSING[step.setting] and not has_archive:
            yield (
                f"topic {topic} has {step.setting} {step.old} and there is no archive, so it loses records: "
                "`tartan topics apply` makes it keep them"
            )


def of_log(kept: Mapping[int, Kept], positions: Mapping[int, int], *, topic: str, has_archive: bool) -> Iterator[str]:
    """What the log's extent says against a rebuild up to these positions."""
    for number, one in sorted(kept.items()):
        position = positions.get(number, 0)
        if position > one.end:
            yield (
                f"{topic} {number} ends at {one.end}, and the live version has read it up to {position}: "
                "it was truncated or made anew"
            )
        if one.missing is not None and one.missing[0] < position:
            where = "neither the topic nor the archive has them" if has_archive else "and there is no archive"
            yield f"{topic} {number}: offsets {one.missing[0]} to {one.missing[1]} are gone, {where}"
