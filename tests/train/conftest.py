"""Fixtures of the training layer: small recorded datasets, and the command line as a user has it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import qcse_command, record_random_policy

from qcse.cli.main import main


@pytest.fixture(scope="session")
def hopper_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_random_policy("Hopper-v5", 600, tmp_path_factory.mktemp("data") / "hopper.hdf5")


@pytest.fixture(scope="session")
def ant_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_random_policy("Ant-v5", 400, tmp_path_factory.mktemp("data") / "ant.hdf5")


@pytest.fixture
def qcse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a user would, in a folder of its own."""

    def run(*words: object, check: bool = False) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(qcse_command(*words), cwd=tmp_path, capture_output=True, text=True, timeout=300)
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def qcse_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command line in this process, in a folder of its own: exit code, and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, check: bool = False) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = "".join(capsys.readouterr())
        assert code == 0 or not check, said
        return code, said

    return run
