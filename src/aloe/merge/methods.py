"""The merge methods, each a few lines of arithmetic on one tensor: given whole, or chunk by chunk by the executor.

A method looks at every chunk as long as it is `pending`, and then combines chunks one by one. The functions at the end do both on
whole arrays; every step rounds to float32 in the order given, as the peer mergekit does it, so that equal inputs give equal bits.

Sources: linear, Wortsman et al. 2022 (Model soups, eq. 1); task_arithmetic, Ilharco et al. 2022 (section 2); ties, Yadav et al. 2023
(section 3, algorithm 1); dare_linear and dare_ties, Yu et al. 2023 (eq. 2), the rest as in task_arithmetic and ties; breadcrumbs,
Davari and Belilovsky 2023 (section 3); model_stock, Jang et al. 2024 (eq. 7); slerp, Shoemake 1985.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from aloe.merge import arithmetic
from aloe.merge.options import Method, Rescale
from aloe.merge.sparsify import Random, Ranks, Selection, Sparsifier, Sums
from aloe.merge.tensors import Array, Source, Work


class Chunk:
    """Elements start .. start + size of one tensor in all models, read when asked for."""

    def __init__(self, base: Source | None, models: Sequence[Source], start: int, size: int, work: Work) -> None:
        self._base, self._models = base, models
        self.start, self.size, self.work = start, size, work
        self._origin: Array | None = None

    def base(self) -> Array:
        """The base's elements; not to be overwritten."""
        if self._origin is None:
            assert self._base is not None, "the method needs a base"
            self._origin = self._read(self._base, "base")
        return self._origin

    def model(self, number: int) -> Array:
        """A model's elements; not to be overwritten, and valid until its model or delta is asked for again."""
        return self._read(self._models[number], f"model {number}")

    def delta(self, number: int) -> Array:
        """Model minus base; may be overwritten."""
        assert self._base is not None, "the method needs a base"
        out: Array = self.work(f"model {number}", self.size)
        if self._models[number].delta_into(self._base, self.start, out, self.work):
            return out
        return np.subtract(self.model(number), self.base(), out=out)

    def _read(self, source: Source, name: str) -> Array:
        if (values := source.view(self.start, self.size)) is not None:
            return values
        out: Array = self.work(name, self.size)
        source.read_into(self.start, out, self.work)
        return out


class Tally:
    """What a merge did to one tensor, filled from any thread: of each model the norm of its whole delta and the entries that stayed."""

    def __init__(self, num_models: int) -> None:
        self.squares = [Sums() for _ in range(num_models)]
        self.kept = [0] * num_models
        self.conflicts = 0
        """Entries where deltas that stayed pull in different directions."""
        self._lock = Lock()

    def delta(self, number: int, delta: Array) -> None:
        """A chunk of a model's whole delta."""
        self.squares[number].add(arithmetic.block_dots(delta, delta))

    def count(self, kept: Sequence[int], conflicts: int) -> None:
        """What stayed of each delta in a chunk."""
        with self._lock:
            self.kept = [a + b for a, b in zip(self.kept, kept, strict=True)]
            self.conflicts += conflicts


class TensorMerge:
    """The merge of one tensor. `observe` and `combine` may be called from any thread for any chunk."""

    pending = False

    def observe(self, chunk: Chunk) -> None:
        """Look at a chunk."""

    def settle(self) -> None:
        """Every chunk was looked at."""

    def combine(self, chunk: Chunk, tally: Tally) -> Array:
        """The merged elements."""
        raise NotImplementedError


class Linear(TensorMerge):
    """Weighted sum of the models, divided by the sum of the weights where `normalise`."""

    def __init__(self, weights: Sequence[float], normalise: bool) -> None:
        self.weights, self.normalise = [np.float32(w) for w in weights], normalise

    def combine(self, chunk: Chunk, tally: Tally) -> Array:
        total, product = chunk.work("total", chunk.size), chunk.work("product", chunk.size, "f8")
        np.multiply(chunk.model(0), self.weights[0], out=total)
        for number, weight in enumerate(self.weights[1:], 1):
            # In float64 the product is exact, so that each model costs one rounding: a fused multiply-add.
            np.multiply(chunk.model(number), np.float64(weight), out=product)
            np.add(product, total, out=product)
            np.copyto(total, product, casting="same_kind")
        return np.divide(total, arithmetic.total(self.weights), out=total) if self.normalise else total


