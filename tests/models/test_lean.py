"""Lean layers against the layers of transformers that they replace: outputs, gradients, memory kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from aloe.models.attention import Segment, hidden_states  # noqa: E402
from aloe.models.head import token_logps  # noqa: E402
from aloe.models.lean import LEAN, GatedLinear, LeanMlp, lean  # noqa: E402

SHAPE = {"vocab_size": 90, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
SEGMENTS = [Segment(0, 6), Segment(6, 40, ((0, 6),)), Segment(40, 75, ((0, 6),))]
POSITIONS = torch.cat([torch.arange(40), torch.arange(6, 41)])
IDS = torch.randint(0, 90, (75,), generator=torch.Generator().manual_seed(1))


def made(kind: str) -> Any:
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)  # norms that are not 1, biases that are not 0
    return model.train()


def loss_and_gradients(model: Any) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    hidden = hidden_states(model, IDS, POSITIONS, SEGMENTS)
    loss = (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9))).mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.base_model.named_parameters()}


def assert_close(one: dict[str, Any], other: dict[str, Any], most: float) -> None:
    assert one.keys() == other.keys()
    for name, expected in other.items():
        assert float((one[name] - expected).norm() / expected.norm()) < most, name


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_every_layer_is_replaced_and_nothing_changes_but_rounding(kind: str) -> None:
    model = made(kind)
    names = [name for name, _ in model.named_parameters()]
    loss, grads = loss_and_gradients(model)
    lean(model)
    assert sum(type(m) in LEAN.values() for m in model.modules()) == 4 * 3 + 1  # 2 norms, attention, MLP a layer; the last norm
    assert [name for name, _ in model.named_parameters()] == names
    after, lean_grads = loss_and_gradients(model)
    assert float(after) == pytest.approx(float(loss), abs=1e-7)
    assert_close(lean_grads, grads, 1e-5)


PICKS = torch.tensor([5, 38, 39, 39, 5, 41, 60, 61, 62, 74])  # one may be asked for twice, as where two answers begin


def picked(model: Any, *, by_layer: bool) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    hidden = hidden_states(model, IDS, POSITIONS, SEGMENTS, PICKS) if by_layer else hidden_states(model, IDS, POSITIONS, SEGMENTS)[PICKS]
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9))).mean().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.base_model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_last_layer_computes_the_picked_tokens_alone_and_the_same(kind: str, checkpointing: bool) -> None:
    model = lean(made(kind))
    expected, grads = picked(model, by_layer=False)
    widths: list[int] = []
    for layer in model.base_model.layers:
        layer.mlp.register_forward_hook(lambda module, given, out: widths.append(given[0].shape[1]))
    if checkpointing:
        model.activation_checkpointing_enable()
    found, narrow_grads = picked(model, by_layer=True)
    assert widths[:3] == [75, 75, len(set(PICKS.tolist()))]
    torch.testing.assert_close(found, expected)
    assert_close(narrow_grads, grads, 1e-5)


def test_a_segment_without_a_pick_and_layers_that_stayed_give_the_same_too() -> None:
    some = torch.tensor([45, 50])
    plain, ours = made("llama"), lean(made("llama"))
    torch.testing.assert_close(*(hidden_states(model, IDS, POSITIONS, SEGMENTS, some) for model in (ours, plain)))


def test_bfloat16_stays_as_close_to_float32_as_transformers_does() -> None:
    exact = loss_and_gradients(made("llama"))[1]
    plain = loss_and_gradients(made("llama").bfloat16())[1]
    ours = loss_and_gradients(lean(made("llama").bfloat16()))[1]
    errors = [sum(float((grads[name].float() - expected).norm() / expected.norm()) for name, expected in exact.items()) for grads in (ours, plain)]
    assert errors[0] < 1.1 * errors[1]


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = lean(made("llama"))
    grads = loss_and_gradients(model)[1]
    model.activation_checkpointing_enable()
    assert_close(loss_and_gradients(model)[1], grads, 1e-6)


def kept(model: Any) -> int:
    """Bytes that the backward pass holds on to, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_states(model, IDS, POSITIONS, SEGMENTS)
    return sum(storages.values()) - sum(p.nbytes for p in model.base_model.parameters())


def test_less_is_kept_for_the_backward_pass() -> None:
    model = made("llama")
    before = kept(model)
    assert kept(lean(model)) < 0.65 * before


def test_generation_is_what_it_was(toy_folder: Path) -> None:
    model = made("llama").eval()
    prompt = IDS[None, :9]
    expected = model.generate(prompt, max_new_tokens=5, do_sample=False)
    assert torch.equal(lean(model).generate(prompt, max_new_tokens=5, do_sample=False), expected)


class Adapter(nn.Module):
    """Wraps a layer as peft does: one input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x) * 2


@pytest.mark.parametrize("order", [lambda model, wrap: lean(wrap(model)), lambda model, wrap: wrap(lean(model))], ids=["before", "after"])
def test_an_adapter_around_the_last_matrix_of_the_mlp_works_put_on_before_or_after(order: Callable[..., Any]) -> None:
    def wrap(model: Any) -> Any:
        for layer in model.base_model.layers:
            layer.mlp.down_proj = Adapter(layer.mlp.down_proj)
        return model

    loss, grads = loss_and_gradients(wrap(made("llama")))
    ours, lean_grads = loss_and_gradients(order(made("llama"), wrap))
    assert float(ours) == pytest.approx(float(loss), abs=1e-7)
    assert_close(lean_grads, grads, 1e-5)


def test_a_tied_embedding_gets_the_sum_of_both_gradients_dense_also_when_accumulated() -> None:
    """The embedding's own part is sparse; it must never reach an optimiser as such."""
    grads = []
    for change in (lambda model: model, lean):
        torch.manual_seed(3)
        model = change(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, pad_token_id=2)))
        for _ in range(2):
            hidden = hidden_states(model, IDS, POSITIONS, SEGMENTS)
            token_logps(hidden[::3], model.get_output_embeddings().weight, IDS[::3]).sum().backward()
            assert model.get_input_embeddings().weight.grad.layout is torch.strided
        grads.append(model.get_input_embeddings().weight.grad)
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < 1e-6


def test_an_mlp_with_another_activation_stays_as_it_is() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu"))
    lean(model)
    assert not any(isinstance(m, LeanMlp | GatedLinear) for m in model.modules())


def test_copies_and_saved_folders_are_plain_models(tmp_path: Path) -> None:
    model = lean(made("llama"))
    twin = copy.deepcopy(model)
    twin.base_model.layers[0].mlp.gate_proj.weight.data.zero_()
    assert loss_and_gradients(twin)[0] != loss_and_gradients(model)[0]  # the copy runs on its own weights
    model.save_pretrained(tmp_path)
    assert type(LlamaForCausalLM.from_pretrained(tmp_path).base_model.layers[0].mlp).__name__ == "LlamaMLP"
