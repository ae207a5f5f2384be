"""Kafka's jars, by Maven coordinates: fetched once into the user's cache, checked against the lock at each start."""

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import Halt

# slf4j-simple writes the log. Log4j's bindings would: their parent pom pulls kafka-clients down to 3.9.
COORDINATES = "org.apache.kafka:kafka_2.13:4.3.1+org.slf4j:slf4j-simple:1.7.36"
LOCK = Path(__file__).with_name("jgo.lock.toml")

# The repository answers a jar in about 0.3 s; eight at once fetch all 46 in a few seconds.
FETCHES_MAX = 8
FETCH_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Jar:
    """Jar of the lock: its coordinates and the SHA-256 of its bytes."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name in the cache."""
        return f"{self.artifact}-{self.version}.jar"


def class_path(folder: Path | None = None, *, lock: Path = LOCK) -> tuple[Path, ...]:
    """Return the jars of the lock, fetched where missing and verified.

    Raises: Halt, where a jar does not have its sum, cannot be fetched, or Kafka has two versions.
    """
    jars = read_lock(lock)
    folder = cache_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in jars if not (folder / jar.filename).exists()]
    if missing:
        _fetch(missing, folder)
    for jar in jars:
        verify(folder / jar.filename, jar)
    return tuple(folder / jar.filename for jar in jars)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the user's cache with the jars."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tartan" / "jars"


def read_lock(lock: Path = LOCK) -> tuple[Jar, ...]:
    """Read the lock file, in the order of the class path.

    Raises: Halt, where a jar has no sum, or jars of Kafka have different versions.
    """
    jars = []
    for entry in tomllib.loads(lock.read_text())["dependencies"]:
        if not entry.get("sha256"):
            raise Halt(f"{lock.name} has no sum for {entry['groupId']}:{entry['artifactId']}.")
        jars.append(Jar(entry["groupId"], entry["artifactId"], entry["version"], entry["sha256"]))
    versions = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    if len(versions) != 1:
        raise Halt(f"{lock.name} holds Kafka in {len(versions)} versions: {', '.join(sorted(versions))}.")
    return tuple(jars)


def verify(path: Path, jar: Jar) -> None:
    """Compare a file with its sum in the lock.

    Raises: Halt, naming the file and both sums.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != jar.sha256:
        raise Halt(
            f"{path} is not the {jar.filename} of the lock: its SHA-256 is {digest}, not {jar.sha256}. "
            "Delete the file to have it fetched again; if that repeats, do not trust its source."
        )


def renew_lock(lock: Path = LOCK) -> None:
    """Resolve the coordinates and write the lock.

    Run: `python -c "from sandbox.infra.jars import *; renew_lock()"`. The format is jgo's own, without the parts that
    hold for one machine or one moment.
    """
    import jgo

    with tempfile.TemporaryDirectory() as scratch:
        resolved = jgo.build(COORDINATES, cache_dir=Path(scratch)).lockfile
    lines = [f"# Kafka's class path, made by renew_lock() of sandbox/infra/jars.py from {COORDINATES}."]
    for entry in resolved.dependencies:
        lines += ["", "[[dependencies]]"]
        for key in ("groupId", "artifactId", "version", "packaging", "sha256"):
            lines.append(f'{key} = "{getattr(entry, key)}"')
    lock.write_text("\n".join(lines) + "\n")


def _fetch(jars: Sequence[Jar], folder: Path) -> None:
    # A killed fetch leaves a part of a file, and a cache that trusted names would use it for ever: fetch into a
    # scratch folder, verify, then move.
    with tempfile.TemporaryDirectory(dir=folder) as scratch, ThreadPoolExecutor(FETCHES_MAX) as pool:
        for jar, path in zip(jars, pool.map(_fetcher(Path(scratch)), jars), strict=True):
            verify(path, jar)
            path.replace(folder / jar.filename)


def _fetcher(scratch: Path) -> Callable[[Jar], Path]:
    """Return a function that fetches a jar with jgo, from the user's configured repositories first."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    repositories = {**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL}
    context = MavenContext(repo_cache=scratch, remote_repos=repositories)
    context.timeout = FETCH_TIMEOUT_S

    def fetch(jar: Jar) -> Path:
        component = context.project(jar.group, jar.artifact).at_version(jar.version)
        try:
            return Path(component.artifact().resolve())
        except (OSError, RuntimeError) as problem:
            raise Halt(
                f"{jar.filename} could not be fetched ({problem}). The first start needs the network; "
                "a mirror can be named in the [repositories] of jgo's configuration."
            ) from problem

    return fetch
