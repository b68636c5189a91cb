"use strict";
(async () => {
  const at = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const packed = Uint8Array.from(atob(at("packed").textContent.trim()), (c) => c.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const { models, trials, questions } = JSON.parse(await new Response(plain).text());
  const PAGE = 20;
  let shown = PAGE;

  const option = (select, value, text) => {
    const node = make("option", "", text);
    node.value = value;
    select.append(node);
  };
  trials.forEach(([task, strategy], i) => option(at("trial"), String(i), `${task} · ${strategy}`));
  [...new Set(questions.map((q) => q.s))].filter(Boolean).sort().forEach((s) => option(at("subject"), s, s));
  if (!questions.some((q) => q.f)) at("outcome").querySelector("[value=flagged]").remove();
  if (models.length < 2) at("outcome").querySelector("[value=differ]").remove();

  const right = (q, a) => a.p === 1 && a.v === (q.b ? 1 : 0);
  const differs = (q) => new Set(q.a.map((a) => a.v)).size > 1;
  const outcomes = {
    "": () => true,
    differ: differs,
    right: (q) => q.a.every((a) => right(q, a)),
    wrong: (q) => q.a.every((a) => !right(q, a)),
    unreadable: (q) => q.a.some((a) => a.p === 0),
    flagged: (q) => q.f !== "",
  };
  questions.forEach((q) => { q.all = [q.q, q.x, q.g, ...q.a.map((a) => a.r)].join("\n").toLowerCase(); });

  const answer = (q, a) => {
    const box = make("div", "reply");
    const head = make("h3", "", models[a.m] + " ");
    const exact = a.v === 0 || a.v === 1;
    const good = a.p === 1 && exact ? right(q, a) : null;
    const text = a.p === 0 ? "✗ not readable" : exact ? (good ? "✓ " : "✗ ") + (a.c ? `chose ${a.c}` : a.v) : String(a.v);
    head.append(make("span", "mark " + (a.p === 0 || good === false ? "worse" : good ? "better" : "unclear"), text));
    box.append(head, make("p", "", a.r || (a.c ? `(scored: ${a.c})` : "(nothing)")));
    const cost = `${a.k[0]} tokens read, ${a.k[1]} written` + (a.k[2] ? `, ${a.k[2]} s` : "") + (a.n ? ` · ${a.n}` : "");
    box.append(make("p", "small", cost));
    return box;
  };
  const item = (q) => {
    const node = make("details");
    const head = make("summary");
    head.append(make("span", "tag", trials[q.t].join(" · ")));
    head.append(" " + (q.x.length > 110 ? q.x.slice(0, 110) + "…" : q.x).replace(/\s+/g, " ") + " ");
    if (differs(q)) head.append(make("span", "tag differs", "models differ"));
    if (q.a.some((a) => a.p === 0)) head.append(make("span", "tag", "not readable"));
    if (q.f) head.append(make("span", "tag differs", "flagged"));
    node.append(head);
    node.addEventListener("toggle", () => {
      if (!node.open || node.childElementCount > 1) return;
      node.append(make("p", "question", q.x));
      if (q.g) node.append(make("p", "small", `Right: ${q.g}`));
      if (q.f) node.append(make("p", "small", `Flagged: ${q.f}`));
      const replies = make("div", "replies");
      q.a.forEach((a) => replies.append(answer(q, a)));
      node.append(replies, make("p", "files", q.q + (q.s ? ` · ${q.s}` : "")));
    });
    return node;
  };
  const draw = () => {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const trial = at("trial").value, subject = at("subject").value, outcome = outcomes[at("outcome").value];
    const found = questions.filter((q) =>
      (trial === "" || q.t === Number(trial)) && (subject === "" || q.s === subject) && outcome(q) && words.every((w) => q.all.includes(w)));
    at("count").textContent = `${found.length.toLocaleString("en")} of ${questions.length.toLocaleString("en")} questions`;
    at("found").replaceChildren(...found.slice(0, shown).map(item));
    at("more").hidden = found.length <= shown;
  };
  const again = () => { shown = PAGE; draw(); };
  at("search").addEventListener("input", again);
  ["trial", "subject", "outcome"].forEach((id) => at(id).addEventListener("change", again));
  at("more").addEventListener("click", () => { shown += PAGE; draw(); });
  at("browser").hidden = false;
  draw();
})();
