"""What Kafka and Postgres have in common as servers of the sandbox."""

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.infra.folders import DataFolder
from sandbox.infra.machine import LOOPBACK
from sandbox.infra.processes import Child


class Server(ABC):
    """A server in a child process, with its data in a folder that survives restarts and kill -9.

    Idempotence: `stop` and `kill` of a stopped server do nothing; `start` may follow either.
    """

    stop_timeout_s: float

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self._folder = DataFolder(folder)
        self._fixed_port = port
        self._port: int | None = None
        self._child: Child | None = None

    @property
    def folder(self) -> Path:
        """Where the data, the settings and the log are."""
        return self._folder.path

    @property
    def log(self) -> Path:
        """The log of the current or last run; the one before it ends in `.before`."""
        return self.folder / "log"

    @property
    def port(self) -> int:
        """The port on the loopback, known once the server was started."""
        assert self._port is not None, "the server was never started"
        return self._port

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._child is not None, "the server is not running"
        return self._child.pid

    @property
    def running(self) -> bool:
        """Say whether the server's process is there."""
        return self._child is not None and self._child.running()

    async def start(self) -> None:
        """Start the server and return once it answers.

        Raises: Halt, where a port, memory, disk, Java or the data folder is not to be had, or the server fails.
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
            self._gone()

    def kill(self) -> None:
        """End the server as a power cut would: no goodbye, nothing flushed."""
        if self._child is not None:
            self._child.kill()
            self._gone()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @abstractmethod
    async def _launch(self) -> Child:
        """Start the process in the held folder and wait until it is ready."""

    def _gone(self) -> None:
        self._child = None
        self._folder.release()
