"""The model card's two snippets, in a fresh environment with transformers, torch and accelerate alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import venv
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from aloe.core.rows import Message
from aloe.models.folder import load_chat
from spine.conftest import REPO

PACKAGES = ("torch", "transformers", "accelerate")


def snippets(card: str) -> list[str]:
    return [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "transformers" in code]


def messages_of(code: str) -> list[dict[str, str]]:
    """The literal `messages = [...]` of a snippet."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "messages":
            found: list[dict[str, str]] = ast.literal_eval(node.value)
            return found
    raise AssertionError("the snippet has no messages")


def final_folder(runs: Path) -> Path:
    return next(runs.glob("report-*/model"))


def test_the_snippets_render_the_ids_that_chat_renders(tiny_runs: Path) -> None:
    folder = final_folder(tiny_runs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = load_chat(folder, tokenizer)
    found = snippets((folder / "README.md").read_text())
    assert len(found) == 2
    for code in found:
        messages = messages_of(code)
        theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        ours = chat.prompt_ids([Message.model_validate_json(json.dumps(m)) for m in messages])
        assert list(theirs) == ours
        # The system prompt of the snippet is the one that the folder carries: leaving it out changes nothing for us.
        assert chat.prompt_ids([Message.model_validate_json(json.dumps(m)) for m in messages if m["role"] != "system"]) == ours


@pytest.mark.slow
def test_the_snippets_run_where_only_transformers_torch_and_accelerate_are_installed(tiny_runs: Path, tmp_path: Path) -> None:
    lock = (REPO / "requirements/lock.txt").read_text() + (REPO / "requirements/torch-cpu.txt").read_text()
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [str(tmp_path / "venv/bin/pip"), "install", "--quiet"]
    pinned = [re.search(rf"^{name}==[^ ]+", lock, re.MULTILINE).group(0) for name in PACKAGES]  # type: ignore[union-attr]
    subprocess.run([*pip, *pinned], check=True)
    listed = subprocess.run([str(tmp_path / "venv/bin/pip"), "list"], check=True, capture_output=True, text=True).stdout
    assert "aloe" not in listed and "gguf" not in listed
    folder = final_folder(tiny_runs)
    for number, code in enumerate(snippets((folder / "README.md").read_text())):
        script = tmp_path / f"snippet{number}.py"
        script.write_text(code)
        done = subprocess.run([str(tmp_path / "venv/bin/python"), str(script)], capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
