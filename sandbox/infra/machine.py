"""Check this machine before a server starts: a free port, memory, disk."""

import random
import shutil
import socket
from pathlib import Path

import psutil

from schemas.errors import Halt

LOOPBACK = "127.0.0.1"
MIB = 1 << 20

# Below 32768, where Linux hands out ports to outgoing connections: such a connection would take a server's
# port while it restarts. One range a role, so that servers which start together cannot choose the same one.
KAFKA_PORTS = range(20_000, 24_000)
CONTROLLER_PORTS = range(24_000, 28_000)
POSTGRES_PORTS = range(28_000, 32_000)

# With 4,000 ports in a range, fifty taken ones in a row mean that something else is wrong.
PORT_TRIES_MAX = 50


def require_port(name: str, port: int) -> int:
    """Return `port` where it is free.

    Raises: Halt, naming the process that listens on it where the kernel reports it.
    """
    if port_is_free(port):
        return port
    raise Halt(f"Port {port} for {name} is taken{_listener(port)}. Free it, or choose another port.")


def free_port(ports: range, *, remembered: str | None = None) -> int:
    """Return the port of the last run where it is still free, else any free one of the range."""
    if remembered is not None and remembered.isdecimal() and port_is_free(int(remembered)):
        return int(remembered)
    for port in random.sample(ports, PORT_TRIES_MAX):
        if port_is_free(port):
            return port
    raise Halt(f"No free port among {PORT_TRIES_MAX} tried between {ports.start} and {ports.stop - 1}.")


def port_is_free(port: int) -> bool:
    """Return True if a server could listen on this port of the loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Kafka and Postgres do: connections that linger in TIME_WAIT do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_memory(name: str, size_bytes: int) -> None:
    """Refuse to start where too little memory is free: the kernel would kill a process at random later."""
    available = psutil.virtual_memory().available
    if available < size_bytes:
        raise Halt(f"{name} needs {size_bytes // MIB} MiB of memory; {available // MIB} MiB are available.")


def require_disk(name: str, folder: Path, size_bytes: int) -> None:
    """Refuse to start where the disk is nearly full: a server that hits its end may not start again."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise Halt(f"{name} needs {size_bytes // MIB} MiB of disk in {folder}; {free // MIB} MiB are free.")


def _listener(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
        if listens and connection.pid:
            try:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
            except psutil.NoSuchProcess:
                return ""
    return ""
