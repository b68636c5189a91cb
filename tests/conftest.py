from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random two-layer model as a folder, made once; tests must not write into it."""
    from aloe.core.chat import ChatOptions
    from aloe.models.base import make_base
    from toys import TOY_SYSTEM_PROMPT

    out = tmp_path_factory.mktemp("toy") / "model"
    make_base("toy:", out, ChatOptions(system_prompt=TOY_SYSTEM_PROMPT), None, seed=17)
    return out


@pytest.fixture
def data_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the public data sets, with ALOE_DATA pointing to it; skips where there is none."""
    root = Path(os.environ.get("ALOE_DATA") or SHARED)
    if not root.is_dir():
        pytest.skip(f"no data sets here: set ALOE_DATA (looked for {root})")
    monkeypatch.setenv("ALOE_DATA", str(root))
    return root
