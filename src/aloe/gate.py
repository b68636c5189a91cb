"""`aloe gate` and `aloe export-docs`: what a recipe's gates said, how often they err, and drafts of forms from a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aloe.artifact import Artifact, lineage, read_manifest
from aloe.core.errors import RecipeError
from aloe.core.rows import read_jsonl
from aloe.evals.gate_errors import LimitAtHand, report
from aloe.evals.gates import Judged, Limit, paired, table
from aloe.evals.run import ANSWERS
from aloe.evals.task import expected_size, open_task
from aloe.runner import Node
from aloe.stages import Evaluate, Gate, Report
from aloe.stages.gating import VERDICTS


def verdicts(nodes: Sequence[Node]) -> Iterator[str]:
    """The table of every gate that has passed judgement; of a closed one, what it left behind."""
    for node, _ in _gates(nodes):
        files = [folder / VERDICTS for folder in (node.path, node.work.parent) if (folder / VERDICTS).is_file()]
        if not files:
            yield f"{node.name}: not judged yet (its scores are not there)"
            continue
        found = json.loads(files[0].read_text())
        yield f"{node.name}: {found['verdict']}, {found['candidate']} against {found['baseline']}{'' if node.done else '; the recipe ends here'}"
        yield from table([Judged(**limit) for limit in found["limits"]], found["alpha"])


def simulated(nodes: Sequence[Node], differ: float) -> Iterator[str]:
    """The errors of every gate. Questions and the share of differing grades are those measured where the scores are there already,
    otherwise what the recipe asks for, and `differ`."""
    by_name = {node.name: node for node in nodes}
    for node, gate in _gates(nodes):
        yield f"{node.name}: {gate.candidate} against {gate.baseline}, alpha {gate.alpha:g}, blocks {' and '.join(gate.blocks) or 'nothing'}"
        yield from report([_at_hand(limit, gate, by_name, differ) for limit in gate.limits], gate.alpha, gate.blocks)


def documents(nodes: Sequence[Node], out: Path) -> list[Path]:
    """Drafts of TRIPOD-LLM and of the EU AI Act's technical documentation, for the last finished report of a recipe."""
    from aloe.report.regulatory import write_documents

    done = [node for node in nodes if node.done and isinstance(node.stage, Report)]
    if not done:
        raise RecipeError("no report is finished here", where="runs", do="run a recipe with a report stage to its end first")
    stage = done[-1].stage
    assert isinstance(stage, Report)
    here = {node.name: Artifact(node.path, read_manifest(node.path)) for node in nodes if node.done}
    inputs = {role: here[ref.stage] for role, ref in stage.refs().items()}
    scores = [inputs[f"scores.{name}"] for name in stage.scores]
    return write_documents(out, stage.title, inputs["model"], scores, lineage(list(inputs.values())))


def _gates(nodes: Sequence[Node]) -> list[tuple[Node, Gate]]:
    found = [(node, node.stage) for node in nodes if isinstance(node.stage, Gate)]
    if not found:
        raise RecipeError("the recipe has no gate stage", do="add one: {kind: gate, scores: [...], baseline: ..., candidate: ..., limits: [...]}")
    return found


def _at_hand(limit: Limit, gate: Gate, nodes: Mapping[str, Node], differ: float) -> LimitAtHand:
    stages = [nodes[name] for name in gate.scores]
    name = f"{limit.task} ({limit.strategy})"
    at_most = limit.at_most if open_task(limit.task).better == "lower" else None
    if all(node.done for node in stages):
        pairs = paired([answer for node in stages for answer in read_jsonl(node.path / ANSWERS)], limit, gate.baseline, gate.candidate)
        net = abs(sum(b - a for a, b in pairs))
        share = (sum(a != b for a, b in pairs) - net) / len(pairs)  # what is left when the true difference is taken out
        return LimitAtHand(name, len(pairs), limit.allow, max(0.01, share), at_most)
    plans = [p for node in stages if isinstance(node.stage, Evaluate) for p in node.stage.tasks if p.task == limit.task]
    count = int(expected_size(limit.task)[0])
    return LimitAtHand(name, min(count, *(p.n or count for p in plans)) if plans else count, limit.allow, differ, at_most)
