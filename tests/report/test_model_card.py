from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from made_run import SYSTEM_PROMPT, MakeRun, Run

from aloe.report.model_card import write_card

SECTIONS = (
    "## Model Details",
    "### Model Description",
    "## Model Performance",
    "## Uses",
    "### Direct Use",
    "### Out-of-Scope Use",
    "## Bias, Risks, and Limitations",
    "## How to Get Started with the Model",
    "#### Transformers pipeline",
    "#### Transformers AutoModelForCausalLM",
    "## Training Details",
    "#### Training parameters",
    "### Training Data",
    "### Model Merging",
    "### Model Alignment",
    "## Evaluation",
    "#### Testing Data",
    "#### Metrics",
    "#### Summary",
    "## Environmental Impact",
    "## Provenance",
    "## Authors",
    "## Citations",
)


def card(run: Run, tmp_path: Path) -> str:
    path = tmp_path / "README.md"
    write_card(path, *run.arguments)
    return path.read_text(encoding="utf-8")


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.items() for part in item for x in numbers_in(part)]
    if isinstance(value, list):
        return [x for item in value for x in numbers_in(item)]
    if isinstance(value, str):
        return [float(x) for x in re.findall(r"\d+(?:\.\d+)?", value)]
    return [float(value)] if isinstance(value, int | float) else []


def known_numbers(run: Run) -> list[float]:
    found: list[float] = []
    for artifact in [*run.stages]:
        for file in ("manifest.json", "base.json", "scores.json", "comparisons.json"):
            if (artifact.path / file).is_file():
                found += numbers_in(json.loads((artifact.path / file).read_text()))
    manifests = [stage.manifest for stage in run.stages]
    energy = [m.energy for m in manifests if m.energy]
    found += [sum(e["kwh"] for e in energy), sum(e["kg_co2"] for e in energy), sum(m.seconds for m in manifests)]
    found += [544, 4500, 34.1, 548, 5064, 73, 158, 700, 32, 64]  # what was published of Aloe-Beta stands beside
    for manifest in manifests:
        for counted in manifest.metrics.get("counts", {}).values():
            found.append(sum(n for key, n in counted.items() if key.startswith("dropped by")))
    return found


def agrees(text: str, known: list[float]) -> bool:
    """Whether the text is some known number, or its percent, minutes or hours, rounded to the figures shown."""
    shown = float(text.replace(",", ""))
    digits = len(text.partition(".")[2])
    half = 0.5 * 10**-digits + 1e-9
    figures = len(text.replace(".", "").replace(",", "").lstrip("0"))
    slack = 0.51 * 10 ** (math.floor(math.log10(shown)) + 1 - figures) if shown else half
    candidates = [abs(x) * factor for x in known for factor in (1, 100, 1 / 60, 1 / 3600)]
    return any(abs(x - shown) <= slack for x in candidates)


