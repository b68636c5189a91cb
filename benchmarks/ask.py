"""Votes on MedQA with SmolLM2-135M: our engine against transformers' own `generate`, equal prompts, equal greedy text.

    python benchmarks/ask.py            # on an idle machine; 50 questions, 5 shots, 5 pairs a case
    python benchmarks/ask.py votes-5 one-by-one-5    # these cases; the result file keeps the others as they were
    python benchmarks/ask.py --quick    # 2 questions, one pair: a check that it works

A case takes up to two hours. Every pair is kept in --work: a run that was ended goes on with the next one, at the same commit on the same machine.

votes-5, votes-20: the peer decodes the votes in batches of the size that is fastest for it (swept, the votes of several questions may
share a batch). one-by-one-5, one-by-one-20: the peer makes a call a vote, as prompt_engine does. A question's shots are its nearest, as in
Medprompt, so that only its own votes begin alike: of what five votes read, at best four fifths can be saved. In one-by-one-5-same-shots all
questions have the same five, as in few-shot prompting. Each pair takes a fifth of the questions, so that both sides answer all of them once.
Both sides write whole replies; how many calls the adaptive stop then saves, and that it changes no answer, is counted from these replies.
think*5 and think*20 have no peer: what the stop saves of self-consistency, whose members draw and see the options in one order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import training as t

SHOTS, MAX_TOKENS, THREADS = 5, 48, 2
BATCHES = (5, 10, 20, 40)
CASES = {
    # case -> votes, whether each question has shots of its own
    "votes-5": (5, True), "votes-20": (20, True), "one-by-one-5": (5, True), "one-by-one-20": (20, True), "one-by-one-5-same-shots": (5, False),
}  # fmt: skip
STOPS, THINK_TOKENS = ("think*5", "think*20"), 256


def main() -> None:
    known = (*CASES, *STOPS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(known))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aloe-bench-ask")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if unknown := sorted(set(options.cases) - set(known)):
        parser.error(f"no such case: {', '.join(unknown)}; known: {', '.join(known)}")
    num_questions, pairs = (2, 1) if options.quick else (50, 5)
    os.environ.setdefault("ALOE_DATA", str(t.DATA))
    import torch

    from aloe.core.config import Machine
    from aloe.models.hf import HfModel

    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        path = t.make_model(Path(folder))
        model = HfModel(path, Machine())
        peer = Peer(path, model)
        import transformers

        cases = {} if options.quick else t.earlier("ask")
        facts = {**t.facts(THREADS), "peer": "transformers generate", "peer_version": transformers.__version__, "questions": num_questions}
        work = Path(folder) if options.quick else options.work
        for name in options.cases or known:
            if name in STOPS:
                cases[name] = {**facts, **stop(name, model, num_questions, work), "peer": "none", "peer_version": ""}
            else:
                votes, nearest = CASES[name]
                requests = make_requests(votes, num_questions, nearest)
                kept = Kept(work, name, facts)
                for size in () if not name.startswith("votes") else (votes,) if options.quick else BATCHES:
                    if str(size) not in kept.swept:
                        kept.swept[str(size)] = peer.seconds(requests[: 2 * votes], size)[0]
                        kept.save()
                cases[name] = {**case(name, model, peer, requests, pairs, kept), **facts}
            result = {"name": "ask", "shots": SHOTS, "max_tokens": MAX_TOKENS, "cases": [cases[name] for name in known if name in cases]}
            print(json.dumps(result)) if options.quick else t.finish("ask", result)


def make_requests(votes: int, num_questions: int, nearest: bool) -> list[Any]:
    """The members of each question's vote, question by question: rotated options after five solved questions, its nearest or the first."""
    from aloe.ask import prompts
    from aloe.ask.memory import Memory, passages
    from aloe.ask.vote import orders
    from aloe.core.qa import Example
    from aloe.evals.examples import nearest_by, training_questions
    from aloe.evals.task import open_task, sample
    from aloe.models.model import Generate, Sampling

    training = training_questions("medqa-dev", None, 1)
    examples = [Example(question=q, reply=prompts.choice_answer(q.gold or 0, q.options[q.gold or 0])) for q in training]
    memory = Memory(examples, nearest_by("hashing")(passages(examples)))
    requests = []
    for question in sample(open_task("medqa").questions(), num_questions, 1):
        shots = memory.nearest(question, SHOTS) if nearest else examples[:SHOTS]
        for order in orders(len(question.options), votes):
            turned = question.model_copy(update={"options": tuple(question.options[i] for i in order)})
            messages = prompts.multiple_choice(turned, (), shots)
            requests.append(Generate(messages=messages, sampling=Sampling(max_tokens=MAX_TOKENS)))
    return requests


class Peer:
    """transformers' generate on prompts padded at the left, on the same weights."""

    def __init__(self, path: Path, model: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model, self._ours = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), model

    def seconds(self, requests: Sequence[Any], batch: int) -> tuple[float, list[str]]:
        """Wall time of all requests, and their texts."""
        import torch

        prompts = [self._ours.chat.prompt_ids(request.messages) for request in requests]
        texts, pad = [], self._ours.stop_ids[0]
        begin = time.perf_counter()
        for start in range(0, len(prompts), batch):
            rows = prompts[start : start + batch]
            width = max(map(len, rows))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            with torch.inference_mode():
                out = self._model.generate(
                    ids, attention_mask=mask, do_sample=False, temperature=None, top_p=None, max_new_tokens=MAX_TOKENS,
                    eos_token_id=self._ours.stop_ids, pad_token_id=pad,
                )  # fmt: skip
            texts += [self._ours._text(row[width:].tolist()).strip() for row in out]
        return time.perf_counter() - begin, texts


