"""Kafka's jars are used only where their bytes are those of the lock, and need the network only once."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest

from sandbox.infra.jars import LOCK, cache_folder, class_path, read_lock
from schemas.errors import Halt

CONTENT = b"the bytes of a jar"
PLACE = "org/apache/kafka/broker/4.3.1/broker-4.3.1.jar"


def write_lock(folder: Path, *, content: bytes = CONTENT, versions: tuple[str, ...] = ("4.3.1",)) -> Path:
    lock = folder / "jgo.lock.toml"
    lock.write_text(
        "".join(
            f'[[dependencies]]\ngroupId = "org.apache.kafka"\nartifactId = "broker"\nversion = "{version}"\n'
            f'packaging = "jar"\nsha256 = "{hashlib.sha256(content).hexdigest()}"\n'
            for version in versions
        )
    )
    return lock


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository on this machine, named in jgo's configuration: its folder."""
    folder = tmp_path / "repository"
    folder.mkdir()
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    settings = tmp_path / "jgo.conf"
    settings.write_text(f"[repositories]\nhere = http://127.0.0.1:{server.server_port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder
    server.shutdown()
    server.server_close()


def publish(repository: Path, content: bytes) -> None:
    jar = repository / PLACE
    jar.parent.mkdir(parents=True)
    jar.write_bytes(content)
    jar.with_name(f"{jar.name}.sha1").write_text(hashlib.sha1(content).hexdigest())


def test_a_missing_jar_is_fetched_and_then_needs_no_network(tmp_path: Path, repository: Path) -> None:
    publish(repository, CONTENT)
    lock, cache = write_lock(tmp_path), tmp_path / "cache"

    fetched = class_path(cache, lock=lock)
    shutil.rmtree(repository)
    again = class_path(cache, lock=lock)

    assert fetched == again == (cache / "broker-4.3.1.jar",)
    assert fetched[0].read_bytes() == CONTENT


def test_a_fetched_jar_with_another_sum_is_refused_and_not_kept(tmp_path: Path, repository: Path) -> None:
    publish(repository, b"something else")
    lock, cache = write_lock(tmp_path), tmp_path / "cache"

    with pytest.raises(Halt, match=r"is not the broker-4.3.1.jar of the lock"):
        class_path(cache, lock=lock)

    assert list(cache.iterdir()) == []


def test_a_jar_corrupted_in_the_cache_is_refused(tmp_path: Path) -> None:
    lock, cache = write_lock(tmp_path), tmp_path / "cache"
    cache.mkdir()
    (cache / "broker-4.3.1.jar").write_bytes(CONTENT[:-1] + b"X")

    with pytest.raises(Halt, match=r"broker-4.3.1.jar of the lock: its SHA-256 is"):
        class_path(cache, lock=lock)


def test_kafka_in_two_versions_is_refused(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, versions=("4.3.1", "3.9.0"))

    with pytest.raises(Halt, match=r"Kafka in 2 versions: 3.9.0, 4.3.1"):
        read_lock(lock)


def test_a_jar_without_a_sum_is_refused(tmp_path: Path) -> None:
    lock = write_lock(tmp_path)
    lock.write_text(re.sub("sha256.*", "", lock.read_text()))

    with pytest.raises(Halt, match=r"no sum for org.apache.kafka:broker"):
        read_lock(lock)


def test_the_lock_holds_one_kafka_a_log_writer_and_no_address() -> None:
    jars = read_lock()

    kafka = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    assert kafka == {"4.3.1"}
    assert {"slf4j-simple", "kafka_2.13", "kafka-clients"} <= {jar.artifact for jar in jars}
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert len({jar.filename for jar in jars}) == len(jars)
    assert "://" not in LOCK.read_text()


def test_the_cache_lies_where_the_user_says(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "tartan" / "jars"
    assert cache_folder({}) == Path.home() / ".cache" / "tartan" / "jars"
