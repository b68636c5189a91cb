"""What travels with a model's weights: tokenizer, chat template, sampling, system prompt, an adapter's base. No torch here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aloe.artifact import MANIFEST, HashMemo, open_artifact, read_manifest
from aloe.core.errors import ModelError

if TYPE_CHECKING:
    from aloe.core.chat import Chat

CHAT_FILE = "chat.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
COMPANIONS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json", CHAT_FILE,
)  # fmt: skip


def copy_tokenizer(source: Path, out: Path) -> None:
    """Everything of a model folder but the weights. An adapter gets no config.json: transformers would take it for a whole model."""
    for name in COMPANIONS:
        if (source / name).is_file() and not (name == "config.json" and is_adapter(out)):
            shutil.copyfile(source / name, out / name)


def load_chat(path: Path, tokenizer: Any) -> Chat:
    """The renderer of a model folder, with the system prompt and sampling that travel with it."""
    from aloe.core.chat import Chat, ChatOptions  # `aloe merge` starts without it

    file = path / CHAT_FILE
    options = ChatOptions.model_validate_json(file.read_bytes()) if file.is_file() else ChatOptions()
    return Chat(tokenizer, options, str(path))


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def relative_base(adapter: Path, base: Path) -> str:
    """How an adapter names its base: relative to its own folder, so that a runs folder may move."""
    return os.path.relpath(base.resolve(), adapter.resolve())


def record_base(adapter: Path, base: Path) -> None:
    """Say beside an adapter which finished stage it was trained on, by place and by fingerprint."""
    record = {"path": relative_base(adapter, base), "fingerprint": read_manifest(base).fingerprint}
    (adapter / ADAPTER_BASE).write_text(json.dumps(record, indent=1) + "\n")


def adapter_base(adapter: Path) -> Path:
    """The base folder of an adapter that this package made; ModelError where it is not there or not the same any more."""
    try:
        record = json.loads((adapter / ADAPTER_BASE).read_text())
    except OSError:
        raise ModelError(
            f"this is an adapter without {ADAPTER_BASE}: its base is not known", where=str(adapter), do="merge it into its base model first"
        ) from None
    path = (adapter / str(record["path"])).resolve()
    if not (path / MANIFEST).is_file():
        raise ModelError(
            f"the base of the adapter is not there: {path}", where=str(adapter), do="keep the folders of a run together, or use lora.export: merged"
        )
    base = open_artifact(path, HashMemo(path.parent / ".hashes.json"))
    if base.manifest.fingerprint != record["fingerprint"]:
        raise ModelError(
            f"the base of the adapter is another model now ({base.manifest.fingerprint[:8]} instead of {record['fingerprint'][:8]})",
            where=str(path),
            do=f"remove {adapter} and run again",
        )
    return path


def adapter_name(folder: Path) -> str | None:
    """`sft-0a1b2c3d on start-4e5f6a7b` where the folder holds an adapter, None where it holds a whole model."""
    if not is_adapter(folder):
        return None
    base = adapter_base(folder)
    return f"{folder.name} on {adapter_name(base) or base.name}"


def whole_folder(folder: Path, work: Path) -> Path:
    """`folder`, or where it holds an adapter, `work` with the merged weights and all that travels with them."""
    if not is_adapter(folder):
        return folder
    from aloe.models.adapter import merged_model

    merged_model(folder).save_pretrained(work, safe_serialization=True)
    copy_tokenizer(folder, work)
    return work
