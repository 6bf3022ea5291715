"""Fixtures that several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_mmseg import write_dataset


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight small images."""
    return write_dataset(tmp_path_factory.mktemp("tiny_voc"))