def table_numbers(text: str) -> list[str]:
    body = re.sub(r"```.*?```", "", text.split("---\n", 2)[2], flags=re.DOTALL)
    cells = [cell for line in body.splitlines() if line.startswith("|") and not line.startswith("| ---") for cell in line.strip("|").split("|")]
    plain = [re.sub(r"95 %|[0-9a-f]{8}(?=\s)|[a-zA-Z][\w./-]*\d[\w.-]*", " ", cell) for cell in cells]
    return [number for cell in plain for number in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?", cell)]


def test_every_number_of_the_tables_stands_in_a_manifest_or_score(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    known = known_numbers(run)
    shown = table_numbers(card(run, tmp_path))
    assert len(shown) > 150
    assert [text for text in shown if not agrees(text, known)] == []


def test_a_number_that_is_nowhere_is_noticed(make_run: MakeRun) -> None:
    known = known_numbers(make_run())
    assert agrees("59.0", known) and not agrees("37.4", known) and not agrees("59.2", known)


def test_the_environmental_section_has_every_stage_and_the_published_figures_beside(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    section = card(run, tmp_path).split("## Environmental Impact\n")[1].split("\n## ")[0]
    (hours,) = [line for line in section.splitlines() if line.startswith("| hours, all stages")]
    (carbon,) = [line for line in section.splitlines() if line.startswith("| carbon, kg CO2")]
    assert "544 (8B) and 4,500 (70B)" in hours and "548 (8B) and 5,064 (70B)" in hours
    assert "34.1, of which model is not said" in carbon and "73 (8B" in carbon
    for stage in run.stages:
        (line,) = [line for line in section.splitlines() if line.startswith(f"| {stage.name} |")]
        recorded = stage.manifest.energy
        assert (f"{recorded['kwh']:.3g} | {recorded['kg_co2']:.3g} | estimated" if recorded else "missing | missing") in line


def test_a_plan_is_scored_beside_what_was_needed(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    text = card(run, tmp_path)
    (line,) = [x for x in text.splitlines() if x.startswith("| sft | sft |")]
    assert "| actual / planned |" in text and "| 0.83 |" in line  # 812.4 s against 16.248 planned minutes


def test_the_sections_of_the_aloe_card_are_there(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(), tmp_path)
    assert [section for section in SECTIONS if f"\n{section}\n" not in text] == []


def test_the_front_matter_loads_and_holds_one_result_a_score(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    data = ModelCard(card(run, tmp_path)).data
    assert (data.license, data.base_model, data.library_name, data.pipeline_tag) == (
        "cc-by-sa-4.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "transformers",
        "question-answering",
    )
    assert data.datasets == ["dolly", "medqa", "file:own.jsonl", "med-safety"]
    scores = [s for s in json.loads((run.scores[0].path / "scores.json").read_text()) if s["model"] == "redteam"]
    found = {(r.dataset_type, r.dataset_config, r.metric_type): (r.metric_value, r.metric_args["n"]) for r in data.eval_results}
    assert found == {(s["task"], s["strategy"], s["metric"]): (pytest.approx(100 * s["value"], abs=0.06), s["n"]) for s in scores}


def test_an_unknown_licence_is_other_with_its_name(make_run: MakeRun, tmp_path: Path) -> None:
    data = ModelCard(card(make_run(licence="My Licence 2"), tmp_path)).data
    assert (data.license, data.license_name) == ("other", "My Licence 2")


def test_both_snippets_are_python_and_hold_the_system_prompt(make_run: MakeRun, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", card(make_run(), tmp_path), flags=re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        strings = [node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert SYSTEM_PROMPT in strings and "." in strings and "<|im_end|>" in strings
        assert "temperature=0.6" in snippet and "top_p=0.9" in snippet and "max_new_tokens=256" in snippet


def test_greedy_models_are_not_given_a_temperature(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (run.model.path / "chat.json").write_text(json.dumps({"system_prompt": "", "generation": {"do_sample": False, "max_new_tokens": 9}}))
    text = card(run, tmp_path)
    assert "do_sample=False" in text and "temperature=" not in text and '"role": "system"' not in text


def test_base_and_final_model_stand_side_by_side_with_the_verdict(make_run: MakeRun, tmp_path: Path) -> None:
    (line,) = [x for x in card(make_run(), tmp_path).splitlines() if x.startswith("| accuracy, medqa (letters)")]
    assert "| 100 | 27.0 % [" in line and "| 59.0 % [" in line and "| better: +32.0 points [" in line and "p = 0.012" in line


def test_without_a_direct_test_the_verdict_names_the_neighbour(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    file = run.scores[0].path / "comparisons.json"
    file.write_text(json.dumps([c for c in json.loads(file.read_text()) if c["a"] != "base" or c["b"] == "sft"]))
    (line,) = [x for x in card(run, tmp_path).splitlines() if x.startswith("| attack success, med-safety")]
    assert "better than aligned: \N{MINUS SIGN}15.0 points" in line


def test_sentences_keep_their_spaces(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(), tmp_path)
    assert "then `redteam` (597 pairs in 1 chunk). The model" in text
    assert "(letters) were not answered correctly. 30 of 100" in text
    assert "is wrong (higher is better). 95 % interval" in text


def test_without_scores_nothing_is_claimed(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(with_scores=False), tmp_path)
    assert "did not evaluate" in text and "Nothing was measured" in text and "model-index" not in text
    assert "Knowledge was not measured" in text and "Neither attack success nor over-refusal was measured" in text


def test_a_base_alone_says_that_nothing_was_trained(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(trained=False), tmp_path)
    for sentence in ("no supervised fine-tuning", "merges no models", "no preference alignment", "curated no data"):
        assert sentence in text


def test_missing_energy_is_said_and_not_invented(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(with_energy=False), tmp_path)
    assert "| energy, kWh | not recorded |" in text and "| carbon, kg CO2 | not recorded |" in text and "No energy was recorded for any stage" in text


def test_stages_without_energy_are_named_and_the_method_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(), tmp_path)
    assert "(estimated)" in text and "no meter was read" in text and "No energy was recorded for facts, pairs" in text


def test_hostile_names_cannot_become_markup(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(source="<script>|x", authors="![x](http://evil)"), tmp_path)
    body = text.split("---\n", 2)[2]
    assert "<script" not in body and "&lt;script>\\|x" in body and not re.search(r"(?<!\\)\]\(http", body)
    assert ModelCard(text).data.datasets[0] == "<script>|x"


def test_a_hard_linked_readme_is_replaced_not_written_through(make_run: MakeRun, tmp_path: Path) -> None:
    other, path = tmp_path / "other.md", tmp_path / "README.md"
    other.write_text("theirs")
    path.hardlink_to(other)
    write_card(path, *make_run().arguments)
    assert other.read_text() == "theirs"


def test_the_path_of_a_users_file_stays_private(make_run: MakeRun, tmp_path: Path) -> None:
    assert "/home/jane" not in card(make_run(), tmp_path)
