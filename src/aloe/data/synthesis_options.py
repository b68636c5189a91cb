"""What a synthesis is asked for. Apart from `synthesize`, so that a recipe is read without the parsers of replies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aloe.core.config import Config
from aloe.models.limits import Budget

What = Literal["answers", "questions", "dialogues", "pairs"]


class SynthesisOptions(Config):
    """What is written, and what of it is kept."""

    what: What
    """answers: worked answers to the questions of `data`. questions: questions from passages, with worked answers. dialogues:
    consultations that end in a diagnosis. pairs: two answers, the better one by a judge."""
    samples: int = Field(default=4, ge=1)
    """Answers (or consultations) that are drawn for each question."""
    keep: int = Field(default=1, ge=1)
    """Of the good ones, at most so many become rows."""
    min_share: float = Field(default=0.0, ge=0, le=1)
    """Rows whose question was answered rightly by a smaller share of the samples are dropped: a lucky guess teaches a bad argument."""
    gold: Literal["hidden", "shown"] = "hidden"
    """shown: the right answer stands in the prompt, as in the paper; the reasoning is then written towards it."""
    max_tokens: int = Field(default=768, ge=1)
    """Of one reply."""
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    turns: int = Field(default=5, ge=1)
    """Questions that the doctor of a dialogue may ask."""
    budget: Budget = Budget()
    """For the whole stage, all attempts and all its models together; where it is spent, the stage stops and can be resumed with more."""

    @model_validator(mode="after")
    def _fields_fit(self) -> SynthesisOptions:
        unread = {
            "gold": self.gold == "shown" and self.what != "answers",
            "turns": self.turns != 5 and self.what != "dialogues",
            "keep": self.keep != 1 and self.what == "pairs",
            "min_share": self.min_share > 0 and (self.what == "pairs" or self.gold == "shown"),
        }
        for field, is_unread in unread.items():
            if is_unread:
                raise ValueError(f"{field} has no meaning for {self.what}" + (" with gold: shown" if self.gold == "shown" else ""))
        if self.what == "pairs" and self.samples < 2:
            raise ValueError("pairs need at least 2 samples")
        if self.temperature == 0 and self.what == "pairs":
            raise ValueError("pairs need a temperature: at 0 both answers would be the same")
        return self
