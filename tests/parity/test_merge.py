"""mergekit as the oracle: equal bits where nothing is drawn or the masks are given, equal shares where they are drawn.

mergekit is LGPL: it runs in a venv of its own (make .bench/mergekit/ready) and its source was not read for this.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.merge import arithmetic, sparsify
from merges import HEAD, Weights, drawn, read_model, run_yaml, write_model

REPO = Path(__file__).resolve().parents[2]
PEER = REPO / ".bench/mergekit/bin/python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.is_file(), reason="mergekit is not here: make .bench/mergekit/ready"),
]
SIZES: dict[str, Any] = {"hidden": 24, "mlp": 40, "layers": 3}
NAMES = ("one", "three", "two")  # in the order of the names: addition is not associative, and aloe adds by name
WEIGHTS, DENSITIES = dict(zip(NAMES, (0.7, -0.2, 0.4), strict=True)), dict(zip(NAMES, (0.5, 0.6, 0.8), strict=True))
FILTERED = "[{filter: mlp, value: [0.2, 0.9, 0.4]}, {filter: self_attn, value: 0.6}, {value: 0.3}]"


def yaml(
    root: Path, method: str, density: float | None = None, names: tuple[str, ...] = NAMES, own: str = "", dtypes: str = "dtype: float32", **whole: Any
) -> str:
    """A merge of the models in `root`; density None takes each model's own."""
    lines = [f"merge_method: {method}", dtypes, "models:"]
    for name in names:
        lines.append(f"  - model: {root / name}")
        fields = f"weight: {WEIGHTS[name]}, density: {density or DENSITIES[name]}{own}"
        lines += [f"    parameters: {{{fields}}}"] if method not in ("slerp", "model_stock") else []
    if method == "slerp":
        lines.append(f"  - model: {root / 'base'}")
    if method != "linear":
        lines.append(f"base_model: {root / 'base'}")
    return (
        "\n".join(
            [
                *lines,
                "parameters:",
                *(
                    f"  {key}: {json.dumps(value) if not isinstance(value, str) else value}"
                    for key, value in whole.items() or {"int8_mask": False}.items()
                ),
            ]
        )
        + "\n"
    )


