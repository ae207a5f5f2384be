"""The archive on a real Kafka: what was sealed joins what is kept, and no damage goes unnamed."""

import asyncio
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.archive.log_reader import Extent, LogReader
from runtime.kafka.clients import Ends
from schemas.errors import Halt
from schemas.log import manifests, segments
from schemas.log.segments import Record
from schemas.topics import CHANGESETS, WEBHOOKS
from tests.conftest import finish
from tests.support.archive_world import World, child_environment, make_world, tartan

Run = Callable[..., tuple[Any, Any]]


@pytest.fixture
def world(kafka_address: str, topic_prefix: str, tmp_path: Path) -> World:
    return finish(make_world(kafka_address, topic_prefix, tmp_path / "archive of changesets"))


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("--all")` is `tartan archive --all --json`: exit code and last line."""
    return lambda *arguments: tartan(world, monkeypatch, capsys, *arguments)


@pytest.fixture
def sealed(world: World, run: Run) -> World:
    """Partition 0 has three segments, 0..39, 40..69 and 70..89, and ten records that are not sealed."""
    for count, seed in ((40, 1), (30, 2), (20, 3)):
        finish(world.append(count, seed=seed))
        assert run("--all")[0] == 0
    finish(world.append(10, seed=4))
    return world


def test_archive_and_topic_together_are_the_original_log_record_for_record(sealed: World, run: Run) -> None:
    original = finish(sealed.original())
    assert len(original) == 100
    for deleted in (0, 55, 70, 90):
        finish(sealed.delete_before(deleted))

        assert finish(sealed.read(0, 100)) == original
        assert finish(sealed.read(33, 95)) == original[33:95]
        assert finish(sealed.read(99, 100)) == original[99:]
        assert run("verify")[1] == {
            "violations": 0,
            "segments": 3,
            "records": 90,
            "bytes": sealed.bytes(),
            "compared": 90 - deleted,
            "unnamed": 0,
            "faults": [],
        }

    code, told = run("--all")
    assert (code, told["segments"], told["records"]) == (0, 1, 10)
    finish(sealed.delete_before(100))
    assert finish(sealed.read(0, 100)) == original


def test_each_topic_and_partition_has_a_chain_of_its_own(world: World, run: Run) -> None:
    finish(world.append(5, seed=1, partition=0))
    finish(world.append(7, seed=2, partition=1))
    finish(world.append(3, seed=3, partition=1, topic=WEBHOOKS))

    code, told = run("--all")

    prefix = world.settings.topic_prefix
    assert code == 0
    assert {(row["topic"], row["partition"]): row["archived_end"] for row in told["partitions"]} == {
        (f"{prefix}webhooks", 0): 0,
        (f"{prefix}webhooks", 1): 3,
        (f"{prefix}changesets", 0): 5,
        (f"{prefix}changesets", 1): 7,
    }
    assert run("verify")[1]["compared"] == 15


def test_young_records_wait_for_a_full_segment_and_a_second_run_has_nothing_to_do(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(world.append(25, seed=1, topic=WEBHOOKS))  # so that the first record is one of now
    monkeypatch.setattr("runtime.archive.seal.SEGMENT_RECORDS_MAX", 10)
    young = ("--older-than-h", str(10**6))

    assert [run(*young)[1]["records"] for _ in range(2)] == [20, 0]
    assert [run("--all")[1]["records"] for _ in range(2)] == [5, 0]


def test_what_is_in_neither_is_named_and_the_other_partitions_are_sealed_all_the_same(sealed: World, run: Run) -> None:
    finish(sealed.append(5, seed=9, partition=1))
    finish(sealed.delete_before(93))

    code, told = run("--all")

    assert code == 1
    assert [(fault["partition"], fault["first"], fault["last"]) for fault in told["faults"]] == [(0, 90, 92)]
    assert told["records"] == 5
    code, told = run("verify")
    assert (code, [(fault["first"], fault["last"]) for fault in told["faults"]]) == (1, [(90, 92)])
    assert finish(completeness(sealed)) == Extent(90, Ends(93, 100))
    assert finish(completeness(sealed)).missing() == (90, 92)
    with pytest.raises(Halt, match=r"changesets 0, offsets 90\.\.92: neither"):
        finish(sealed.read(0, 100))
    assert len(finish(sealed.read(0, 90))) == 90

    bare = dataclasses.replace(sealed, settings=sealed.settings.model_copy(update={"archive_url": ""}))
    assert finish(completeness(bare)) == Extent(0, Ends(93, 100))
    with pytest.raises(Halt, match=r"offsets 0\.\.92: neither"):
        finish(bare.read(0, 95))
    assert len(finish(bare.read(93, 100))) == 7


async def completeness(world: World) -> Extent:
    reader = LogReader(world.settings, CHANGESETS)
    await reader.start()
    try:
        return (await reader.completeness([0]))[0]
    finally:
        await reader.stop()


def test_a_chain_with_a_broken_end_is_not_extended_and_the_other_partitions_are(sealed: World, run: Run) -> None:
    finish(sealed.append(5, seed=9, partition=1))
    (sealed.files("json")[0].parent / "head.json").write_bytes(b"{")

    code, told = run("--all")

    assert (code, told["records"]) == (1, 5)
    assert [(fault["partition"], fault["first"], fault["last"]) for fault in told["faults"]] == [(0, 70, 89)]
    (sealed.files("json")[0].parent / "head.json").unlink()
    assert run("--all")[1]["records"] == 10
    assert run("verify")[0] == 0


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[list[Path], list[Path]], object], list[tuple[int, int]]]] = [
    ("first byte of a segment", lambda s, m: flip(s[1], 0), [(40, 69)]),
    ("a byte within", lambda s, m: flip(s[1], 500), [(40, 69)]),
    ("last byte of the last segment", lambda s, m: flip(s[2], -1), [(70, 89)]),
    ("segment gone", lambda s, m: s[0].unlink(), [(0, 39)]),
    ("segment cut off", lambda s, m: s[2].write_bytes(s[2].read_bytes()[:-1]), [(70, 89)]),
    ("segment empty", lambda s, m: s[2].write_bytes(b""), [(70, 89)]),
    ("two segments swapped", lambda s, m: swap(s[0], s[1]), [(0, 39), (40, 69)]),
    ("manifest gone", lambda s, m: m[1].unlink(), [(40, 69)]),
    ("last manifest gone", lambda s, m: m[2].unlink(), [(70, 89)]),
    ("last manifest and segment gone", lambda s, m: (s[2].unlink(), m[2].unlink()), [(70, 89)]),
    ("a byte of a manifest", lambda s, m: flip(m[0], 40), [(0, 39)]),
    ("two manifests swapped", lambda s, m: swap(m[0], m[1]), [(0, 39), (40, 69)]),
    ("head unreadable", lambda s, m: (s[0].parent / "head.json").write_bytes(b"{"), [(70, 89)]),
    ("all gone but the head", lambda s, m: [path.unlink() for path in [*s, *m]], [(0, 89)]),
]


def test_each_kind_of_damage_is_named_by_its_exact_range_and_refused_by_a_reader(
    sealed: World, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(sealed.folder, tmp_path / "whole")
    finish(sealed.delete_before(90))
    for what, damage, ranges in DAMAGES:
        shutil.rmtree(sealed.folder)
        shutil.copytree(tmp_path / "whole", sealed.folder)
        damage(sealed.files("segment"), sealed.files("json"))

        code, told = run("verify")

        named = [(fault["first"], fault["last"]) for fault in told["faults"] if "neither" not in fault["what"]]
        assert (what, code, named) == (what, 1, ranges)
        with pytest.raises(Halt, match=rf"changesets 0, offsets {ranges[0][0]}\.\.{ranges[0][1]}: "):
            finish(sealed.read(0, 100))


def test_an_older_archive_of_another_log_put_in_place_of_a_segment_and_its_manifest_is_named(
    sealed: World, run: Run
) -> None:
    """Manifest and segment agree with each other, so only the chain and the topic can tell."""
    forge(sealed)

    code, told = run("verify", "--quick")
    assert (code, [(fault["first"], fault["last"]) for fault in told["faults"]]) == (1, [(0, 39)])

    code, told = run("verify")
    assert code == 1
    assert {fault["what"].partition(" ")[0] for fault in told["faults"]} == {"its", "the"}
    finish(sealed.delete_before(90))
    with pytest.raises(Halt, match=r"offsets 0\.\.39: its manifest is not the one that the next names"):
        finish(sealed.read(0, 100))


def forge(world: World) -> None:
    """Put another valid segment 0..39 and its manifest in place of the first ones."""
    records = [Record(offset, 5, None, b"forged") for offset in range(40)]
    content = segments.encode(world.changesets, 0, records)
    header, _ = segments.decode(content)
    manifest = manifests.make_manifest(content, header, last=records[-1], previous=None)
    first = world.files("json")[0]
    (first.parent / manifests.segment_name(manifest)).write_bytes(content)
    first.write_bytes(msgspec.json.encode(manifest))


def test_a_topic_that_was_made_again_is_never_joined_and_never_sealed(sealed: World, run: Run) -> None:
    finish(sealed.recreate())
    finish(sealed.append(50, seed=77))

    code, told = run("--all")
    assert (code, [(fault["first"], fault["last"]) for fault in told["faults"]]) == (1, [(50, 89)])
    with pytest.raises(Halt, match="changesets 0 ends at 50, the archive at 90: another log"):
        finish(completeness(sealed))

    finish(sealed.append(100, seed=78))
    for kept in (0, 20):
        finish(sealed.delete_before(kept))

        code, told = run("--all")
        assert (code, [(fault["first"], fault["last"]) for fault in told["faults"]]) == (1, [(89, 89)])
        assert run("verify")[0] == 1
        with pytest.raises(Halt, match=r"changesets 0 at \d+: the topic has another record than the archive"):
            finish(completeness(sealed))
    with pytest.raises(Halt, match="changesets 0 at 20: the topic has another record than the archive"):
        finish(sealed.read(0, 100))


def test_killed_at_any_moment_it_goes_on_where_it_was_and_leaves_no_fork(world: World, run: Run) -> None:
    for seed in range(8):
        finish(world.append(150, seed=seed, partition=seed % 2))
    original = [finish(world.original(partition)) for partition in range(2)]

    finish(kill_often(world))

    code, _ = run("--all")
    assert code == 0
    code, told = run("verify")
    assert (code, told["violations"], told["records"], told["compared"]) == (0, 0, 1200, 1200)
    for partition in range(2):
        finish(world.delete_before(600, partition=partition))
        assert finish(world.read(0, 600, partition)) == original[partition]


SMALL = (
    "import runtime.archive.seal; runtime.archive.seal.SEGMENT_RECORDS_MAX = {};"
    " from cli.operate import archive; archive.archive_app()"
)
"""Segments of few records, so that a kill lands among many of them."""


async def kill_often(world: World) -> None:
    """Kill -9 two real `tartan archive --all` as soon as they have put some files more, three times.

    They cut at different places, so each finds manifests of the other where it is about to put its own.
    """
    for more in (1, 3, 8):
        before = count(world)
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                SMALL.format(records),
                "--all",
                "--json",
                env=child_environment(world),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            for records in (30, 40)
        ]
        async with asyncio.timeout(120):
            while count(world) < before + more and any(process.returncode is None for process in processes):
                await asyncio.sleep(0.0005)
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
        assert count(world) >= before + more


def test_told_to_follow_it_seals_what_comes_later_until_it_is_stopped(world: World, run: Run) -> None:
    finish(world.append(5, seed=1))

    finish(follow(world))

    assert run("verify", "--quick")[1]["records"] == 12


async def follow(world: World) -> None:
    """Let a process follow the log until it has sealed what was there and what came while it waited."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from cli.main import main; main()",
        "archive",
        "--all",
        "--follow",
        "--every-min",
        "0.01",
        env=child_environment(world),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(120):
            while len(world.files("json")) < 1:
                await asyncio.sleep(0.05)
            await world.append(7, seed=2)
            while len(world.files("json")) < 2:
                await asyncio.sleep(0.05)
    finally:
        process.terminate()
        await process.wait()


def count(world: World) -> int:
    return sum(len(files) for _, _, files in os.walk(world.folder))


def test_a_segment_without_its_manifest_is_taken_up_again_and_a_torn_one_is_mended(world: World, run: Run) -> None:
    """The states that a crash between segment and manifest leaves, and that of the machine while a file is written."""
    finish(world.append(40, seed=1))
    run("--all")
    before = {path.name: path.read_bytes() for path in world.files("")}
    finish(world.append(5, seed=2))
    for torn in (False, True):
        for path in [*world.files("json"), *world.folder.rglob("head.json")]:
            path.unlink()
        if torn:
            world.files("segment")[0].write_bytes(b"half")

        code, _ = run("--all")

        assert code == 0
        assert {name: (world.files("")[0].parent / name).read_bytes() for name in before} == before
        assert run("verify")[1]["unnamed"] == 0
