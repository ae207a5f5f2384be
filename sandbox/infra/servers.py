"""Base class of Kafka and Postgres: a server in a child process with a locked data folder."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from sandbox.infra.folders import DataFolder
from sandbox.infra.machine import LOOPBACK, free_port, require_port
from sandbox.infra.processes import Child


class Server(ABC):
    """Run a server as a child process, with its data in a folder that survives restarts and kill -9.

    Idempotence: `stop` and `kill` of a stopped server do nothing; `start` may follow either.
    The port of the last run is used again where it is still free, so that clients survive a restart.
    """

    name: str
    ports: range
    stop_timeout_s: float

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self._folder = DataFolder(folder)
        self._fixed_port = port
        self._port: int | None = None
        self._child: Child | None = None

    @property
    def folder(self) -> Path:
        """Folder of the data, the settings and the log."""
        return self._folder.path

    @property
    def log(self) -> Path:
        """Log of the current or last run; the log before it ends in `.before`."""
        return self.folder / "log"

    @property
    def port(self) -> int:
        """Port on the loopback, chosen at the first start."""
        assert self._port is not None, "the server was never started"
        return self._port

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._child is not None, "the server is not running"
        return self._child.pid

    @property
    def running(self) -> bool:
        """True while the server's process exists."""
        return self._child is not None and self._child.running()

    async def start(self) -> None:
        """Start the server and return once it answers.

        Raises: Halt, where a port, memory, disk, Java or the data folder is missing, or the server fails.
        """
        assert not self.running, "the server is running already"
        await self._folder.acquire()
        try:
            if self.log.exists():
                self.log.replace(self.folder / "log.before")
            self._child = await self._launch()
        except BaseException:
            self._folder.release()
            raise

    async def stop(self) -> None:
        """Stop the server cleanly; at the bound it is killed."""
        if self._child is not None:
            await self._child.stop(timeout_s=self.stop_timeout_s)
            self._release()

    def kill(self) -> None:
        """Kill the server, as a power cut would: nothing is flushed."""
        if self._child is not None:
            self._child.kill()
            self._release()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @abstractmethod
    async def _launch(self) -> Child:
        """Start the process in the locked folder and wait until it is ready."""

    def _choose_port(self) -> None:
        if self._fixed_port is None:
            self._port = free_port(self.ports, remembered=self._folder.read("port"))
        else:
            self._port = require_port(self.name, self._fixed_port)
        self._folder.keep("port", str(self._port))

    def _release(self) -> None:
        self._child = None
        self._folder.release()
