"""Kafka by aiokafka: one idempotent producer that is made anew after a failure, and a look at the log's ends."""

import asyncio
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from runtime.settings import Settings
from schemas.errors import Retry
from schemas.topics import MESSAGE_BYTES_MAX

REQUEST_TIMEOUT_MS = 30_000
"""How long the producer tries one batch. A broker's restart takes 4 to 12 s (FAUST.md), so one is sat out."""
BATCH_BYTES = 1024 * 1024
LINGER_MS = 0
"""A lone record waits for nothing; batches form while one is in flight."""

Headers = Sequence[tuple[str, bytes]]


class Appended(NamedTuple):
    """Where a record is in the log."""

    partition: int
    offset: int


class Outgoing(NamedTuple):
    """A record to send. `timestamp_ms` None is now."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None


class InDoubt(Retry):
    """The append got no answer: the record may be in the log or not. Only reading the log can tell."""


@dataclass(frozen=True, slots=True)
class Ends:
    """First kept and next offset of a partition."""

    start: int
    end: int


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: murmur2 as in Java's clients and aiokafka."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def connection(settings: Settings) -> dict[str, Any]:
    """The options with which every client reaches the cluster."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_address,
        "security_protocol": settings.kafka_security,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "retry_backoff_ms": 100,
        "metadata_max_age_ms": 60_000,
    }
    if settings.kafka_security.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = settings.kafka_password and settings.kafka_password.get_secret_value()
    if settings.kafka_security.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_ca_file)
    return options


class Appender:
    """Appends records with acks=all and idempotence.

    After any failed send the producer is replaced: a batch that expired has used up sequence numbers, and the
    broker may refuse every later one of that partition (FAUST.md).
    """

    def __init__(self, settings: Settings, *, client: str) -> None:
        self._settings = settings
        self._client = f"tartan-{client}-{settings.instance_id}"
        self._producer: AIOKafkaProducer | None = None
        self._replacing = asyncio.Lock()

    async def start(self) -> None:
        """Connect.

        Raises: Retry, where no broker answers.
        """
        self._producer = await self._connected()

    async def stop(self) -> None:
        """Flush and disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def append(self, topic: str, record: Outgoing, *, partition: int | None = None) -> Appended:
        """Append one record and wait until it is in the log.

        Raises: InDoubt, where no answer came; Retry, where it surely was not appended.
        """
        producer = await self._ready()
        try:
            sent = await producer.send(
                topic, record.value, key=record.key, partition=partition,
                headers=list(record.headers), timestamp_ms=record.timestamp_ms,
            )  # fmt: skip
        except KafkaError as error:
            raise Retry(f"topic {topic} takes no record: {type(error).__name__}") from error
        # Shielded: a caller that gives up must not cancel a send that others' order depends on.
        return await asyncio.shield(self._answer(producer, topic, sent))

    async def append_many(self, topic: str, partition: int, records: Iterable[Outgoing]) -> None:
        """Append records of one partition in order, in as few batches as fit, and wait for all.

        Raises: InDoubt, where a batch got no answer; what was sent after it may be missing.
        """
        producer = await self._ready()
        now = int(time.time() * 1000)
        waiting: list[asyncio.Future[Any]] = []
        try:
            batch, count = producer.create_batch(), 0
            for record in records:
                when = now if record.timestamp_ms is None else record.timestamp_ms
                while batch.append(
                    key=record.key, value=record.value, timestamp=when, headers=list(record.headers)
                ) is None:  # fmt: skip
                    if not count:
                        raise Retry(f"a record of topic {topic} does not fit a batch of {BATCH_BYTES} bytes")
                    waiting.append(await producer.send_batch(batch, topic, partition=partition))
                    batch, count = producer.create_batch(), 0
                count += 1
            if count:
                waiting.append(await producer.send_batch(batch, topic, partition=partition))
        except KafkaError as error:
            await self._replace(producer)
            raise InDoubt(f"topic {topic} partition {partition}: {type(error).__name__}") from error
        for sent in waiting:
            await asyncio.shield(self._answer(producer, topic, sent))

    async def _answer(self, producer: AIOKafkaProducer, topic: str, sent: "asyncio.Future[Any]") -> Appended:
        try:
            answer = await sent
        except KafkaError as error:
            await self._replace(producer)
            raise InDoubt(f"an append to {topic} got no answer: {type(error).__name__}") from error
        if answer.offset < 0:  # the broker knew the sequence number already, and not where
            raise InDoubt(f"an append to {topic} was answered without an offset")
        return Appended(answer.partition, answer.offset)

    async def _ready(self) -> AIOKafkaProducer:
        if self._producer is None:
            async with self._replacing:
                if self._producer is None:
                    self._producer = await self._connected()
        return self._producer

    async def _replace(self, failed: AIOKafkaProducer) -> None:
        async with self._replacing:
            if self._producer is failed:
                self._producer = None
                # Its other batches fail by themselves; waiting for them here would hold up the next producer.
                self._closing = asyncio.create_task(_close(failed))

    async def _connected(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            client_id=self._client,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",  # lz4 is wired to level 9 in aiokafka: 20,000/s (FAUST.md)
            max_batch_size=BATCH_BYTES,
            max_request_size=MESSAGE_BYTES_MAX,
            linger_ms=LINGER_MS,
            **connection(self._settings),
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise Retry(f"no Kafka at {self._settings.kafka_address}: {type(error).__name__}") from error
        return producer


async def _close(producer: AIOKafkaProducer) -> None:
    try:
        await asyncio.wait_for(producer.stop(), timeout=REQUEST_TIMEOUT_MS / 1000)
    except (KafkaError, TimeoutError):
        return  # it failed already, which is why it is being closed


class LogEnds:
    """Reads where partitions begin and end, and single records, without being in a consumer group."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
            fetch_max_wait_ms=20,
            **connection(settings),
        )
        self._one_at_a_time = asyncio.Lock()

    async def start(self) -> None:
        """Connect. Raises: Retry, where no broker answers."""
        try:
            await self._consumer.start()
        except KafkaError as error:
            await self._consumer.stop()
            raise Retry(f"no Kafka: {type(error).__name__}") from error

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, Ends]:
        """First kept and next offset of each partition. Raises: Retry."""
        wanted = [TopicPartition(topic, number) for number in partitions]
        async with self._one_at_a_time:
            try:
                starts = await self._consumer.beginning_offsets(wanted)
                stops = await self._consumer.end_offsets(wanted)
            except KafkaError as error:
                raise Retry(f"no offsets of {topic}: {type(error).__name__}") from error
        return {tp.partition: Ends(starts[tp], stops[tp]) for tp in wanted}

    async def record(self, topic: str, partition: int, offset: int, *, timeout_s: float = 10.0) -> bytes | None:
        """The value of the record at this offset; None where the log has none there. Raises: Retry."""
        where = TopicPartition(topic, partition)
        async with self._one_at_a_time:
            try:
                self._consumer.assign([where])
                self._consumer.seek(where, offset)
                found = await asyncio.wait_for(self._consumer.getone(where), timeout_s)
            except TimeoutError:
                return None
            except KafkaError as error:
                if "OutOfRange" in type(error).__name__:
                    return None
                raise Retry(f"{topic} {partition} at {offset}: {type(error).__name__}") from error
        return found.value if found.offset == offset else None
