"""The archive in an S3-compatible store, over HTTP: put-if-absent decides between two archivers."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from runtime.archive import store as archive_store
from runtime.archive.seal import Archived, archive
from runtime.archive.verify import Verified, verify
from schemas.errors import Halt
from tests.conftest import finish
from tests.support.archive_world import World, make_world, tartan

BUCKET = "archive-of-tests"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3-compatible server with a bucket, as the environment says it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-told",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


@pytest.fixture
def world(kafka_address: str, topic_prefix: str, tmp_path: Path, endpoint: str) -> World:
    return finish(make_world(kafka_address, topic_prefix, tmp_path, url=f"s3://{BUCKET}/some/prefix"))


async def seal(world: World) -> Archived:
    store = archive_store.connect(world.settings)
    return await archive(world.settings, store, sealed_before_ms=None, on_sealed=lambda _: None)


async def verified(world: World) -> list[Verified]:
    return [row async for row in verify(world.settings, archive_store.connect(world.settings))]


def test_two_archivers_at_once_make_one_chain_from_which_the_log_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr("runtime.archive.seal.SEGMENT_RECORDS_MAX", 20)
    finish(world.append(130, seed=1))
    original = finish(world.original())

    async def both() -> list[Archived]:
        return await asyncio.gather(seal(world), seal(world))

    done = finish(both())

    sealed = sorted((row.first, row.last) for one in done for row in one.sealed)
    assert sealed == [(first, min(first + 19, 129)) for first in range(0, 130, 20)]
    assert {row.archived_end for one in done for row in one.reached} == {0, 130}
    rows = finish(verified(world))
    assert [fault for row in rows for fault in row.faults] == []
    assert sum(row.compared for row in rows) == 130
    finish(world.delete_before(90))
    assert finish(world.read(0, 130)) == original

    place = f"some/prefix/{world.changesets}/00000"
    client = boto3.client("s3", endpoint_url=endpoint)
    third = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{place}/{40:020d}-")["Contents"][0]["Key"]
    client.put_object(Bucket=BUCKET, Key=third, Body=b"changed")

    assert [(fault.first, fault.last) for row in finish(verified(world)) for fault in row.faults] == [(40, 59)]
    with pytest.raises(Halt, match=r"changesets 0, offsets 40\.\.59: its segment has 7 bytes"):
        finish(world.read(0, 130))


def test_a_store_that_is_not_reached_and_a_bucket_that_is_not_there_are_said_without_secrets(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = tartan(world, monkeypatch, capsys, "--all")
    assert (code, told["segments"]) == (0, 0)

    elsewhere = world.settings.model_copy(update={"archive_url": "s3://no-such-bucket/x"})
    nowhere = World(elsewhere, world.address, world.folder)
    monkeypatch.setattr("runtime.archive.store.RETRIES_MAX", 0)
    missing, said_missing = tartan(nowhere, monkeypatch, capsys, "--all")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    unreached, said_unreached = tartan(world, monkeypatch, capsys, "verify")

    assert (missing, unreached) == (1, 1)
    assert "s3://no-such-bucket/x" in said_missing["error"]
    assert f"s3://{BUCKET}/some/prefix" in said_unreached["error"]
    assert "not-to-be-told" not in json.dumps([said_missing, said_unreached])
