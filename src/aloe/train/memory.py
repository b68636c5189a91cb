"""Memory of one device at the peak of a training step, by part: a pure function of shape, options and machine.

Counted for this package's own loop: fp32 masters, gradients and moments; logits in chunks; packs without padding. What a layer keeps
for its backward pass is listed tensor by tensor in `layer_bytes` (after Korthikanti et al. 2022, section 4.1, for a layer of models/lean.py).
"""

from __future__ import annotations

from typing import NamedTuple

from aloe.core.config import Machine
from aloe.models.architecture import Architecture
from aloe.train.options import LoraOptions, TrainOptions

LOGITS_CHUNK = 256
"""Positions whose logits exist at one time; models/head.py."""
ATTENTION_TILE = 256
"""Queries that the CPU's attention computes at one time; models/attention.py."""
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

    Five moments compete: the logits (all activations, and the gradients of earlier micro-batches), the backward pass of the last layer and
    that of the last whole one (still all activations before it), the first layer's (all gradients, in bf16 on one process also that of the
    embedding's compute copy) and the step. The largest one is returned.
    """
    width = 2 if options.dtype == "bf16" else 4
    weights, gradients, moments, transient = _states(shape, options, machine, width)
    layer = layer_bytes(shape, width, options.lora)
    ends = 2 * shape.hidden * width  # what the last norm reads and makes
    narrow = machine.device == "cpu"  # models/lean.py: of the last layer supervised tokens alone have an output
    kept = tokens * (shape.layers - narrow) * (shape.hidden * width if machine.gradient_checkpointing else layer)
    last = behind_last = 0.0
    if narrow:
        read = _read_bytes(shape, width, options.lora)
        last = tokens * shape.hidden * width if machine.gradient_checkpointing else tokens * read + supervised * (layer - read)
        # Its keys and values with their gradients, in fp32, and what goes on to the layer before: by residual and by norm.
        behind_last = tokens * (read + shape.kv_size * (16 if width == 2 else 8) + 2 * shape.hidden * width)
    again = tokens * layer if machine.gradient_checkpointing else 0.0
    inside = tokens * _inside(shape, width, machine)
    earlier = gradients if accumulates else 0.0
    head = shape.embedding * width if not options.lora and (width == 2 or not accumulates) else 0.0
    buffers = 1e9 * RUNTIME_GB["cpu" if machine.device == "cpu" else "gpu"] + _gathered(shape, machine, width)
    buffers += 2 * shape.head_size * width * tokens  # the angles of every position
    if machine.device == "cpu":
        buffers += ATTENTION_TILE * min(tokens, options.max_length) * 4  # one mask
    logits = _logits(shape, options, min(supervised, LOGITS_CHUNK), width)
    found = (
        (weights, earlier, moments, kept + last + (supervised if narrow else tokens) * ends, logits, buffers),
        (weights, earlier + head, moments, kept + max(again + inside, behind_last), 0.0, buffers),
        (weights, gradients + transient, moments, tokens * layer + inside, 0.0, buffers),
        (weights, gradients, moments, 0.0, 0.0, buffers),
    )
    return Memory(*(part / 1e9 for part in max(found, key=sum)))


def layer_bytes(shape: Architecture, width: int, lora: LoraOptions | None = None) -> float:
    """Bytes a token that one layer keeps for its backward pass, `width` bytes a number."""
    targets = set(_targets(shape, lora)) if lora else set(shape.projections)
    h, q, kv, i = shape.hidden, shape.query_size, shape.kv_size, shape.intermediate
    numbers = 2 * h  # what the two norms read
    numbers += h * bool(targets & {"q_proj", "k_proj", "v_proj"}) + h * bool(targets & {"gate_proj", "up_proj"})  # what they make
    numbers += 2 * q + 2 * kv  # rotated query and key, value, output
    numbers += 2 * i  # gate and up
    if lora:
        # An adapter keeps its narrow product; on down_proj also its input, and the steps to it, which lean.py would compute again.
        numbers += lora.rank * len(targets) + 2 * i * ("down_proj" in targets)
    return numbers * width + 4 * (shape.heads + 2)  # in fp32: what softmax and norms divide by


def _read_bytes(shape: Architecture, width: int, lora: LoraOptions | None) -> float:
    """Of `layer_bytes` what every token of a layer needs whose output is asked for nowhere: the way to its key and value."""
    targets = set(_targets(shape, lora)) if lora else set(shape.projections)
    numbers = shape.hidden * (1 + bool(targets & {"k_proj", "v_proj"})) + 2 * shape.kv_size
    return (numbers + (lora.rank * len(targets & {"k_proj", "v_proj"}) if lora else 0)) * width + 4


def _inside(shape: Architecture, width: int, machine: Machine) -> float:
    """Bytes a token of what lives only while the backward pass is at the widest place of a layer."""
    mlp = width * (3 * shape.intermediate + shape.hidden)
    if machine.device != "cpu" or width == 4:
        return mlp
    # bf16 attention is computed in fp32 on a CPU: query, output and their gradients, key, value and theirs; gate and up are freed by then.
    attention = 16 * (shape.query_size + shape.kv_size) - width * 2 * shape.intermediate
    return max(mlp, attention)


def shards(machine: Machine) -> int:
    """Over how many ranks states are split."""
    if machine.engine == "one":
        return 1
    return machine.devices if machine.shard == "full" else machine.ranks_per_node


def _states(shape: Architecture, options: TrainOptions, machine: Machine, width: int) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients and moments, and of gradients on their way into the masters'."""
    trained, split = trainable_parameters(shape, options.lora), shards(machine)
    frozen = (shape.parameters if options.lora else 0) * (NF4_BYTES if options.lora and options.lora.quantise else width)
    copied = trained * (machine.engine == "zero3" or (machine.engine == "one" and width == 2))  # of the masters, to compute with
    if machine.engine == "one" and machine.gradient_checkpointing and not options.lora:
        copied = min(copied, trained - (shape.layers - 1) * shape.layer_parameters)  # one layer's at a time: layer_copy.py
    gradients = (width + 4) if machine.engine == "zero3" else 4
    transient = shape.embedding * width if machine.engine == "one" and width == 2 and not options.lora else 0
    return (frozen + trained * 4 + copied * width) / split, trained * gradients / split, trained * 8 / split, transient


def _logits(shape: Architecture, options: TrainOptions, positions: float, width: int) -> float:
    """A chunk's logits and their exponentials in fp32; on the way back, where the head is trained, its whole gradient in fp32."""
    numbers = positions * shape.vocabulary
    if options.lora:
        return 8 * numbers
    return max(8 * numbers, (4 if width == 4 else 6) * numbers + 4 * shape.embedding, 0 if width == 4 else 6 * shape.embedding)


def _gathered(shape: Architecture, machine: Machine, width: int) -> float:
    """What is whole on every rank for a while."""
    if machine.engine == "one":
        return 0.0
    if machine.engine == "zero3":
        return width * (min(shape.parameters, ZERO3_LIVE) + min(shape.parameters, ZERO3_BUCKET))
    ends = shape.parameters - shape.layers * shape.layer_parameters  # embedding and head are one group that stays whole
    return 2 * ends * width + shape.layer_parameters * (3 * width + 4)  # two layers, one layer's gradients and their fp32 copy
