"""Java is taken where it is new enough, and refused by name where it is not."""

from pathlib import Path

import pytest

from sandbox.infra.java import bundled_java, find_java, java_major
from schemas.errors import Halt


def fake_java(home: Path, version: str) -> Path:
    launcher = home / "bin" / "java"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-16' >&2\n")
    launcher.chmod(0o755)
    return launcher


def no_wheel() -> None:
    return None


@pytest.mark.parametrize(
    ("version", "major"), [("11.0.22", 11), ("1.8.0_402", 8), ("17", 17), ("25.0.2", 25), ("26-ea", 26)]
)
def test_the_major_version_is_read(tmp_path: Path, version: str, major: int) -> None:
    assert java_major(fake_java(tmp_path, version)) == major


def test_what_is_no_java_has_no_version(tmp_path: Path) -> None:
    assert java_major(tmp_path / "missing") is None


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    home, path = fake_java(tmp_path / "home", "21.0.2"), fake_java(tmp_path / "path", "17.0.1")

    java = find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(path.parent)}, bundled=no_wheel)

    assert (java.path, java.major) == (home, 21)


def test_an_old_java_is_passed_over(tmp_path: Path) -> None:
    fake_java(tmp_path / "home", "11.0.22")
    path, wheel = fake_java(tmp_path / "path", "1.8.0_402"), fake_java(tmp_path / "wheel", "25.0.2")

    java = find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(path.parent)}, bundled=lambda: wheel)

    assert (java.path, java.major) == (wheel, 25)


def test_where_all_are_old_each_is_named(tmp_path: Path) -> None:
    old = fake_java(tmp_path / "home", "11.0.22")

    with pytest.raises(Halt, match=f"needs Java 17 or newer .*{old} is Java 11"):
        find_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(tmp_path)}, bundled=no_wheel)


def test_the_wheel_brings_a_java_that_is_new_enough() -> None:
    wheel = bundled_java()

    assert wheel is not None
    assert (java_major(wheel) or 0) >= 17
