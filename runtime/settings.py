"""Settings of every process, from the environment (prefix TARTAN_), checked at start."""

import base64
import binascii
import re
from pathlib import Path
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.scheduler import quotas
from schemas import money
from schemas.errors import Halt
from schemas.log.changesets import RECORD_BYTES_MAX
from schemas.topics import PARTITIONS_DEFAULT

KEY_BYTES = 32
ROLE = r"^[a-z_][a-z0-9_]{0,62}$"
"""A role's name that needs no quotes in SQL."""

_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,8})?", re.ASCII)


class Price(NamedTuple):
    """What one request costs: plain decimal text, and the currency's ISO 4217 code."""

    amount: str
    currency: str


class Settings(BaseSettings):
    """One value a setting; names in the environment are these in capitals behind TARTAN_."""

    model_config = SettingsConfigDict(env_prefix="TARTAN_", extra="ignore", frozen=True)

    kafka_address: str = Field("127.0.0.1:9092", description="bootstrap servers, host:port separated by commas")
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="to Kafka"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="with SASL"
    )
    kafka_username: str | None = Field(None, description="with SASL")
    kafka_password: SecretStr | None = Field(None, description="with SASL")
    kafka_ca_file: Path | None = Field(None, description="authority that signed the brokers' certificates")
    topic_prefix: str = Field("tartan.", pattern=r"^[a-zA-Z0-9._-]{0,100}$", description="before each topic's name")
    partitions: int = Field(
        PARTITIONS_DEFAULT, ge=1, le=1000, description="partitions of each topic; never changed afterwards"
    )
    replication_factor: int = Field(1, ge=1, le=10, description="of topics; 3 in production")

    session_timeout_s: float = Field(
        30.0, ge=1, le=1800, description="of Kafka's groups: a process that is silent for so long loses its partitions"
    )
    # As long as one request by default, so that a broker's restart is sat out. aiokafka's idempotent producer would try
    # for ever, and whoever waits with it would hold a lease or a stop for ever.
    append_timeout_s: float = Field(
        30.0, ge=1, le=600, description="how long an append waits for its answer before it is in doubt"
    )

    postgres_dsn: SecretStr = Field(
        SecretStr("postgresql://tartan@127.0.0.1:5432/tartan"), description="PostgreSQL 17+"
    )
    postgres_pool_size: int = Field(10, ge=2, le=200, description="connections a process")
    projector_role: str = Field(
        "tartan_projector", pattern=ROLE, description="which projections act as: it adds to the ledger, no more"
    )
    eraser_role: str = Field("tartan_eraser", pattern=ROLE, description="the one role that may delete from the ledger")
    lock_timeout_s: float = Field(10.0, gt=0, le=600, description="longest wait for a lock in Postgres")
    statement_timeout_s: float = Field(60.0, gt=0, le=3600, description="longest statement")
    transaction_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="longest transaction: a stopped process loses its locks"
    )

    plaid_environment: Literal["sandbox", "production"] = Field(
        "sandbox", description="of Plaid; webhooks of another one are refused"
    )
    plaid_url: str | None = Field(None, description="base address; by default that of the environment")
    plaid_client_id: str = Field("", description="of Plaid's dashboard, Keys")
    plaid_secret: SecretStr = Field(SecretStr(""), description="of the same environment")
    plaid_timeout_s: float = Field(60.0, gt=0, le=600, description="a first sync after the history can take 8 x longer")
    webhook_url: str | None = Field(None, description="where Plaid sends this installation's webhooks")
    days_requested: int = Field(730, ge=1, le=730, description="history asked for at an Item's first sync")

    key_encryption_key: SecretStr | None = Field(None, description="32 bytes in base64: wraps every user's data key")
    key_encryption_key_file: Path | None = Field(None, description="a file with the same, instead")

    host: str = Field("127.0.0.1", description="address of the public port")
    port: int = Field(8080, ge=0, le=65535, description="public port of ingest or gateway")
    internal_host: str = Field("127.0.0.1", description="address of the internal port")
    internal_port: int = Field(9090, ge=0, le=65535, description="/healthz, /readyz, /metrics")
    instance_id: str = Field("1", pattern=r"^[a-zA-Z0-9._-]{1,100}$", description="one live process a stage and id")

    webhook_stale: Literal["reject", "demote"] = Field(
        "reject", description="a genuine webhook older than 5 minutes: 401, or kept as stale"
    )
    webhook_body_bytes_max: int = Field(64 * 1024, ge=1024, le=1024 * 1024, description="larger ones get 413")
    webhook_answer_s: float = Field(8.0, gt=0, lt=10, description="Plaid gives up after 10 s")

    fetch_concurrency: int = Field(8, ge=1, le=256, description="Items that a process fetches at once")
    lease_s: float = Field(30.0, ge=1, le=3600, description="how long a claim holds without renewal")
    claim_poll_s: float = Field(0.25, gt=0, le=60, description="how often others' marks are looked for")
    schedule_interval_s: float = Field(900.0, ge=1, le=86400, description="an Item is asked about at least this often")
    accounts_interval_s: float = Field(86400.0, ge=1, le=7 * 86400, description="all accounts are asked for this often")

    plaid_limits: str = Field(
        "", description="Plaid's quotas: production, sandbox or off, then endpoint=item/client a minute, by commas"
    )
    institution_failures_max: int = Field(
        3, ge=1, le=1000, description="outage answers of a bank in a row before all its Items wait"
    )
    removals_share_max: float = Field(
        0.2, ge=0, le=1, description="share of an Item's history that a restated one may remove without a person"
    )
    record_bytes_max: int = Field(
        RECORD_BYTES_MAX, ge=8 * 1024, le=RECORD_BYTES_MAX, description="a changeset fills at most this; more are parts"
    )
    dead_letters_max: int = Field(
        20, ge=1, le=1_000_000, description="in the window below; one more stops the reader: a broken deploy"
    )
    dead_letters_window_s: float = Field(600.0, ge=1, le=86400, description="see above")
    tenant_weights: str = Field("", description="shares of tenants under load, tenant:number pairs by commas; else 1")
    sweep_share: float = Field(
        0.1, ge=0, le=1, description="of the client's quota of /item/get, for finding missed webhooks; 0 is off"
    )
    alerts_url: SecretStr = Field(
        SecretStr(""), description="told of incidents as JSON with a text (Slack's form); else they are only logged"
    )
    cron_secret: SecretStr = Field(SecretStr(""), description="bearer of POST /internal/schedule; empty turns it off")

    reconcile_interval_s: float = Field(
        3600.0, ge=1, le=7 * 86400, description="each account is compared with its bank this often"
    )
    gap_alert_after_s: float = Field(
        86400.0, ge=1, le=90 * 86400, description="a gap that lasts so long is told, or 3 checks after its repair"
    )

    batch_records_max: int = Field(
        500, ge=1, le=100_000, description="changesets a projection folds in one transaction"
    )
    batch_bytes_max: int = Field(
        16 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="bytes of changesets in one transaction"
    )

    api_keys: SecretStr = Field(SecretStr(""), description="tenant:key pairs separated by commas")
    stream_secret: SecretStr = Field(SecretStr(""), description="signs the tokens that browsers open streams with")

    balance_cache_s: float = Field(
        30.0, ge=0, le=30, description="a read may show accounts that were read so long ago, if nothing came since"
    )

    balance_price: str = Field(
        "", description="what Plaid bills for a real-time balance request, as 0.10 USD; said in the answers"
    )
    dated_institutions: str = Field(
        "ins_128026,ins_136439", description="banks that give no balance of now and want to be told how old it may be"
    )
    balance_age_max_s: float = Field(
        172800.0, ge=60, le=90 * 86400, description="how old a balance of these banks may be, if not asked otherwise"
    )

    archive_url: str = Field(
        "",
        pattern=r"^$|^(file:///|s3://[a-z0-9])",
        description="of sealed segments: file:///folder or s3://bucket/prefix",
    )

    schema_registry_url: str = Field(
        "", description="of a registry with Confluent's API, whose ids go on the wire; else the gateway answers"
    )
    schema_registry_username: str | None = Field(None, description="of the registry, for basic authentication")
    schema_registry_password: SecretStr | None = Field(None, description="of the same user")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least that is logged")
    log_format: Literal["json", "text"] = Field("json", description="one object a line, or for people")

    @field_validator("key_encryption_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            decoded_key(value.get_secret_value())
        return value

    @field_validator("plaid_limits")
    @classmethod
    def _are_limits(cls, value: str) -> str:
        try:
            quotas.limits(value, environment="sandbox")
        except Halt as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("balance_price")
    @classmethod
    def _is_a_price(cls, value: str) -> str:
        price(value)
        return value

    @field_validator("alerts_url")
    @classmethod
    def _is_an_address(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        parts = urlsplit(text)
        if text and not (parts.scheme in ("http", "https") and parts.hostname):
            raise ValueError("is not empty and no http or https address")
        return value

    @field_validator("schema_registry_url")
    @classmethod
    def _is_a_base_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and not (parts.scheme in ("http", "https") and parts.hostname):
            raise ValueError("is not empty and no http or https address")
        if parts.username or parts.password:
            raise ValueError("has a user in it: set TARTAN_SCHEMA_REGISTRY_USERNAME and _PASSWORD instead")
        return value.rstrip("/")

    @field_validator("tenant_weights")
    @classmethod
    def _are_weights(cls, value: str) -> str:
        weights(value)
        return value

    @model_validator(mode="after")
    def _timeouts_are_ordered(self) -> Self:
        if not self.lock_timeout_s <= self.statement_timeout_s <= self.transaction_timeout_s:
            raise ValueError("lock_timeout_s <= statement_timeout_s <= transaction_timeout_s does not hold")
        return self

    def master_key(self) -> bytes:
        """The key-encryption key, 32 bytes.

        Raises: Halt, where neither TARTAN_KEY_ENCRYPTION_KEY nor the file is set, or it is no key.
        """
        if self.key_encryption_key is not None:
            return decoded_key(self.key_encryption_key.get_secret_value())
        if self.key_encryption_key_file is None:
            raise Halt("no key: set TARTAN_KEY_ENCRYPTION_KEY (32 bytes in base64) or TARTAN_KEY_ENCRYPTION_KEY_FILE")
        try:
            return decoded_key(self.key_encryption_key_file.read_text("ascii"))
        except (OSError, ValueError) as error:
            raise Halt(f"TARTAN_KEY_ENCRYPTION_KEY_FILE {self.key_encryption_key_file}: {error}") from error

    def tenants(self) -> dict[str, str]:
        """API key to tenant.

        Raises: Halt, where an entry is not tenant:key, or a key is there twice: the last tenant would have it and
        the others not. The message gives places only: where tenant and key were swapped, a tenant's name is a key.
        """
        keys: dict[str, str] = {}
        for place, entry in enumerate(filter(None, self.api_keys.get_secret_value().split(",")), start=1):
            tenant, colon, key = entry.partition(":")
            if not (tenant and colon and key):
                raise Halt("TARTAN_API_KEYS: each entry is tenant:key, entries are separated by commas")
            if key in keys:
                raise Halt(f"TARTAN_API_KEYS: entry {place} has the key of an entry before it: a key is one tenant's")
            keys[key] = tenant
        return keys

    def weights(self) -> dict[str, float]:
        """Tenant to its share under load, where one was set."""
        return weights(self.tenant_weights)

    def limits(self) -> dict[str, quotas.Limit]:
        """Plaid's quotas by endpoint; an endpoint that is not named has none."""
        return quotas.limits(self.plaid_limits, environment=self.plaid_environment)

    def price(self) -> Price | None:
        """What a real-time balance request costs, where that is set."""
        return price(self.balance_price)

    def plaid_address(self) -> str:
        """Base address of Plaid's API."""
        return self.plaid_url or f"https://{self.plaid_environment}.plaid.com"


def price(text: str) -> Price | None:
    """Read an amount and its currency's ISO 4217 code; None where nothing is set.

    Raises: ValueError, where it is something else.
    """
    if not text:
        return None
    amount, _, currency = text.partition(" ")
    if not (_AMOUNT.fullmatch(amount) and currency.isupper() and money.is_iso(currency)):
        raise ValueError("is not an amount and an ISO 4217 code, as 0.10 USD")
    return Price(amount, currency)


def weights(text: str) -> dict[str, float]:
    """Read tenant:number pairs.

    Raises: ValueError, where one is something else.
    """
    found: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        tenant, colon, number = entry.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not (tenant and colon and 0.001 <= weight <= 1000):
            raise ValueError(f"{entry!r} is not tenant:number with a number from 0.001 to 1000")
        found[tenant] = weight
    return found


def decoded_key(text: str) -> bytes:
    """Read 32 bytes of base64.

    Raises: ValueError, where it is something else.
    """
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error
    if len(key) != KEY_BYTES:
        raise ValueError(f"decodes to {len(key)} bytes, a key has {KEY_BYTES}")
    return key


def described() -> list[tuple[str, str, str]]:
    """Each setting's variable, default and meaning, in the order of the class."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        shown = "" if default is None else str(default)
        rows.append((f"TARTAN_{name.upper()}", shown, field.description or ""))
    return rows


def load() -> Settings:
    """Read the settings from the environment.

    Raises: Halt, naming each variable that is wrong, without its value.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise Halt("settings: " + "; ".join(_named(entry) for entry in error.errors())) from None


def _named(entry: object) -> str:
    assert isinstance(entry, dict)
    where = "_".join(str(part) for part in entry["loc"]) or "settings"
    return f"TARTAN_{where.upper()}: {entry['msg']}"
