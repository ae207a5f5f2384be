"""Kafka clients on aiokafka: an idempotent producer that is replaced after a failure, and reads of single records."""

import asyncio
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, OffsetOutOfRangeError
from aiokafka.partitioner import murmur2

from runtime.settings import Settings
from schemas.errors import Halt, Quarantine, Retry
from schemas.topics import MESSAGE_BYTES_MAX

REQUEST_TIMEOUT_MS = 30_000
"""Longest wait of one request. A broker's restart takes 4 to 12 s (FAUST.md), so a request survives it."""
FLUSH_S_MAX = 10.0
"""Longest wait of a stop for records in flight. Their callers have waited for an answer already."""
CUT_S_MAX = 1.0
"""Requests whose connection is closed fail within aiokafka's backoff, 0.1 s."""
BATCH_BYTES = 1024 * 1024
"""Bytes of one batch before compression, the smallest limit of a topic (`message_bytes_max`). One record alone may be
larger: aiokafka accepts the first record of a batch of any size, so `append` accepts changesets of 4 MiB."""
LINGER_MS = 0
"""A lone record is sent at once; batches form while one is in flight."""
FETCH_BYTES = 64 * 1024
"""Bytes of a fetch of one record. Kafka returns a larger first batch whole (KIP-74)."""

Headers = Sequence[tuple[str, bytes]]


class Appended(NamedTuple):
    """The place of a record in the log."""

    partition: int
    offset: int


class Outgoing(NamedTuple):
    """A record to send. `timestamp_ms` None is now."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None


class InDoubt(Retry):
    """The append got no answer: only the log shows whether it has the record."""


@dataclass(frozen=True, slots=True)
class Ends:
    """First kept and next offset of a partition."""

    start: int
    end: int


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key: murmur2 as in Java's clients and aiokafka."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def connection(settings: Settings) -> dict[str, Any]:
    """Return the connection options of every client.

    Raises: Halt, where credentials are missing or the file of certificates cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_address,
        "security_protocol": settings.kafka_security,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "retry_backoff_ms": 100,
        "metadata_max_age_ms": 60_000,
    }
    if settings.kafka_security.startswith("SASL"):
        if settings.kafka_username is None or settings.kafka_password is None:
            raise Halt(f"{settings.kafka_security} needs TARTAN_KAFKA_USERNAME and TARTAN_KAFKA_PASSWORD")
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    if settings.kafka_security.endswith("SSL"):
        try:
            options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_ca_file)
        except OSError as error:  # a missing file, or one without a certificate (SSLError)
            raise Halt(f"TARTAN_KAFKA_CA_FILE {settings.kafka_ca_file}: {error}") from error
    return options


