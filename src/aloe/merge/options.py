"""What a merge stage says, without numpy: recipes are read and planned without it."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from aloe.core.config import Config

Method = Literal["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "model_stock", "slerp"]
METHODS: tuple[Method, ...] = get_args(Method)
Rescale = Literal["none", "inverse_density", "l1"]

_TASK = {"weight", "normalise", "scale"}
_USES: dict[Method, set[str]] = {
    "linear": {"weight", "normalise"}, "task_arithmetic": _TASK, "ties": {*_TASK, "density"}, "dare_linear": {*_TASK, "density", "rescale"},
    "dare_ties": {*_TASK, "density", "rescale"}, "breadcrumbs": {*_TASK, "density", "gamma"}, "model_stock": set(), "slerp": {"t"},
}  # fmt: skip


class MergeInput(Config):
    """A model that is merged."""

    weight: float | None = None
    """Factor of the model or its delta; model_stock and slerp take none."""
    density: float | None = Field(default=None, gt=0, le=1)
    """None takes the stage's density."""


class MergeOptions(Config):
    """One model of several that were tuned from one base. A field that the method does not use is refused."""

    base: str
    models: dict[str, MergeInput] = Field(min_length=1)
    """Earlier stage -> its weight."""
    method: Method = "dare_ties"
    """The equations stand in merge/methods.py. linear leaves the base out."""
    density: float | None = Field(default=None, gt=0, le=1)
    """Share of each delta that is kept."""
    gamma: float = Field(default=0.01, ge=0, lt=1)
    """Share of each delta's largest entries that breadcrumbs drops."""
    t: float = Field(default=0.5, ge=0, le=1)
    """Where slerp ends between the base (0) and the model (1)."""
    rescale: Literal["inverse_density", "l1"] = "inverse_density"
    """`inverse_density` is the DARE paper's, `l1` mergekit's since February 2025."""
    normalise: bool = False
    """Divide by the sum of the weights; where signs are elected, of those that agree."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the merged delta (lambda in the TIES paper)."""

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> Self:
        uses, fields = _USES[self.method], MergeOptions.model_fields
        strange = [
            name
            for name in ("density", "gamma", "t", "rescale", "normalise", "scale")
            if name not in uses and getattr(self, name) != fields[name].default
        ]
        for name, model in self.models.items():
            strange += [f"models.{name}.{key}" for key in ("weight", "density") if key not in uses and getattr(model, key) is not None]
            if "weight" in uses and model.weight is None:
                raise ValueError(f"{self.method} needs models.{name}.weight")
            if "density" in uses and model.density is None and self.density is None:
                raise ValueError(f"{self.method} needs a density, of the stage or of models.{name}")
        if strange:
            raise ValueError(f"{self.method} does not use {', '.join(strange)}")
        if self.method == "slerp" and len(self.models) != 1:
            raise ValueError("slerp merges the base with one model")
        if self.method == "model_stock" and len(self.models) < 2:
            raise ValueError("model_stock needs two models beside the base")
        return self