def ours(model: Any, requests: Sequence[Any]) -> tuple[float, list[str]]:
    """The same with our engine, which keeps nothing from a run before."""
    from aloe.models.prefixes import Prefixes

    model.prefixes = Prefixes(model.machine.prefix_tokens)
    begin = time.perf_counter()
    found = dict(model.reply(requests))
    return time.perf_counter() - begin, [found[i].text for i in range(len(requests))]


class Kept:
    """What was measured of a case: it outlives the process, and counts only for the same commit, machine and versions."""

    def __init__(self, work: Path, name: str, facts: dict[str, Any]) -> None:
        self._file, self._facts = work / f"{name}-{facts['questions']}.json", facts
        found = json.loads(self._file.read_text()) if self._file.is_file() else {}
        found = found if found.get("facts") == facts else {}
        self.swept: dict[str, float] = found.get("swept", {})
        """Batch size of the peer -> seconds."""
        self.pairs: list[dict[str, Any]] = found.get("pairs", [])
        """Of each side, seconds and texts."""

    def save(self) -> None:
        """After each number that was measured."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({"facts": self._facts, "swept": self.swept, "pairs": self.pairs}))


def case(name: str, model: Any, peer: Peer, requests: list[Any], pairs: int, kept: Kept) -> dict[str, Any]:
    """Alternated pairs, each of its own share of the questions; the median of their ratios."""
    votes, _ = CASES[name]
    batch = int(min(kept.swept, key=kept.swept.__getitem__)) if kept.swept else 1
    size = len(requests) // votes // pairs * votes
    for number in range(len(kept.pairs), pairs):
        part = requests[number * size : (number + 1) * size]
        runs = {"ours": partial(ours, model, part), "peer": partial(peer.seconds, part, batch)}
        order = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
        pair = {side: dict(zip(("seconds", "texts"), runs[side](), strict=True)) for side in order}
        kept.pairs.append(pair)
        kept.save()
        print(f"{name}: ours {pair['ours']['seconds']:.1f} s, peer {pair['peer']['seconds']:.1f} s", flush=True)
    times = {side: [pair[side]["seconds"] for pair in kept.pairs] for side in ("ours", "peer")}
    texts = {side: [text for pair in kept.pairs for text in pair[side]["texts"]] for side in ("ours", "peer")}
    ratios = [peers / our for our, peers in zip(times["ours"], times["peer"], strict=True)]
    equal = sum(a == b for a, b in zip(texts["ours"], texts["peer"], strict=True))
    return {
        "name": name, "equal": equal == len(requests), "num_equal": equal, "num_texts": len(requests), "speed_ratio": statistics.median(ratios),
        "pairs": pairs, "ratios": ratios, "seconds": times, "peer_batch": batch, "peer_sweep_seconds": kept.swept,
        "adaptive": adaptive(texts["ours"], requests, votes),
    }  # fmt: skip


def adaptive(texts: list[str], requests: list[Any], votes: int) -> dict[str, Any]:
    """Calls that the stop saves on these replies, and whether every winner is the one of the whole vote."""
    from aloe.ask import parse
    from aloe.ask.vote import decided, fewest, orders, winner

    calls, same = 0, True
    for start in range(0, len(texts), votes):
        options = [line[3:] for line in requests[start].messages[-1].content.splitlines() if line[:1] in "ABCDE" and line[1:3] == ". "]
        shown = orders(len(options), votes)
        ballots = []
        for text, order in zip(texts[start : start + votes], shown, strict=True):
            choice = parse.choice(text, [options[i] for i in order])
            ballots.append(None if choice is None else order[choice])
        asked = 0
        while asked < votes and not decided(count(ballots[:asked]), votes - asked):
            asked += fewest(count(ballots[:asked]), votes - asked)
        calls += asked
        part, whole = count(ballots[:asked]), count(ballots)
        same &= (winner(part) if part else None) == (winner(whole) if whole else None)
    return {"calls_saved": 1 - calls / len(texts), "same_answers": same}


def stop(name: str, model: Any, num_questions: int, work: Path) -> dict[str, Any]:
    """What the adaptive stop saves of self-consistency: the same votes, all of them and only those that are needed."""
    from aloe.ask import parse
    from aloe.ask.registry import SAMPLED
    from aloe.ask.strategies import think
    from aloe.ask.strategy import recorded, run
    from aloe.ask.vote import vote
    from aloe.evals.task import open_task, sample

    questions = sample(open_task("medqa").questions(), num_questions, 1)
    journal = t.journal(t.MODEL, model, work)
    votes = int(name.partition("*")[2])
    readers = [vote(partial(think, THINK_TOKENS, SAMPLED), votes, adaptive=adaptive, same_orders=True) for adaptive in (False, True)]
    whole, stopped = (run([recorded(reader(question)) for question in questions], journal) for reader in readers)
    calls, needed = (sum(len(asked) for _, asked in found) for found in (whole, stopped))
    read = [parse.choice(reply.text, question.options) for question, (_, asked) in zip(questions, whole, strict=True) for _, reply in asked]
    same = all(one.choice == other.choice for (one, _), (other, _) in zip(whole, stopped, strict=True))
    return {
        "name": name, "max_tokens": THINK_TOKENS, "read": sum(choice is not None for choice in read) / calls,
        "adaptive": {"calls_saved": 1 - needed / calls, "same_answers": same},
    }  # fmt: skip


def count(ballots: Sequence[int | None]) -> dict[int, float]:
    votes: dict[int, float] = {}
    for option in itertools.compress(ballots, [ballot is not None for ballot in ballots]):
        votes[option] = votes.get(option, 0.0) + 1  # type: ignore[index, arg-type]
    return votes


if __name__ == "__main__":
    main()
