from pathlib import Path

import pytest


@pytest.fixture
def data(data_root: Path) -> Path:
    """The folder of the public data sets."""
    return data_root
