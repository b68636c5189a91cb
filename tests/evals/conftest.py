import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data sets, with ALOE_DATA pointing to it; skips where there is none."""
    root = Path(os.environ.get("ALOE_DATA") or SHARED)
    if not root.is_dir():
        pytest.skip(f"no data sets here: set ALOE_DATA (looked for {root})")
    monkeypatch.setenv("ALOE_DATA", str(root))
    return root
