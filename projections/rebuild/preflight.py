"""Preflight: reasons against a rebuild, each in one sentence. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from runtime.kafka.topics_plan import LOSING, Step


class Versions(NamedTuple):
    """Folds of the existing versions (None: no such version), and positions by partition."""

    live: int
    following: int | None
    old: int | None
    positions: Mapping[int, int]
    reached: Mapping[int, int]


class LogExtent(NamedTuple):
    """A partition of the log: first and last offset that neither archive nor topic has, if any, and its next one."""

    missing: tuple[int, int] | None
    end: int


def version_problems(versions: Versions, *, fold: int, restart: bool, swaps: bool) -> Iterator[str]:
    """Return the reasons in the existing versions."""
    if versions.following not in (None, fold) and not restart:
        yield (
            f"a version of fold {versions.following} is begun, and this code's fold is {fold}: "
            "`tartan rebuild --restart` drops it and starts again"
        )
    for number, reached in sorted(versions.reached.items() if not restart else ()):
        live = versions.positions.get(number, 0)
        if reached > live:
            yield (
                f"partition {number} of the version that is begun is at {reached}, and the live one at {live}: "
                "the database went back; `tartan rebuild --restart` starts again"
            )
    if versions.old is not None and swaps:
        yield (
            "the version before the live one is still kept: drop it with `tartan rebuild --drop-old`, or do not swap "
            "with --no-swap"
        )


def topic_problems(steps: Iterable[Step], *, topic: str, has_archive: bool) -> Iterator[str]:
    """Return the reasons in the cluster's topic, by the steps of a plan."""
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


def log_problems(
    extents: Mapping[int, LogExtent], positions: Mapping[int, int], *, topic: str, has_archive: bool
) -> Iterator[str]:
    """Return the reasons in the log's extent, for a rebuild up to these positions."""
    for number, (missing, end) in sorted(extents.items()):
        position = positions.get(number, 0)
        if position > end:
            yield (
                f"{topic} {number} ends at {end}, and the live version has read it up to {position}: "
                "it was truncated or re-created"
            )
        if missing is not None and missing[0] < position:
            source = "neither the topic nor the archive has them" if has_archive else "and there is no archive"
            yield f"{topic} {number}: offsets {missing[0]} to {missing[1]} are gone, {source}"