CASES: dict[str, dict[str, Any]] = {
    # density 1: every method that both have
    "linear": {"method": "linear"}, "linear-sum": {"method": "linear", "normalize": False}, "task": {"method": "task_arithmetic", "density": 1.0},
    "task-normalised": {"method": "task_arithmetic", "density": 1.0, "normalize": True, "lambda": 0.7}, "ties": {"method": "ties", "density": 1.0},
    "ties-sum": {"method": "ties", "density": 1.0, "normalize": False, "lambda": 1.3}, "dare_linear": {"method": "dare_linear", "density": 1.0},
    "dare_ties": {"method": "dare_ties", "density": 1.0}, "dare_ties-normalised": {"method": "dare_ties", "density": 1.0, "normalize": True, "int8_mask": True},
    "breadcrumbs": {"method": "breadcrumbs", "density": 1.0},
    # parameters by tensor and by layer
    "gradient": {"method": "task_arithmetic", "density": 1.0, "lambda": "[0.5, 1.5]"}, "task-filters": {"method": "task_arithmetic", "density": 1.0, "lambda": FILTERED},
    # density below 1: what is largest, and what the same masks leave
    "ties-trimmed": {"method": "ties"}, "breadcrumbs-cut": {"method": "breadcrumbs", "own": ", gamma: 0.05"},
    "dare_ties-masked": {"method": "dare_ties", "rescale": False, "inject": True}, "dare_linear-masked": {"method": "dare_linear", "rescale": False, "inject": True},
    "dare_ties-masked-normalised": {"method": "dare_ties", "rescale": False, "normalize": True, "inject": True},
    "bfloat16": {"method": "dare_ties", "density": 1.0, "dtypes": "dtype: float32\nout_dtype: bfloat16"},
}  # fmt: skip
SCALAR: dict[str, dict[str, Any]] = {  # a factor of the whole tensor comes out of its norm
    "model_stock": {"method": "model_stock"}, "slerp": {"method": "slerp", "names": ("one",), "t": 0.3},
    "slerp-filters": {"method": "slerp", "names": ("one",), "t": FILTERED},
}  # fmt: skip
NEAR: dict[str, dict[str, Any]] = {  # the factor of l1 is a quotient of sums, which the two add in another order
    "dare_ties-l1": {"method": "dare_ties", "rescale": True, "inject": True}, "dare_linear-l1": {"method": "dare_linear", "inject": True},
    "ties-l1": {"method": "ties", "rescale": True},
}  # fmt: skip
DRAWN: dict[str, dict[str, Any]] = {
    "drawn": {"method": "dare_linear", "names": ("one",), "rescale": False},
    "drawn-l1": {"method": "dare_linear", "names": ("one",)},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with heads of their own, and what mergekit makes of every case."""
    folder = tmp_path_factory.mktemp("parity")
    base = drawn(0, num_tokens=96, tied=False, **SIZES)
    write_model(folder / "base", base)
    for seed, name in enumerate(NAMES, 1):
        write_model(folder / name, drawn(seed, base))
    jobs = []
    for name, case in {**CASES, **SCALAR, **NEAR, **DRAWN}.items():
        inject = bool(case.get("inject"))
        text = yaml(folder, **{key: value for key, value in case.items() if key != "inject"})
        (folder / f"{name}.yaml").write_text(text)
        jobs.append({"yaml": text, "out": str(folder / f"theirs-{name}"), "inject": inject})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([PEER, Path(__file__).with_name("mergekit_run.py"), folder / "jobs.json"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}
    return folder


def given_mask(self: sparsify.Random, delta: Any, start: int, work: Any) -> Any:
    places = np.arange(start, start + delta.size, dtype=np.uint64)
    density = self.given_density  # type: ignore[attr-defined]
    return ((places * np.uint64(2654435761) + np.uint64(density * 1e4)) % np.uint64(2**32)).astype(np.float64) < density * 2**32


def both(root: Path, name: str, inject: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Weights, Weights]:
    if inject:
        begin = sparsify.Random.__init__

        def remember(self: Any, density: float, seed: int) -> None:
            begin(self, density, seed)
            self.given_density = density

        monkeypatch.setattr(sparsify.Random, "__init__", remember)
        monkeypatch.setattr(sparsify.Random, "mask", given_mask)
    ours = read_model(run_yaml((root / f"{name}.yaml").read_text(), root, f"ours-{name}", chunk=8192))
    theirs = read_model(root / f"theirs-{name}")
    assert set(ours) == set(theirs) and HEAD in ours
    return ours, theirs


@pytest.mark.parametrize("name", CASES)
def test_equal_bit_for_bit(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both(root, name, bool(CASES[name].get("inject")), monkeypatch)
    differing = {tensor: int(np.count_nonzero(ours[tensor] != theirs[tensor])) for tensor in ours}
    assert not any(differing.values()), {tensor: count for tensor, count in differing.items() if count}


def neighbours(value: float, steps: int = 8) -> list[np.float32]:
    """The float32 numbers around this one."""
    bits = int(np.float32(value).view(np.int32))
    return [np.int32(bits + step).view(np.float32) for step in sorted(range(-steps, steps + 1), key=abs)]


@pytest.mark.parametrize("name", SCALAR)
def test_equal_bit_for_bit_for_a_factor_of_the_tensor_that_differs_in_its_last_bits(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # mergekit adds norms and products in float32, in an order of its own; aloe exactly. The factors then differ by a few units of
    # 2^-24, and everything after them is equal bit for bit.
    found: dict[str, Any] = {}
    for function in ("stock_ratio", "slerp_shares"):
        plain = getattr(arithmetic, function)
        monkeypatch.setattr(arithmetic, function, lambda *args, plain=plain: found.setdefault("all", []).append(plain(*args)) or found["all"][-1])
    ours, theirs = both(root, name, False, monkeypatch)
    base, models = read_model(root / "base"), [read_model(root / model) for model in NAMES]
    for tensor, factor in zip(sorted(ours), found["all"], strict=True):
        start, first = base[tensor], models[0][tensor]
        if name == "model_stock":
            mean = (first + models[1][tensor] + models[2][tensor]) / np.float32(3)
            candidates = (
                mean * ratio + start * (np.float32(1) - ratio) for ratio in neighbours(factor, 5000)
            )  # near zero it is a small difference of large sums
        else:
            candidates = (start * one + first * other for one in neighbours(factor[0]) for other in neighbours(factor[1]))
        assert any(np.array_equal(candidate, theirs[tensor]) for candidate in candidates), tensor
        np.testing.assert_allclose(ours[tensor], theirs[tensor], rtol=0, atol=1e-6 * float(np.abs(theirs[tensor]).max()))


@pytest.mark.parametrize("name", NEAR)
def test_l1_differs_by_the_rounding_of_its_factor_alone(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both(root, name, bool(NEAR[name].get("inject")), monkeypatch)
    for tensor, values in ours.items():
        np.testing.assert_allclose(values, theirs[tensor], rtol=0, atol=4e-7 * float(np.abs(values).max()), err_msg=tensor)


@pytest.mark.parametrize("name", DRAWN)
def test_masks_have_the_density_within_three_sigma_on_both_sides(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both(root, name, False, monkeypatch)
    base = read_model(root / "base")
    density, size = DENSITIES["one"], sum(values.size for values in base.values())
    for merged in (ours, theirs):
        kept = sum(np.count_nonzero(merged[tensor] != values) for tensor, values in base.items())
        assert abs(kept - density * size) < 3 * np.sqrt(size * density * (1 - density))
    norms = [np.sqrt(sum(np.square(merged[tensor] - values, dtype=np.float64).sum() for tensor, values in base.items())) for merged in (ours, theirs)]
    assert norms[0] / norms[1] == pytest.approx(1, abs=0.03)