class Appender:
    """Appends records with acks=all and idempotence.

    After a failed send the producer is replaced: the failed batch has used sequence numbers, and the broker refuses
    every later one of that partition (FAUST.md). Sends of the replaced producer in flight still get answers, until one
    waits `timeout_s` in vain: then it is cut off, so that none of its records arrives late.
    """

    def __init__(self, settings: Settings, *, client: str, timeout_s: float | None = None) -> None:
        self._settings = settings
        self._client = f"tartan-{client}-{settings.instance_id}"
        self._timeout_s = settings.append_timeout_s if timeout_s is None else timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._retired: dict[AIOKafkaProducer, _Retired] = {}
        self._stopped = False

    async def start(self) -> None:
        """Connect. Raises: Retry, where no broker answers."""
        await self._ready()

    async def stop(self) -> None:
        """Flush and disconnect within FLUSH_S_MAX; later appends raise Retry."""
        self._stopped = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._producer is not None:
            self._retire(self._producer)
        closing = [retired.closed for retired in self._retired.values()]
        if closing and (await asyncio.wait(closing, timeout=FLUSH_S_MAX))[1]:
            for retired in self._retired.values():
                retired.cut.set()
            await asyncio.wait(closing)

    async def append(self, topic: str, record: Outgoing, *, partition: int | None = None) -> Appended:
        """Append one record and wait until it is in the log.

        A caller that is cancelled while it waits for the answer does not take the record back.
        Raises: InDoubt, where no answer came; Retry, where it was not appended; Quarantine, where it is too large.
        """
        producer = await self._ready()
        try:
            # A cancellation here sends nothing: aiokafka's last step puts the record into a batch without waiting.
            async with asyncio.timeout(self._timeout_s):
                sent = await producer.send(
                    topic,
                    record.value,
                    key=record.key,
                    partition=partition,
                    headers=list(record.headers),
                    timestamp_ms=record.timestamp_ms,
                )
        except MessageSizeTooLargeError as error:
            raise Quarantine(f"a record for topic {topic} exceeds {MESSAGE_BYTES_MAX} bytes") from error
        except (KafkaError, TimeoutError) as error:
            self._retire(producer)
            raise Retry(f"topic {topic} takes no record: {type(error).__name__}") from error
        # Shielded: a caller that gives up must not cancel a send on which the order of others depends.
        return await asyncio.shield(self._answer(producer, topic, sent))

    async def append_many(self, topic: str, partition: int, records: Iterable[Outgoing]) -> None:
        """Append records of one partition in order, in as few batches as fit, and wait for all.

        A batch is sent once the one before it is in the log. Sequence numbers alone do not keep the order: a broker
        accepts any number from a producer that is new to the partition.
        Raises: InDoubt, where a batch got no answer; Retry, where it was not appended; Quarantine, where a record is
        larger than a batch. All batches before that one are in the log, none behind it.
        """
        producer = await self._ready()
        for batch in _batches(producer, topic, records):
            sent = await self._send_batch(producer, batch, topic, partition)
            await asyncio.shield(self._answer(producer, topic, sent))

    async def _send_batch(
        self, producer: AIOKafkaProducer, batch: Any, topic: str, partition: int
    ) -> "asyncio.Future[Any]":
        try:
            async with asyncio.timeout(self._timeout_s):
                sent: asyncio.Future[Any] = await producer.send_batch(batch, topic, partition=partition)
        except (KafkaError, TimeoutError) as error:
            self._retire(producer)
            raise Retry(f"topic {topic} partition {partition} takes no batch: {type(error).__name__}") from error
        return sent

    async def _answer(self, producer: AIOKafkaProducer, topic: str, sent: "asyncio.Future[Any]") -> Appended:
        answered, _ = await asyncio.wait({sent}, timeout=self._timeout_s)
        if not answered:
            sent.cancel()  # the record itself cannot be recalled
            self._retire(producer).cut.set()
            raise InDoubt(f"an append to {topic} got no answer within {self._timeout_s:g} s")
        try:
            return _place(topic, sent.result())
        except MessageSizeTooLargeError as error:
            self._retire(producer)
            raise Quarantine(f"topic {topic} takes no record of this size: its max.message.bytes") from error
        except KafkaError as error:
            self._retire(producer)
            raise InDoubt(f"an append to {topic} got no answer: {type(error).__name__}") from error

    async def _ready(self) -> AIOKafkaProducer:
        while self._producer is None:
            if self._stopped:
                raise Retry("this process is stopping and appends nothing more")
            if self._connecting is None:
                # One attempt for all waiting callers: one by one, each would wait its whole timeout.
                self._connecting = asyncio.create_task(self._connect())
                self._connecting.add_done_callback(self._connect_ended)
            await asyncio.shield(self._connecting)
        return self._producer

    def _connect_ended(self, _: "asyncio.Task[None]") -> None:
        self._connecting = None

    async def _connect(self) -> None:
        producer = AIOKafkaProducer(
            client_id=self._client,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",  # lz4 is wired to level 9 in aiokafka: 20,000/s (FAUST.md)
            max_batch_size=BATCH_BYTES,
            max_request_size=MESSAGE_BYTES_MAX,
            linger_ms=LINGER_MS,
            **connection(self._settings) | {"request_timeout_ms": int(self._timeout_s * 1000)},
        )
        try:
            # Bounded here: aiokafka requests a producer id without end.
            async with asyncio.timeout(self._timeout_s):
                await producer.start()
            self._producer = producer
        except (KafkaError, TimeoutError) as error:
            raise Retry(f"no Kafka at {self._settings.kafka_address}: {type(error).__name__}") from error
        finally:
            if self._producer is not producer:
                await producer.stop()

    def _retire(self, producer: AIOKafkaProducer) -> "_Retired":
        """Take a producer out of use: it completes its sends in flight and closes."""
        if self._producer is producer:
            self._producer = None
        if producer not in self._retired:
            retired = self._retired[producer] = _Retired(producer, drain_s=self._timeout_s)
            retired.closed.add_done_callback(lambda _: self._retired.pop(producer))
        return self._retired[producer]


