"""Settings of every process, from the environment (prefix TARTAN_), checked at start."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime import plaid_limits
from runtime.plaid_limits import Limit
from runtime.settings_syntax import Price, parse_key, parse_price, parse_weights
from schemas.errors import Halt
from schemas.log.changesets import RECORD_BYTES_MAX
from schemas.topics import PARTITIONS_DEFAULT

ROLE = r"^[a-z_][a-z0-9_]{0,62}$"
"""Pattern of a role's name that needs no quotes in SQL."""


class Settings(BaseSettings):
    """Settings of a process; the variable of each is its name in capitals behind TARTAN_."""

    model_config = SettingsConfigDict(env_prefix="TARTAN_", extra="ignore", frozen=True)

    kafka_address: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port separated by commas.")
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Security protocol of the connections to Kafka."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="SASL mechanism, where Kafka's security protocol has SASL."
    )
    kafka_username: str | None = Field(None, description="User name for Kafka with SASL.")
    kafka_password: SecretStr | None = Field(None, description="Password for Kafka with SASL.")
    kafka_ca_file: Path | None = Field(
        None, description="File of the certificate authority that signed the brokers' certificates."
    )
    topic_prefix: str = Field(
        "tartan.", pattern=r"^[a-zA-Z0-9._-]{0,100}$", description="Prefix of the name of each topic."
    )
    partitions: int = Field(
        PARTITIONS_DEFAULT, ge=1, le=1000, description="Partitions of each topic; never change it once records exist."
    )
    replication_factor: int = Field(1, ge=1, le=10, description="Replication factor of topics; 3 in production.")

    session_timeout_s: float = Field(
        30.0,
        ge=1,
        le=1800,
        description="Silence after which a process loses its partitions in Kafka's consumer group, in seconds.",
    )
    # As long as one request by default, so that an append survives a broker's restart. aiokafka's idempotent producer
    # would try for ever, and its caller would hold a lease or a stop for ever.
    append_timeout_s: float = Field(
        30.0,
        ge=1,
        le=600,
        description="Longest wait for the answer to an append, in seconds; afterwards the append is in doubt.",
    )

    postgres_dsn: SecretStr = Field(
        SecretStr("postgresql://tartan@127.0.0.1:5432/tartan"),
        description="Address of the PostgreSQL database, version 17 or newer.",
    )
    postgres_pool_size: int = Field(10, ge=2, le=200, description="Most connections to Postgres of one process.")
    projector_role: str = Field(
        "tartan_projector",
        pattern=ROLE,
        description="Postgres role of the projections; it can add to the ledger and neither change nor delete.",
    )
    eraser_role: str = Field(
        "tartan_eraser", pattern=ROLE, description="The only Postgres role that may delete from the ledger."
    )
    lock_timeout_s: float = Field(10.0, gt=0, le=600, description="Longest wait for a lock in Postgres, in seconds.")
    statement_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Longest duration of a statement in Postgres, in seconds."
    )
    transaction_timeout_s: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Longest duration of a transaction in Postgres, in seconds; it frees a stopped process's locks.",
    )

    plaid_environment: Literal["sandbox", "production"] = Field(
        "sandbox", description="Plaid environment; webhooks of another one are refused."
    )
    plaid_url: str | None = Field(
        None, description="Base address of Plaid's API, where it is not that of the environment."
    )
    plaid_client_id: str = Field("", description="Plaid client id, from Plaid's dashboard.")
    plaid_secret: SecretStr = Field(SecretStr(""), description="Plaid secret of the same environment.")
    plaid_timeout_s: float = Field(
        60.0,
        gt=0,
        le=600,
        description="Longest wait for an answer of Plaid, in seconds; an Item's first history can take 8 times longer.",
    )
    webhook_url: str | None = Field(None, description="Public address to which Plaid sends webhooks.")
    days_requested: int = Field(
        730, ge=1, le=730, description="Days of history that are requested at an Item's first sync."
    )

    key_encryption_key: SecretStr | None = Field(
        None, description="Key-encryption key that wraps every user's data key, 32 bytes in base64."
    )
    key_encryption_key_file: Path | None = Field(
        None, description="File with the key-encryption key, in place of the variable."
    )

    host: str = Field("127.0.0.1", description="Address on which the public port of ingest or gateway listens.")
    port: int = Field(8080, ge=0, le=65535, description="Public port of ingest or gateway.")
    internal_host: str = Field("127.0.0.1", description="Address on which the internal port listens.")
    internal_port: int = Field(
        9090, ge=0, le=65535, description="Internal port, which serves /healthz, /readyz and /metrics."
    )
    instance_id: str = Field(
        "1",
        pattern=r"^[a-zA-Z0-9._-]{1,100}$",
        description="Id of this process; each stage runs one process an id at a time.",
    )

    webhook_stale: Literal["reject", "demote"] = Field(
        "reject",
        description="Treatment of a genuine webhook that is older than 5 minutes: answer 401, or accept it as stale.",
    )
    webhook_body_bytes_max: int = Field(
        64 * 1024, ge=1024, le=1024 * 1024, description="Largest body of a webhook, in bytes; larger ones get 413."
    )
    webhook_answer_s: float = Field(
        8.0, gt=0, lt=10, description="Longest time to answer a webhook, in seconds; Plaid gives up after 10."
    )

    fetch_concurrency: int = Field(8, ge=1, le=256, description="Items that one process fetches at the same time.")
    lease_s: float = Field(
        30.0, ge=1, le=3600, description="Duration of a worker's lease of an Item without renewal, in seconds."
    )
    claim_poll_s: float = Field(
        0.25, gt=0, le=60, description="Interval at which a process polls for due Items, in seconds."
    )
    schedule_interval_s: float = Field(
        900.0, ge=1, le=86400, description="Longest time between two syncs of an Item, in seconds."
    )
    accounts_interval_s: float = Field(
        86400.0, ge=1, le=7 * 86400, description="Longest time between two reads of an Item's accounts, in seconds."
    )

    plaid_limits: str = Field(
        "",
        description="Plaid's rate limits: production, sandbox or off, then endpoint=item/client a minute, by commas.",
    )
    institution_failures_max: int = Field(
        3, ge=1, le=1000, description="Outage answers of a bank in a row after which all its Items wait."
    )
    removals_share_max: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of an Item's transactions that a full resync may remove without an approval.",
    )
    record_bytes_max: int = Field(
        RECORD_BYTES_MAX,
        ge=8 * 1024,
        le=RECORD_BYTES_MAX,
        description="Largest size of a changeset, in bytes; a larger one is cut into chunks.",
    )
    dead_letters_max: int = Field(
        20,
        ge=1,
        le=1_000_000,
        description="Items that a reader may quarantine in TARTAN_DEAD_LETTERS_WINDOW_S; one more stops the reader.",
    )
    dead_letters_window_s: float = Field(
        600.0, ge=1, le=86400, description="Window in which quarantined Items are counted to stop a reader, in seconds."
    )
    tenant_weights: str = Field(
        "", description="Shares of tenants under load, tenant:number pairs separated by commas; others have 1."
    )
    sweep_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the client's rate limit of /item/get for the sweep for missed webhooks; 0 turns it off.",
    )
    alerts_url: SecretStr = Field(
        SecretStr(""),
        description="Webhook to which incidents are sent as JSON in Slack's form; without it they are logged only.",
    )
    cron_secret: SecretStr = Field(
        SecretStr(""), description="Bearer token of POST /internal/schedule; empty turns the path off."
    )

    reconcile_interval_s: float = Field(
        3600.0, ge=1, le=7 * 86400, description="Interval at which each account is compared with its bank, in seconds."
    )
    gap_alert_after_s: float = Field(
        86400.0,
        ge=1,
        le=90 * 86400,
        description="Age of a gap at which its incident opens, in seconds; 3 checks after a repair open it as well.",
    )

    batch_records_max: int = Field(
        500, ge=1, le=100_000, description="Most changesets that projections fold in one transaction."
    )
    batch_bytes_max: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        le=256 * 1024 * 1024,
        description="Most bytes of changesets that projections fold in one transaction.",
    )

    api_keys: SecretStr = Field(SecretStr(""), description="API keys of tenants, tenant:key pairs separated by commas.")
    stream_secret: SecretStr = Field(
        SecretStr(""), description="Secret that signs the tokens with which browsers open streams."
    )

    balance_cache_s: float = Field(
        30.0,
        ge=0,
        le=30,
        description="Greatest age of balances that a read shows again, in seconds, if nothing came since.",
    )

    balance_price: str = Field(
        "", description="Plaid's price of a real-time balance request, as 0.10 USD; answers show it."
    )
    dated_institutions: str = Field(
        "ins_128026,ins_136439",
        description="Banks that give no present balance and need a greatest age in requests, ids separated by commas.",
    )
    balance_age_max_s: float = Field(
        172800.0,
        ge=60,
        le=90 * 86400,
        description="Greatest age of a balance of TARTAN_DATED_INSTITUTIONS, in seconds, where a request names none.",
    )

    archive_url: str = Field(
        "",
        pattern=r"^$|^(file:///|s3://[a-z0-9])",
        description="Address of the archive of sealed segments: file:///folder or s3://bucket/prefix.",
    )

    schema_registry_url: str = Field(
        "", description="Address of a schema registry with Confluent's API; without it the gateway serves the schemas."
    )
    schema_registry_username: str | None = Field(
        None, description="User name for the schema registry, with basic authentication."
    )
    schema_registry_password: SecretStr | None = Field(None, description="Password for the schema registry.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["json", "text"] = Field(
        "json", description="Format of the log: one JSON object a line, or text for people."
    )

    @field_validator("key_encryption_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_key(value.get_secret_value())
        return value

    @field_validator("plaid_limits", "balance_price", "tenant_weights")
    @classmethod
    def _check_syntax(cls, value: str, field: ValidationInfo) -> str:
        try:
            match field.field_name:
                case "plaid_limits":
                    plaid_limits.parse(value, environment="sandbox")
                case "balance_price":
                    parse_price(value)
                case _:
                    parse_weights(value)
        except Halt as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("alerts_url", "schema_registry_url")
    @classmethod
    def _check_address(cls, value: SecretStr | str) -> SecretStr | str:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        parts = urlsplit(text)
        if text and not (parts.scheme in ("http", "https") and parts.hostname):
            raise ValueError("is not empty and no http or https address")
        if isinstance(value, SecretStr):
            return value
        if parts.username or parts.password:
            raise ValueError("has a user in it: set TARTAN_SCHEMA_REGISTRY_USERNAME and _PASSWORD instead")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _timeouts_are_ordered(self) -> Self:
        if not self.lock_timeout_s <= self.statement_timeout_s <= self.transaction_timeout_s:
            raise ValueError("lock_timeout_s <= statement_timeout_s <= transaction_timeout_s does not hold")
        return self

    def master_key(self) -> bytes:
        """Return the key-encryption key, 32 bytes.

        Raises: Halt, where neither TARTAN_KEY_ENCRYPTION_KEY nor the file is set, or it is no key.
        """
        if self.key_encryption_key is not None:
            return parse_key(self.key_encryption_key.get_secret_value())
        if self.key_encryption_key_file is None:
            raise Halt("no key: set TARTAN_KEY_ENCRYPTION_KEY (32 bytes in base64) or TARTAN_KEY_ENCRYPTION_KEY_FILE")
        try:
            return parse_key(self.key_encryption_key_file.read_text("ascii"))
        except (OSError, ValueError) as error:
            raise Halt(f"TARTAN_KEY_ENCRYPTION_KEY_FILE {self.key_encryption_key_file}: {error}") from error

    def tenants(self) -> dict[str, str]:
        """Return the tenant of each API key.

        Raises: Halt, where an entry is not tenant:key, or a key is there twice, so that only the last tenant would have
        it. The message has numbers of entries only: where tenant and key were swapped, a tenant's name is a key.
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
        """Return the share under load of each tenant that has one."""
        return parse_weights(self.tenant_weights)

    def limits(self) -> dict[str, Limit]:
        """Return Plaid's rate limits by endpoint; an endpoint that is absent has none."""
        return plaid_limits.parse(self.plaid_limits, environment=self.plaid_environment)

    def price(self) -> Price | None:
        """Return the price of a real-time balance request, where it is set."""
        return parse_price(self.balance_price)

    def plaid_address(self) -> str:
        """Return the base address of Plaid's API."""
        return self.plaid_url or f"https://{self.plaid_environment}.plaid.com"


def described() -> list[tuple[str, str, str]]:
    """Return each setting's variable, default and description, in the order of the class."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        rows.append((f"TARTAN_{name.upper()}", "" if default is None else str(default), field.description or ""))
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
    name = "_".join(str(part) for part in entry["loc"]) or "settings"
    return f"TARTAN_{name.upper()}: {entry['msg']}"
