"""What of the Kafka clients needs no broker: partitions of keys, answers without a place, options of connections."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from runtime.kafka.clients import Appended, InDoubt, _place, connection, partition_of
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.topics import user_key


@given(st.binary(max_size=40) | st.integers(0, 2**63 - 1).map(user_key), st.integers(1, 1000))
def test_a_key_has_the_partition_that_aiokafka_puts_it_in(key: bytes, partitions: int) -> None:
    numbers = list(range(partitions))

    assert partition_of(key, partitions) == DefaultPartitioner()(key, numbers, numbers)


# Java's own, from Kafka's UtilsTest: a reader in another language finds the same partitions.
@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_a_key_has_the_partition_that_java_puts_it_in(key: bytes, murmur2: int) -> None:
    assert partition_of(key, 12) == (murmur2 & 0x7FFFFFFF) % 12


def test_an_answer_with_a_place_is_the_place() -> None:
    assert _place("t", answer(offset=7, log_start_offset=0)) == Appended(3, 7)
    assert _place("t", answer(offset=0, log_start_offset=None)) == Appended(3, 0)


@pytest.mark.parametrize("second", [0, 1, 2])
def test_an_answer_to_a_known_sequence_number_leaves_doubt_for_each_record_of_the_batch(second: int) -> None:
    with pytest.raises(InDoubt, match="without an offset"):
        _place("t", answer(offset=-1 + second, log_start_offset=-1))


def test_credentials_that_are_missing_are_named() -> None:
    with pytest.raises(Halt, match="TARTAN_KAFKA_USERNAME and TARTAN_KAFKA_PASSWORD"):
        connection(Settings(kafka_security="SASL_SSL", kafka_username="me"))


def test_a_file_of_certificates_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.touch()

    for file in (missing, empty):
        with pytest.raises(Halt, match=f"TARTAN_KAFKA_CA_FILE {file}"):
            connection(Settings(kafka_security="SSL", kafka_ca_file=file))


def answer(*, offset: int, log_start_offset: int | None) -> SimpleNamespace:
    return SimpleNamespace(partition=3, offset=offset, log_start_offset=log_start_offset)