class _Retired:
    """A replaced producer: it drains until `cut` is set or its time is over, and then sends nothing more."""

    def __init__(self, producer: AIOKafkaProducer, *, drain_s: float) -> None:
        self.cut = asyncio.Event()
        self._producer = producer
        self._drain_s = drain_s
        self.closed = asyncio.create_task(self._close())

    async def _close(self) -> None:
        stopping = asyncio.create_task(self._producer.stop())
        cut = asyncio.create_task(self.cut.wait())
        await asyncio.wait({stopping, cut}, timeout=self._drain_s, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if not stopping.done():
            await self._cut_off()
        await asyncio.wait({stopping}, timeout=CUT_S_MAX)
        stopping.cancel()

    async def _cut_off(self) -> None:
        """End a producer that waits for a broker, and fail its remaining sends.

        aiokafka 0.14.0 has no public way: its `stop` waits until all is delivered, without bound.
        """
        sending = self._producer._sender.sender_task
        for _ in range(2):  # the first ends the loop, the second its wait for metadata
            sending.cancel()
            await self._producer.client.close()
            await asyncio.wait({sending}, timeout=CUT_S_MAX)
        accumulator = self._producer._message_accumulator
        for queue in accumulator._batches.values():
            accumulator._pending_batches.update(queue)  # the callbacks of tried batches search there
            for batch in queue:
                batch.drain_ready()  # callers that wait for room go on, and get a closed producer
        accumulator.fail_all(KafkaConnectionError("given up"))


def _batches(producer: AIOKafkaProducer, topic: str, records: Iterable[Outgoing]) -> Iterator[Any]:
    """Fill batches with records, in order.

    Raises: Quarantine, where a record is larger than a batch; the batch before it was yielded by then.
    """
    now = int(time.time() * 1000)
    batch = producer.create_batch()
    for record in records:
        if not _put(batch, record, now):
            yield batch
            batch = producer.create_batch()
            _put(batch, record, now)
        if batch.record_count() == 1 and batch.size() > BATCH_BYTES:
            raise Quarantine(f"a record for topic {topic} does not fit a batch of {BATCH_BYTES} bytes")
    if batch.record_count():
        batch.close()  # so that no lone record of another caller joins it
        yield batch


def _put(batch: Any, record: Outgoing, now_ms: int) -> bool:
    """Put a record into a batch; False where it is full, and then closed. A first record of any size fits."""
    timestamp_ms = now_ms if record.timestamp_ms is None else record.timestamp_ms
    headers = list(record.headers)
    return batch.append(key=record.key, value=record.value, timestamp=timestamp_ms, headers=headers) is not None


def _place(topic: str, answer: Any) -> Appended:
    """Return the place of an appended record.

    The answer to a repeated sequence number whose place the broker no longer has contains -1 for both offsets; aiokafka
    counts on from there, so the offset alone would be plausible from a batch's second record on.
    Raises: InDoubt, where the answer has no place.
    """
    if answer.offset < 0 or (answer.log_start_offset is not None and answer.log_start_offset < 0):
        raise InDoubt(f"an append to {topic} was answered without an offset")
    return Appended(answer.partition, answer.offset)


class LogEnds:
    """Reads first and next offsets of partitions, and single records, without a consumer group."""

    def __init__(self, settings: Settings, *, timeout_s: float = REQUEST_TIMEOUT_MS / 1000) -> None:
        self._consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=20,
            **connection(settings) | {"request_timeout_ms": int(timeout_s * 1000)},
        )
        self._address = settings.kafka_address
        self._one_at_a_time = asyncio.Lock()

    async def start(self) -> None:
        """Connect. Raises: Retry, where no broker answers."""
        try:
            await self._consumer.start()
        except KafkaError as error:
            await self._consumer.stop()
            raise Retry(f"no Kafka at {self._address}: {type(error).__name__}") from error

    async def stop(self) -> None:
        """Disconnect."""
        async with asyncio.timeout(FLUSH_S_MAX):
            await self._consumer.stop()

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, Ends]:
        """Return the first and the next offset of each partition. Raises: Retry."""
        async with self._one_at_a_time:
            return await self._ends(topic, partitions)

    async def record(self, topic: str, partition: int, offset: int, *, timeout_s: float = 10.0) -> bytes | None:
        """Return the value of the record at an offset; None where the log has none there. Raises: Retry."""
        place = TopicPartition(topic, partition)
        async with self._one_at_a_time:
            ends = (await self._ends(topic, [partition]))[partition]
            if not ends.start <= offset < ends.end:
                return None
            try:
                self._consumer.assign([place])
                self._consumer.seek(place, offset)
                async with asyncio.timeout(timeout_s):
                    record = await self._consumer.getone(place)
            except OffsetOutOfRangeError:  # deleted by retention just now
                return None
            except (KafkaError, TimeoutError) as error:
                raise Retry(f"{topic} {partition} at {offset}: {type(error).__name__}") from error
            finally:
                self._consumer.pause(place)  # else it fetches 50 times a second at the end of the log
        return record.value if record.offset == offset else None

    async def _ends(self, topic: str, partitions: Iterable[int]) -> dict[int, Ends]:
        places = [TopicPartition(topic, number) for number in partitions]
        try:
            starts = await self._consumer.beginning_offsets(places)
            stops = await self._consumer.end_offsets(places)
        except KafkaError as error:
            raise Retry(f"no offsets of {topic}: {type(error).__name__}") from error
        return {tp.partition: Ends(starts[tp], stops[tp]) for tp in places}