class Deltas(TensorMerge):
    """base + scale * sum of weight * sparsified delta; with `elect` of every entry only what agrees with the elected sign."""

    def __init__(self, sparsifiers: Sequence[Sparsifier], weights: Sequence[float], *, elect: bool, normalise: bool, scale: float) -> None:
        self.sparsifiers, self.weights = sparsifiers, [np.float32(w) for w in weights]
        self.elect, self.normalise, self.scale = elect, normalise, np.float32(scale)

    @property
    def pending(self) -> bool:  # type: ignore[override]
        return any(s.pending for s in self.sparsifiers)

    def observe(self, chunk: Chunk) -> None:
        for number, sparsifier in enumerate(self.sparsifiers):
            if sparsifier.pending:
                sparsifier.observe(chunk.delta(number), chunk.start, chunk.work)

    def settle(self) -> None:
        for sparsifier in self.sparsifiers:
            if sparsifier.pending:
                sparsifier.settle()

    def combine(self, chunk: Chunk, tally: Tally) -> Array:
        weighted, kept = [], []
        for number, (sparsifier, weight) in enumerate(zip(self.sparsifiers, self.weights, strict=True)):
            delta = chunk.delta(number)
            tally.delta(number, delta)
            kept.append(sparsifier.apply(delta, chunk.start, float(weight), chunk.work))
            weighted.append(delta)
        if not weighted:
            return np.positive(chunk.base(), out=chunk.work("total", chunk.size))
        tally.count(kept, arithmetic.sign_conflicts(weighted, chunk.work))
        if self.elect:
            total = arithmetic.agreeing_sum(weighted, self.weights, self.normalise, chunk.work)
        else:
            total = arithmetic.weighted_sum(weighted, chunk.work)
            if self.normalise and (share := arithmetic.total(self.weights)) != 0:
                np.divide(total, share, out=total)
        if self.scale != 1:
            np.multiply(total, self.scale, out=total)
        return np.add(chunk.base(), total, out=total)


class ModelStock(TensorMerge):
    """t * mean of the models + (1 - t) * base, with t = N cos / (1 + (N - 1) cos) and cos the mean cosine between two deltas."""

    def __init__(self, number: int) -> None:
        self.pending = True
        self._dots = {(i, j): Sums() for i in range(number) for j in range(i + 1)}
        self._number, self._ratio = number, np.float32(0)

    def observe(self, chunk: Chunk) -> None:
        deltas = [chunk.delta(i) for i in range(self._number)]
        for (i, j), sums in self._dots.items():
            sums.add(arithmetic.exact_dots(deltas[i], deltas[j]))

    def settle(self) -> None:
        dots = {pair: np.float32(sums.total()) for pair, sums in self._dots.items()}
        self._ratio, self.pending = arithmetic.stock_ratio(dots, self._number), False

    def combine(self, chunk: Chunk, tally: Tally) -> Array:
        total: Array = chunk.work("total", chunk.size)
        deltas = []
        for number in range(self._number):
            model = chunk.model(number)
            np.copyto(total, model) if number == 0 else np.add(total, model, out=total)
            deltas.append(np.subtract(model, chunk.base(), out=chunk.work(f"delta {number}", chunk.size)))
            tally.delta(number, deltas[-1])
        tally.count([chunk.size] * self._number, arithmetic.sign_conflicts(deltas, chunk.work))
        np.divide(total, np.float32(self._number), out=total)
        np.multiply(total, self._ratio, out=total)
        rest: Array = chunk.work("rest", chunk.size)
        np.multiply(chunk.base(), np.float32(1) - self._ratio, out=rest)
        return np.add(total, rest, out=total)


class Slerp(TensorMerge):
    """From the base (t = 0) to the model (t = 1) along the arc between them; along the line where they are nearly parallel."""

    def __init__(self, t: float) -> None:
        self.pending = True
        self._t, self._dots = t, [Sums(), Sums(), Sums()]
        self._shares = (np.float32(1), np.float32(0))

    def observe(self, chunk: Chunk) -> None:
        base, model = chunk.base(), chunk.model(0)
        for sums, (a, b) in zip(self._dots, ((base, base), (model, model), (base, model)), strict=True):
            sums.add(arithmetic.exact_dots(a, b))

    def settle(self) -> None:
        base, model, dot = (sums.total() for sums in self._dots)
        self._shares, self.pending = arithmetic.slerp_shares(base, model, dot, self._t), False

    def combine(self, chunk: Chunk, tally: Tally) -> Array:
        total: Array = chunk.work("total", chunk.size)
        other: Array = chunk.work("other", chunk.size)
        tally.delta(0, np.subtract(chunk.model(0), chunk.base(), out=other))
        tally.count([chunk.size], 0)
        np.multiply(chunk.model(0), self._shares[1], out=total)
        np.multiply(chunk.base(), self._shares[0], out=other)
        return np.add(other, total, out=total)


@dataclass(frozen=True)
class Part:
    """A model's part in the merge of one tensor."""

    weight: float = 1.0
    density: float = 1.0
    gamma: float = 0.0
    """Share of the largest entries that breadcrumbs drops."""
    seed: int = 0
    """Of the DARE mask."""


@dataclass(frozen=True)
class Options:
    """What holds for all models of a merge."""

    normalise: bool = False
    rescale: Rescale = "none"
    scale: float = 1.0
    t: float = 0.0


def tensor_merge(method: Method, parts: Sequence[Part], size: int, options: Options) -> TensorMerge:
    """The merge of one tensor of `size` entries."""
    weights = [part.weight for part in parts]
    if method == "linear":
        return Linear(weights, options.normalise)
    if method == "model_stock":
        return ModelStock(len(parts))
    if method == "slerp":
        return Slerp(options.t)
    sparsifiers = [Sparsifier(_selection(method, part, size), part.density, options.rescale) for part in parts]
    return Deltas(sparsifiers, weights, elect=method in ("ties", "dare_ties"), normalise=options.normalise, scale=options.scale)


