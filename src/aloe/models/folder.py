"""What travels with a model's weights: tokenizer, chat template, sampling, system prompt. No torch here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from aloe.core.chat import Chat, ChatOptions

CHAT_FILE = "chat.json"
COMPANIONS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json", CHAT_FILE,
)  # fmt: skip


def copy_tokenizer(source: Path, out: Path) -> None:
    """Everything of a model folder but the weights."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def load_chat(path: Path, tokenizer: Any) -> Chat:
    """The renderer of a model folder, with the system prompt and sampling that travel with it."""
    file = path / CHAT_FILE
    options = ChatOptions.model_validate_json(file.read_bytes()) if file.is_file() else ChatOptions()
    return Chat(tokenizer, options, str(path))
