"""One torch thread, and places for tiny runs."""

from pathlib import Path

import pytest
import torch

from helpers import Lab

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A place for runs that the tests of one file share."""
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def fresh_lab(tmp_path: Path) -> Lab:
    """A place for runs in a test's own folder."""
    return Lab(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on a real Slurm first: they mostly wait."""
    items.sort(key=lambda item: "slurm" not in item.keywords)