def _selection(method: Method, part: Part, size: int) -> Selection:
    if method == "task_arithmetic" or part.density >= 1:
        return Selection()
    if method.startswith("dare"):
        return Random(part.density, part.seed)
    keep = int(part.density * size)
    if keep == 0:
        return Random(0.0, 0)
    # Where more than the rest would be cut off at the top, the rest is (as in mergekit: the density is always met).
    top = min(int(part.gamma * size), size - keep) if method == "breadcrumbs" else 0
    return Ranks(top, top + keep, size)


class _Given(Source):
    def __init__(self, values: Array) -> None:
        self._values = values.reshape(-1)

    def read_into(self, start: int, out: Array, work: Work) -> None:
        out[:] = self._values[start : start + out.size]


def merge_arrays(method: Method, base: Array | None, models: Sequence[Array], parts: Sequence[Part], options: Options) -> Array:
    """A method on whole arrays of one shape, float32; the arguments are left alone."""
    assert len(models) == len(parts)
    shape, size = models[0].shape, models[0].size
    merge, work = tensor_merge(method, parts, size, options), Work()
    chunk = Chunk(None if base is None else _Given(base), [_Given(model) for model in models], 0, size, work)
    while merge.pending:
        merge.observe(chunk)
        merge.settle()
    return merge.combine(chunk, Tally(len(models))).reshape(shape)


def linear(models: Sequence[Array], weights: Sequence[float], *, normalise: bool = True) -> Array:
    """sum of w_i x_i, divided by sum of w_i where `normalise` (Model soups, eq. 1, with weights)."""
    return merge_arrays("linear", None, models, [Part(w) for w in weights], Options(normalise=normalise))


def task_arithmetic(base: Array, models: Sequence[Array], weights: Sequence[float], *, normalise: bool = False, scale: float = 1.0) -> Array:
    """base + scale * sum of w_i (x_i - base) (Ilharco et al. 2022, section 2: addition of task vectors)."""
    return merge_arrays("task_arithmetic", base, models, [Part(w) for w in weights], Options(normalise=normalise, scale=scale))


def ties(
    base: Array, models: Sequence[Array], weights: Sequence[float], densities: Sequence[float], *, normalise: bool = True, scale: float = 1.0
) -> Array:
    """Trim each delta to its largest entries, elect signs, add or average what agrees (Yadav et al. 2023, algorithm 1)."""
    parts = [Part(w, d) for w, d in zip(weights, densities, strict=True)]
    return merge_arrays("ties", base, models, parts, Options(normalise=normalise, scale=scale))


def dare_linear(
    base: Array, models: Sequence[Array], weights: Sequence[float], densities: Sequence[float], seeds: Sequence[int], *,
    rescale: Rescale = "inverse_density", normalise: bool = False, scale: float = 1.0,
) -> Array:  # fmt: skip
    """Drop entries of each delta at random and rescale the rest (Yu et al. 2023, eq. 2), then task arithmetic."""
    parts = [Part(w, d, seed=s) for w, d, s in zip(weights, densities, seeds, strict=True)]
    return merge_arrays("dare_linear", base, models, parts, Options(normalise, rescale, scale))


def dare_ties(
    base: Array, models: Sequence[Array], weights: Sequence[float], densities: Sequence[float], seeds: Sequence[int], *,
    rescale: Rescale = "inverse_density", normalise: bool = False, scale: float = 1.0,
) -> Array:  # fmt: skip
    """Drop entries of each delta at random and rescale the rest (Yu et al. 2023, eq. 2), then elect signs and add what agrees."""
    parts = [Part(w, d, seed=s) for w, d, s in zip(weights, densities, seeds, strict=True)]
    return merge_arrays("dare_ties", base, models, parts, Options(normalise, rescale, scale))


def breadcrumbs(
    base: Array, models: Sequence[Array], weights: Sequence[float], densities: Sequence[float], gammas: Sequence[float], *,
    normalise: bool = False, scale: float = 1.0,
) -> Array:  # fmt: skip
    """Drop each delta's largest (share gamma) and smallest entries, keep the share `density` (Davari and Belilovsky 2023, section 3)."""
    parts = [Part(w, d, g) for w, d, g in zip(weights, densities, gammas, strict=True)]
    return merge_arrays("breadcrumbs", base, models, parts, Options(normalise=normalise, scale=scale))


def model_stock(base: Array, models: Sequence[Array]) -> Array:
    """t * mean + (1 - t) * base with t = N cos / (1 + (N - 1) cos) (Jang et al. 2024, eq. 7), cos the mean over pairs of deltas."""
    return merge_arrays("model_stock", base, models, [Part()] * len(models), Options())


def slerp(base: Array, model: Array, t: float) -> Array:
    """The point t of the arc from base to model (Shoemake 1985), or of the line where they are nearly parallel."""
    return merge_arrays("slerp", base, [model], [Part()], Options(t=t))
