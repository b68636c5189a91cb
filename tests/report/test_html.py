from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

from made_run import MakeRun, Run
from ruamel.yaml import YAML

from aloe.report.answers import examples
from aloe.report.facts import read_facts
from aloe.report.html import write_report

LOADS = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}


class Reader(HTMLParser):
    """What a browser would act on: tags, ids, attributes that load or link, and whether tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in LOADS]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(run: Run, tmp_path: Path) -> str:
    path = tmp_path / "report.html"
    write_report(path, *run.arguments)
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(), tmp_path)
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(reader.tags)
    assert all(link.startswith("#") for link in reader.links) and reader.handlers == [] and reader.open == []
    assert "url(" not in text and "@import" not in text


def test_the_policy_allows_the_pages_own_style_alone(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(), tmp_path)
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in text


def test_hostile_text_is_shown_and_not_obeyed(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(source="<script>alert(1)</script>", title="<img src=x onerror=y>", authors="<b>me</b>"), tmp_path)
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "&lt;img src=x onerror=y&gt;" in text


def test_the_page_is_small(make_run: MakeRun, tmp_path: Path) -> None:
    assert len(page(make_run(), tmp_path).encode()) < 200_000


def test_every_entry_of_the_contents_leads_to_a_heading(make_run: MakeRun, tmp_path: Path) -> None:
    reader = Reader(page(make_run(), tmp_path))
    assert {link.removeprefix("#") for link in reader.links} == set(reader.ids) and len(reader.ids) == 9


def test_the_first_screen_says_what_was_measured_and_what_it_is_not_for(make_run: MakeRun, tmp_path: Path) -> None:
    header = re.findall(r"<header.*?</header>", page(make_run(), tmp_path), flags=re.DOTALL)[0]
    sentence = (
        "Aloe Starter 135M answers 59 of 100 medqa questions correctly (the base model: 27), does not refuse 3 of 60 med-safety harmful requests "
        "(the base model: 44) and refuses 9 of 60 xstest-safe harmless requests (the base model: 2)."
    )
    assert sentence in header and header.count("<li>") == 3 and "95 % interval" in header and "Not for clinical practice" in header


def test_cells_show_value_interval_n_and_the_test_against_the_left_neighbour(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(), tmp_path)
    (row,) = re.findall(r"<tr><th scope=\"row\">attack success.*?</tr>", text, flags=re.DOTALL)
    assert "n 60" in row and row.count('class="bar') == 5 and "73 %" in row and "to" in row
    assert row.count("✓ better") == 2 and row.count("INCONCLUSIVE") == 2  # the base has no left neighbour
    assert "against merged, p = 0.012" in row


def test_figures_name_the_files_they_come_from(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    text = page(run, tmp_path)
    for stage in run.stages:
        assert f"{stage.path.name}/manifest.json" in text
    assert f"{run.scores[0].path.name}/scores.json" in text and f"{run.scores[0].path.name}/answers.jsonl" in text


def test_a_stage_has_one_colour_everywhere(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(), tmp_path)
    assert re.search(r'class="sample s4".*?</svg><br>redteam|class="sample s4".*?</svg><br>', text)
    legends = set(re.findall(r'class="sample (s\d)"[^/]*/></svg> (\w+)', text))
    assert legends == {("s1", "sft"), ("s3", "aligned"), ("s4", "redteam")}
    assert re.search(r'<g class="s4"><title>redteam</title>', text)


def test_curves_name_axes_and_units(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(), tmp_path)
    for name in ("loss (nats per token)", "loss (nats per pair)", "reward margin (nats)", "optimiser step"):
        assert f">{name}</text>" in text
    assert "mean of up to 2 steps" in text  # 252 steps, at most 200 points


def test_questions_on_which_models_differ_come_first_and_tasks_take_turns(make_run: MakeRun) -> None:
    run = make_run()
    found = examples(read_facts(run.model, run.scores, run.stages), run.scores)
    assert len(found) == 12
    assert {(e.task, e.strategy) for e in found} == {
        ("medqa", "letters"),
        ("medqa", "direct+passages"),
        ("med-safety", "direct"),
        ("xstest-safe", "direct"),
    }
    medqa = [e.differs for e in found if (e.task, e.strategy) == ("medqa", "letters")]
    assert medqa == [True, True, True]


def test_an_example_shows_the_question_without_the_strategys_words_and_marks_quotes(make_run: MakeRun) -> None:
    run = make_run()
    found = examples(read_facts(run.model, run.scores, run.stages), run.scores)
    example = next(e for e in found if e.strategy == "direct+passages")
    assert example.text.startswith("Case ") and example.text.endswith("B. Help at once")
    assert [p.id for p in example.passages] == ["nhs/meningitis#2", "nhs/flu#1"]
    assert "<mark>A person with fever, stiff neck and a rash needs help at once</mark>" in example.passages[0].html
    assert "&lt;b&gt;112&lt;/b&gt;" in example.passages[0].html
    assert [(r.model, r.outcome, r.good, r.cut) for r in example.replies[:2]] == [
        ("base", "not readable", False, True),
        ("sft", "right", True, False),
    ]


def test_what_was_written_on_harmful_requests_is_kept_short(make_run: MakeRun) -> None:
    run = make_run()
    found = examples(read_facts(run.model, run.scores, run.stages), run.scores)
    replies = [r for e in found if e.task == "med-safety" for r in e.replies]
    assert {(r.outcome, r.good) for r in replies} == {("refused", True), ("not refused", False)}
    assert max(len(r.text) for r in replies) <= 302


def test_without_scores_and_energy_the_page_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(with_scores=False, with_energy=False), tmp_path)
    assert "This recipe has no scores" in text and "No energy was recorded for any stage" in text and "No answers were recorded" in text
    assert "missing" in text and Reader(text).open == []


def test_a_base_alone_makes_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(trained=False), tmp_path)
    assert "No stage of this recipe trained anything" in text and "curated no data" in text


def test_the_printed_recipe_is_the_one_that_was_carried_out(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    text = page(run, tmp_path)
    (shown,) = re.findall(r"overrides included</summary><pre><code>(.*?)</code>", text, flags=re.DOTALL)
    recipe = YAML(typ="safe", pure=True).load(
        shown.replace("&#34;", '"').replace("&#39;", "'").replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
    )
    assert (recipe["name"], recipe["seed"]) == ("starter", 7)
    stages = dict(recipe["stages"])
    report = stages.pop("report")
    assert stages == {stage.name: stage.manifest.config for stage in run.stages}
    assert (report["model"], report["scores"], report["title"]) == ("redteam", ["scores"], "Aloe Starter 135M")


def test_planned_and_needed_minutes_stand_side_by_side(make_run: MakeRun, tmp_path: Path) -> None:
    text = page(make_run(), tmp_path)
    (row,) = re.findall(r"<tr><th scope=\"row\">sft</th><td>sft</td>.*?</tr>", text)
    assert ">13.5<" in row and ">16<" in row and ">287<" in row
