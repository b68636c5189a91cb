"""Memory of one device at the peak of a training step, by part: a pure function of shape, options and machine.

Counted for this package's own loop: fp32 masters, gradients and moments; logits in chunks; packs without padding. What a layer keeps
for its backward pass is listed tensor by tensor in `layer_bytes` (after Korthikanti et al. 2022, section 4.1, for a Llama layer).
"""

from __future__ import annotations

from typing import NamedTuple

from aloe.core.config import Machine
from aloe.models.architecture import Architecture
from aloe.train.options import LoraOptions, TrainOptions

LOGITS_CHUNK = 512
"""Positions whose logits exist at one time; models/attention.py."""
RUNTIME_GB = {"cpu": 0.5, "gpu": 1.0}
"""Interpreter and libraries, or the CUDA context."""
NF4_BYTES = 0.53
"""A frozen weight in 4 bits, with a scale for every 64 (Dettmers et al. 2023, section 3)."""
ZERO3_LIVE, ZERO3_BUCKET = 1e9, 5e8
"""Parameters that DeepSpeed keeps gathered, and gradients in its reduce bucket: its defaults."""


class Memory(NamedTuple):
    """GB (10^9 bytes) on one device."""

    weights: float
    gradients: float
    moments: float
    activations: float
    logits: float
    buffers: float
    """Gathered layers, unsharded gradients, the process itself."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self)


def trainable_parameters(shape: Architecture, lora: LoraOptions | None) -> int:
    """What gradients and moments are kept for."""
    if lora is None:
        return shape.parameters
    return shape.layers * sum(lora.rank * sum(shape.projections[name]) for name in _targets(shape, lora))


def _targets(shape: Architecture, lora: LoraOptions) -> tuple[str, ...]:
    return tuple(shape.projections) if lora.targets == "all-linear" else tuple(name for name in lora.targets if name in shape.projections)


def training_memory(shape: Architecture, options: TrainOptions, machine: Machine, *, tokens: float, supervised: float, accumulates: bool) -> Memory:
    """Of a micro-batch of `tokens`, `supervised` of them; `accumulates` where a step has several micro-batches.

    Two moments compete: the backward pass begins (all activations, and the gradients of earlier micro-batches), or it ends (all
    gradients, in bf16 on one process also their compute copies). The larger one is returned.
    """
    width = 2 if options.dtype == "bf16" else 4
    weights, gradients, moments, transient = _states(shape, options, machine, width)
    kept, recomputed = _activations(shape, options, machine, tokens, width)
    logits = _logits(shape, min(supervised, LOGITS_CHUNK), width)
    # Gradients inside the layer that goes back first: of the MLP, or of a norm, which computes in fp32. The logits are gone by then.
    recomputed += tokens * max((2 * shape.intermediate + shape.hidden) * width, 16 * shape.hidden)
    buffers = 1e9 * RUNTIME_GB["cpu" if machine.device == "cpu" else "gpu"] + _gathered(shape, machine, width)
    begins = (weights, gradients if accumulates else 0.0, moments, kept + max(0.0, recomputed - logits), logits, buffers)
    ends = (weights, gradients + transient, moments, recomputed, 0.0, buffers)
    return Memory(*(part / 1e9 for part in max(begins, ends, key=sum)))


def layer_bytes(shape: Architecture, width: int) -> float:
    """Bytes a token that one layer keeps for its backward pass, `width` bytes a number."""
    # A norm computes in fp32: its input (the residual itself in fp32, a copy in bf16), the normed and the scaled input of the linear maps.
    norms = 2 * shape.hidden * (4 + 2 * width)
    attention = width * (3 * shape.query_size + 2 * shape.kv_size)  # query, key, value, output of a document, of all documents
    mlp = width * 4 * shape.intermediate  # gate, its activation, up, their product
    return norms + attention + mlp


def shards(machine: Machine) -> int:
    """Over how many ranks states are split."""
    if machine.engine == "one":
        return 1
    return machine.devices if machine.shard == "full" else machine.ranks_per_node


def _states(shape: Architecture, options: TrainOptions, machine: Machine, width: int) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients and moments, and of the gradients that exist only while one backward pass runs."""
    trained, split = trainable_parameters(shape, options.lora), shards(machine)
    frozen = (shape.parameters if options.lora else 0) * (NF4_BYTES if options.lora and options.lora.quantise else width)
    copies = width if machine.engine == "zero3" or (machine.engine == "one" and width == 2) else 0  # of the masters, to compute with
    gradients = (width + 4) if machine.engine == "zero3" else 4
    transient = trained * width if machine.engine == "one" and width == 2 else 0
    return (frozen + trained * (4 + copies)) / split, trained * gradients / split, trained * 8 / split, transient


def _activations(shape: Architecture, options: TrainOptions, machine: Machine, tokens: float, width: int) -> tuple[float, float]:
    """Bytes kept from the forward pass, and of the one layer that is recomputed."""
    layer = layer_bytes(shape, width)
    if options.lora:
        layer += width * options.lora.rank * len(_targets(shape, options.lora))
    ends = 2 * shape.hidden * width  # embedding and last norm
    if machine.gradient_checkpointing:
        return tokens * (shape.layers * shape.hidden * width + ends), tokens * layer
    return tokens * (shape.layers * layer + ends), 0.0


def _logits(shape: Architecture, positions: float, width: int) -> float:
    """A chunk's logits with the gradients of log-softmax in fp32, and the chunk's contribution to the head's gradient."""
    numbers = positions * shape.vocabulary
    return numbers * (16 if width == 4 else 18) + shape.embedding * width


def _gathered(shape: Architecture, machine: Machine, width: int) -> float:
    """What is whole on every rank for a while."""
    if machine.engine == "one":
        return 0.0
    if machine.engine == "zero3":
        return width * (min(shape.parameters, ZERO3_LIVE) + min(shape.parameters, ZERO3_BUCKET))
    ends = shape.parameters - shape.layers * shape.layer_parameters  # embedding and head are one group that stays whole
    return 2 * ends * width + shape.layer_parameters * (3 * width + 4)  # two layers, one layer's gradients and their fp32 copy
