from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_evaluation import NASTY, made

from aloe.report import browser
from aloe.report.browser import pack
from aloe.report.evaluation import Evaluation, trained_on
from aloe.report.evaluation_page import write_page


class Page(HTMLParser):
    """Tags, attributes that load something, ids, and what is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.loads += [str(value)] if name in ("src", "href", "action", "data", "srcset") else []
            self.ids += [str(value)] if name == "id" else []
            self.handlers += [name] if name.startswith("on") or name == "style" else []

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(path: Path, evaluation: Evaluation) -> tuple[str, Page]:
    write_page(path, evaluation, ["scores.csv"])
    text = path.read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    return text, parsed


def unpacked(text: str) -> Any:
    found = re.search(r'id="packed">([^<]*)<', text)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    text, parsed = page(tmp_path / "e.html", made(names=(f"base {NASTY}", "tuned"), flags={"medqa/007": NASTY}))
    assert parsed.tags.count("script") == 2 and "img" not in parsed.tags and parsed.handlers == []
    assert all(link.startswith("#") for link in parsed.loads) and "http" not in "".join(parsed.loads)
    assert "</script><script>alert" not in text and len(set(parsed.ids)) == len(parsed.ids)
    # The very same text arrives in the browser of questions.
    assert NASTY in next(q for q in unpacked(text)["questions"] if q["q"] == "medqa/007")["a"][0]["r"]


def test_the_policy_allows_the_pages_own_style_and_script_alone(tmp_path: Path) -> None:
    text, _ = page(tmp_path / "e.html", made())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy[1]
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text


def test_every_question_and_answer_is_in_the_browser(tmp_path: Path) -> None:
    evaluation = made()
    text, _ = page(tmp_path / "e.html", evaluation)
    content = unpacked(text)
    assert len(content["questions"]) == 360 and content["models"] == ["base", "tuned"]
    assert all(len(q["a"]) == 2 for q in content["questions"])
    first = content["questions"][0]
    assert first["q"] == "medqa/000" and first["g"] == "A" and first["s"] == "cardiology" and first["a"][0]["k"] == [80, 0, 0.05]
    assert next(q for q in content["questions"] if q["q"] == "medqa/003")["f"] == "in the corpus"


def test_long_texts_are_cut_and_counted_and_flips_stay_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = made()
    whole = pack(evaluation)
    assert (whole.left_out, whole.num_cut, whole.num_questions) == (0, 0, 360)
    monkeypatch.setattr(browser, "MAX_BYTES", len(whole.data) // 4)
    small = pack(evaluation)
    assert len(small.data) <= len(whole.data) // 4 and small.left_out > 0 and small.num_questions + small.left_out == 360
    kept = json.loads(gzip.decompress(base64.b64decode(small.data)))["questions"]
    assert all(len({a["v"] for a in q["a"]}) > 1 for q in kept)


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    evaluation = made()
    _, parsed = page(tmp_path / "e.html", evaluation)
    text = " ".join(" ".join(parsed.text).split())
    assert "better in 3, worse in 0, inconclusive in 0 of 3 paired tests" in text
    assert "published, not measured" in text and "GPT-4" in text and "arXiv" not in text
    assert "corrected by Holm over the 3 comparisons" in text
    assert "7 not readable" in text and "cardiology" in text and "ECE" in text and "in the corpus" in text
    assert parsed.tags.count("svg") > 10


def test_one_model_is_shown_without_tests(tmp_path: Path) -> None:
    _, parsed = page(tmp_path / "e.html", made(names=("alone",), flags={}))
    text = " ".join(parsed.text)
    assert "Holm over" not in text and "None of these questions was found in training rows" in text and "tests" not in parsed.ids
    _, parsed = page(tmp_path / "e.html", made(names=("alone",))._replace(flags=None, flagged=()))
    assert "nothing is known of it" in " ".join(parsed.text), "nobody looked"


def test_tasks_whose_published_protocol_tests_on_training_data_are_named() -> None:
    assert set(trained_on(["medqa", "medtext", "mts-dialog-perplexity"])) == {"medtext", "mts-dialog-perplexity"}


USE = """
setTimeout(() => {
  const set = (id, value, event) => { document.getElementById(id).value = value; document.getElementById(id).dispatchEvent(new Event(event)); };
  set("outcome", "differ", "change");
  set("subject", "neurology", "change");
  set("search", "WOMAN evil.example", "input");
  document.querySelector("#found details").open = true;
}, 500);
"""


def rendered(folder: Path, text: str, *options: str) -> str:
    """The DOM after the script has run; an error of the script or of the page's policy fails."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    file = folder / "shown.html"
    file.write_text(text, encoding="utf-8")
    call = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*call, *options, "--dump-dom", f"file://{file}"], capture_output=True, text=True, timeout=120)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--blink-settings=preferredColorScheme=0",)])
def test_a_browser_runs_it_without_errors(tmp_path: Path, options: tuple[str, ...]) -> None:
    shown = rendered(tmp_path, page(tmp_path / "e.html", made())[0], *options)
    assert "360 of 360 questions" in shown and shown.count("<details>") >= 20


@pytest.mark.slow
def test_search_and_filters_find_and_text_stays_text(tmp_path: Path) -> None:
    evaluation = made()
    text, _ = page(tmp_path / "e.html", evaluation)
    # Question 7, whose text wants to be markup, is the one with the address; it is of neurology.
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    use = script + USE

    def digest(words: str) -> str:
        return base64.b64encode(hashlib.sha256(words.encode()).digest()).decode()

    assert digest(script) in text
    shown = rendered(tmp_path, text.replace(script, use).replace(digest(script), digest(use)))
    expected = sum(len({lines[7]["value"] for lines in by_model.values()}) > 1 for trial, by_model in evaluation.records.items() if trial[0] == "medqa")
    assert expected > 0 and f"{expected} of 360 questions" in shown
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in shown and "<img" not in shown
    assert "80 tokens read" in shown and "Right: D" in shown
