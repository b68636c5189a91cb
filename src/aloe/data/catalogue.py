"""Data sources by name before anyone can read them: what was published of each, so that a recipe can be planned without its data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from aloe.core.config import Config, load_document, validate
from aloe.data.adapters import Adapter

FILE = Path(__file__).with_name("catalogue.yaml")


class Entry(Config):
    """A source as it was published."""

    hub: str | None
    """ORG/NAME of the data set on the Hugging Face hub."""
    role: Literal["medical", "synthetic", "general", "preference", "safety", "red-team"]
    rows: int | None = Field(ge=1)
    """Rows that the recipe used; None where no figure was published."""
    licence: str
    revision: str = "unpinned"
    status: Literal["adapter", "unpublished"]
    note: str = ""
    adapter: Adapter | None = None

    @property
    def pairs(self) -> bool:
        """Whether a row has a worse answer beside the better one."""
        return self.role in ("preference", "safety", "red-team")


class Catalogue(Config):
    """The file catalogue.yaml."""

    tokens_per_row: dict[Literal["sft", "pairs"], float]
    sources: dict[str, Entry]

    def tokens(self, name: str) -> float:
        """Estimated tokens of all published rows of a source."""
        entry = self.sources[name]
        return (entry.rows or 0) * self.tokens_per_row["pairs" if entry.pairs else "sft"]


@cache
def catalogue() -> Catalogue:
    """Every known source."""
    return validate(Catalogue, load_document(FILE))
