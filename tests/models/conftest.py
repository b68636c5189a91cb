"""What the tests of the local engine share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toys import edited


@pytest.fixture(scope="module")
def sharp_folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with matrices eight times as large: attention and logits far from uniform, so that a mistake shows."""

    def enlarge(weights: dict[str, Any]) -> None:
        for name in weights:
            if weights[name].ndim == 2:
                weights[name] = weights[name] * 8

    return edited(toy_folder, tmp_path_factory.mktemp("sharp") / "model", enlarge)
