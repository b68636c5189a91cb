"""What a recipe says about near rows and poor rows. No numpy here: recipes are read without it."""

from __future__ import annotations

from pydantic import Field

from aloe.core.config import Config

BUILT_IN = "built-in"
_MOST_BINS, _RECALL = 112, 0.99


class Near(Config):
    """When two rows are near. The default thresholds are the paper's; see docs/curate.md."""

    threshold: float = Field(default=0.72, gt=0.3, le=1)
    """Jaccard similarity of the two rows' word sequences, question and answer together."""
    multi_turn: float = Field(default=0.77, gt=0.3, le=1)
    """The same where one of the two has several turns of the user."""
    words: int = Field(default=5, ge=1, le=20)
    """Length of a word sequence."""
    wording: int = Field(default=50, ge=0)
    """A word sequence in so many of a source's first 500 rows is how the source asks and is not compared; 0: all are compared."""
    drop: bool = True
    """False keeps near rows and says which belong together (score `cluster`), so that a mixture's `held_out` never splits them."""

    def bands(self) -> tuple[int, int]:
        """Number of bands and bins in each: the most selective ones that bring two rows at the threshold together in 99 of 100 cases."""
        lowest = min(self.threshold, self.multi_turn)
        fitting = [(_MOST_BINS // rows, rows) for rows in range(12, 0, -1) if 1 - (1 - lowest**rows) ** (_MOST_BINS // rows) >= _RECALL]
        return fitting[0]


class Quality(Config):
    """Which rows are too poor to learn from."""

    scorer: str = BUILT_IN
    """`built-in`, a rule of thumb, or a model: hf:PATH, package:PKG/FILE.gguf, http://HOST/v1#NAME."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows that leaves: those with the lowest quality times complexity."""
