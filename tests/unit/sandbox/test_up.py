"""A sandbox that stays: what its next start must not do again."""

from pathlib import Path

from sandbox.demo.up import count_start


def test_each_start_of_a_folder_has_a_number_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sandbox"

    assert [count_start(folder) for _ in range(3)] == [0, 1, 2]
    assert count_start(tmp_path / "other") == 0
