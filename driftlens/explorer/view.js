"use strict";
/* Draws the explorer in `root`, a document or a shadow root that holds view.html.
 *
 * `setup` names all choices. `choice` is the first one: indexes of record, prompt, gamma, module, window and target,
 * and a cell [token, layer] and a head [head, layer], where null is the strongest. `ask(record, prompt, gamma, window)`
 * returns the numbers of a choice or a promise of them, and `publish(choice)` hears of every choice. */
function explorer(root, setup, choice, ask, publish = () => {}) {
  const $ = (id) => root.getElementById(id);
  const state = { ...choice };
  let shown = null; // the numbers of the current choice
  let drawn = null; // the choice that they belong to

  // ---- numbers ----
  const unpacked = new Map();
  function unpack(text) {
    if (!unpacked.has(text)) {
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      unpacked.set(text, Float64Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) / 65535));
    }
    return unpacked.get(text);
  }
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
  const plain = (value) => value.toFixed(3);

  // ---- elements ----
  function element(tag, options = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(options)) {
      if (name === "class") made.className = value;
      else if (value !== null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }
  const visible = (text) => (text.trim() || text.replaceAll(" ", "␣")).replaceAll("\n", "⏎");
  const quoted = (text) => `“${visible(text)}”`;
  const words = (name) => name.replaceAll("_", " ");
  const span = (first, last) => (first === last ? `layer ${first}` : `layers ${first}–${last}`);

  // ---- what is looked at ----
  const exhibit = () => setup.exhibits[state.record];
  const prompt = () => exhibit().prompts[state.prompt];
  const targetName = () => ["o_true", "o_edit"][state.target];
  const moduleName = () => setup.modules[state.module][1];

  function layersOf(layer) {
    const window = setup.windows[state.window];
    return [Math.max(0, layer - Math.floor(window / 2)), Math.min(setup.layers, layer + Math.ceil(window / 2)) - 1];
  }

  // Of a cell: [o_true, o_edit, candidates …] with the substitution.
  function substituted(token, layer) {
    const values = unpack(shown.grid);
    const width = 2 + shown.candidates.length;
    const start = ((state.module * shown.tokens.length + token) * setup.layers + layer) * width;
    return values.subarray(start, start + width);
  }
  function effects() {
    const before = unpack(shown.vanilla)[state.target];
    return shown.tokens.map((_, token) =>
      Array.from({ length: setup.layers }, (_, layer) => substituted(token, layer)[state.target] - before));
  }
  // Attention of the last token, [vanilla, edited] by head and token.
  function attention(layer, head) {
    const n = shown.tokens.length;
    const start = (layer * setup.heads + head) * n;
    return [shown.attention_unedited, shown.attention_edited].map((packed) => unpack(packed).subarray(start, start + n));
  }
  // How much more (after − before) each head looks at the edited subject's last token; without one, how much it moved.
  function drifts() {
    const at = shown.subject;
    return Array.from({ length: setup.heads }, (_, head) =>
      Array.from({ length: setup.layers }, (_, layer) => {
        const [before, after] = attention(layer, head);
        if (at >= 0) return after[at] - before[at];
        return before.reduce((sum, value, token) => sum + Math.abs(after[token] - value), 0) / 2;
      }));
  }
  function strongest(grid) {
    let best = [0, 0];
    grid.forEach((line, row) => line.forEach((value, column) => {
      if (Math.abs(value) > Math.abs(grid[best[0]][best[1]])) best = [row, column];
    }));
    return best;
  }

  // ---- maps ----
  function drawMap(table, grid, labels, chosen, describe, choose) {
    const limit = Math.max(0.01, ...grid.flat().map(Math.abs));
    const focused = table.contains(root.activeElement);
    const every = setup.layers > 16 ? 4 : 1;
    const head = element("tr", {}, element("th", { scope: "col", class: "corner" }, "layer"));
    for (let layer = 0; layer < setup.layers; layer++) {
      const marked = shown.layers.includes(layer);
      const label = marked || layer % every === 0 ? String(layer) : "";
      head.append(element("th", { scope: "col", class: marked ? "edited" : "", title: marked ? "edited layer" : null }, label));
    }
    const body = grid.map((line, row) => {
      const [text, bold, hint] = labels[row];
      const cells = line.map((value, column) => {
        const share = Math.min(1, Math.abs(value) / limit);
        const tint = `rgb(var(--${value < 0 ? "fall" : "rise"}))`;
        const colour = share < 0.004 ? null : `background-color:color-mix(in srgb, ${tint} ${(100 * share).toFixed(1)}%, var(--empty))`;
        const here = row === chosen[0] && column === chosen[1];
        const name = describe(row, column, value);
        const options = { role: "gridcell", "aria-selected": String(here), tabindex: here ? "0" : "-1", "aria-label": name, title: name, style: colour };
        return element("td", { ...options, "data-row": row, "data-column": column });
      });
      return element("tr", {}, element("th", { scope: "row", class: bold ? "subject" : "", title: hint }, text), ...cells);
    });
    const width = Math.max(11, Math.min(42, Math.floor(430 / setup.layers)));
    table.style.setProperty("--cell", `max(11px, min(${width}px, calc((100cqw - 150px) / ${setup.layers})))`);
    table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
    if (focused) table.querySelector('[tabindex="0"]').focus({ preventScroll: true });
    table.onclick = (event) => {
      const cell = event.target.closest("td[data-row]");
      if (cell) { choose([Number(cell.dataset.row), Number(cell.dataset.column)]); table.querySelector('[tabindex="0"]').focus(); }
    };
    table.onkeydown = (event) => {
      const [row, column] = chosen;
      const moves = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1], Home: [row, 0], End: [row, setup.layers - 1] };
      const next = moves[event.key];
      if (!next) return;
      event.preventDefault();
      if (grid[next[0]] && next[1] >= 0 && next[1] < setup.layers) choose(next);
    };
    return limit;
  }
  function drawScale(place, limit) {
    place.replaceChildren(`−${limit.toFixed(2)}`, element("i"), `+${limit.toFixed(2)}`);
  }

  // ---- sections ----
  function drawHeader() {
    const { fact } = exhibit();
    $("setup").textContent = `· ${setup.model}, ${setup.layers} layers · ${exhibit().name}`;
    $("fact").replaceChildren(`${fact.text} `, element("s", {}, fact.true), " ", element("em", {}, fact.new));
    const [before, after] = [unpack(shown.vanilla), unpack(shown.edited)];
    const change = (at) => element("b", {}, `${plain(before[at])} → ${plain(after[at])}`);
    $("probabilities").replaceChildren(
      `On this prompt the edit changes P(${prompt().answers[0]}) `, change(0), ` and P(${prompt().answers[1]}) `, change(1), ".");
  }
  function drawGrid() {
    const grid = effects();
    const [token, layer] = state.cell ?? strongest(grid);
    const labels = shown.tokens.map((text, at) => [visible(text), shown.roles[at].endsWith("subject token") || shown.roles[at] === "middle subject tokens", shown.roles[at]]);
    const before = unpack(shown.vanilla)[state.target];
    const limit = drawMap($("grid"), grid, labels, [token, layer],
      (row, column, value) => `token ${quoted(shown.tokens[row])}, ${shown.roles[row]}, ${span(...layersOf(column))}: P(${targetName()}) ${plain(before)} → ${plain(before + value)}, ${signed(value)}`,
      (cell) => { state.cell = cell; redraw(); });
    drawScale($("grid-scale"), limit);
    $("grid-note").textContent = `Change of P(${targetName()} = ${prompt().answers[state.target]}) when the edited model's ${moduleName()} replaces the unedited model's. Bold: the edited subject; underlined: the edited layer.`;
    const value = grid[token][layer];
    const whole = unpack(shown.edited)[state.target] - before;
    const share = Math.abs(whole) < 0.01 ? "" : ` That is ${Math.round(100 * value / whole)}\u00a0% of what the whole edit changes (${signed(whole)}).`;
    $("finding").replaceChildren(`The ${moduleName()} at ${quoted(shown.tokens[token])}, ${span(...layersOf(layer))}: `,
      element("b", {}, `${plain(before)} → ${plain(before + value)}`), ` (${signed(value)}).${share}`);
    drawNext(token, layer);
  }
  function drawNext(token, layer) {
    const columns = [unpack(shown.vanilla), unpack(shown.edited), substituted(token, layer)];
    const kinds = ["", "edit", "cell"];
    const row = (name, pick, kind) => element("tr", { class: kind }, element("td", { title: name.textContent }, name),
      ...columns.map((values, at) => {
        const value = Math.max(0, Math.min(1, pick(values)));
        return element("td", { class: "p" }, plain(value), element("span", { class: `bar ${kinds[at]}` }, element("i", { style: `width:${(100 * value).toFixed(1)}%` })));
      }));
    const labelled = (text, tag) => element("span", {}, text, " ", element("span", { class: "tag" }, tag));
    const { candidates } = shown;
    const order = candidates.map((_, at) => at).sort((a, b) => Math.max(...columns.map((c) => c[2 + b])) - Math.max(...columns.map((c) => c[2 + a])));
    const others = (values) => 1 - values.slice(2).reduce((sum, value) => sum + value, 0);
    const head = ["", "unedited", "edited", "unedited + cell"].map((text) => element("th", { scope: "col" }, text));
    $("next").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {},
      row(labelled(prompt().answers[0], "o_true"), (v) => v[0], "answer"),
      row(labelled(prompt().answers[1], "o_edit"), (v) => v[1], "answer"),
      ...order.map((at, place) => row(labelled(visible(candidates[at]), "token"), (v) => v[2 + at], place ? "" : "gap")),
      row(labelled("all other tokens", ""), others, "")));
    $("next-note").textContent = `After “${prompt().text}” · cell: ${quoted(shown.tokens[token])}, ${span(...layersOf(layer))}`;
  }
  function drawHeads() {
    const grid = drifts();
    const [head, layer] = state.head ?? strongest(grid);
    const at = shown.subject;
    const what = at >= 0 ? `attention to ${quoted(shown.tokens[at])}` : "attention moved";
    const limit = drawMap($("heads"), grid, grid.map((_, n) => [`head ${n}`, false, null]), [head, layer],
      (row, column, value) => `layer ${column}, head ${row}: ${what} ${signed(value)}`, (cell) => { state.head = cell; redraw(); });
    drawScale($("heads-scale"), limit);
    $("heads-note").textContent = at >= 0
      ? `Change of the last token's attention to ${quoted(shown.tokens[at])}, the edited subject's last token. Blue: more attention after the edit.`
      : "This prompt does not name the edited subject; the colour shows how much of the attention moved.";
    drawAttention(layer, head);
  }
  function drawAttention(layer, head) {
    const [before, after] = attention(layer, head);
    const largest = Math.max(0.01, ...before, ...after);
    const bar = (value) => element("i", { style: `width:${(100 * value / largest).toFixed(1)}%` });
    $("attention").replaceChildren(element("tbody", {}, ...shown.tokens.map((text, token) =>
      element("tr", { title: shown.roles[token] },
        element("th", { scope: "row", class: shown.roles[token].includes("subject token") ? "subject" : "" }, visible(text)),
        element("td", {}, element("span", { class: "pair" }, bar(before[token]), bar(after[token]))),
        element("td", { class: "number" }, `${plain(before[token])} → ${plain(after[token])}`)))));
    $("attention-note").replaceChildren(`Layer ${layer}, head ${head}.`, element("span", { class: "key" }), "unedited", element("span", { class: "key after" }), "edited");
  }

  // ---- controls ----
  function segments(id, names, change) {
    const box = element("div", { class: "segments" }, ...names.map((name, at) => {
      const input = element("input", { type: "radio", name: id, value: at });
      input.addEventListener("change", () => change(at));
      return element("label", {}, input, element("span", {}, name));
    }));
    $(id).append(box);
  }
  function fill(select, names) {
    select.replaceChildren(...names.map(([value, text]) => element("option", { value }, text)));
  }
  const tasks = () => [...new Set(exhibit().prompts.map((one) => one.task))];
  function fillPrompts() {
    const { task } = prompt();
    fill($("task"), tasks().map((name) => [name, words(name)]));
    $("task").value = task;
    const own = exhibit().prompts.map((one, at) => [at, one]).filter(([, one]) => one.task === task);
    fill($("prompt"), own.map(([at, one]) => [at, one.text + (one.group ? ` (${words(one.group)})` : "")]));
    $("prompt").value = state.prompt;
  }
  function firstOf(task) {
    const at = exhibit().prompts.findIndex((one) => one.task === task);
    return at < 0 ? 0 : at;
  }
  function another(changes) {
    Object.assign(state, { cell: null, head: null }, changes);
    fillPrompts();
    draw();
  }
  function redraw() {
    publish({ ...state });
    drawHeader();
    drawGrid();
    drawHeads();
  }
  async function draw() {
    for (const id of ["gamma", "module", "window", "target"]) $(id).querySelectorAll("input")[state[id]].checked = true;
    const wanted = [state.record, state.prompt, state.gamma, state.window];
    if (String(wanted) !== drawn) {
      drawn = String(wanted);
      publish({ ...state });
      $("explorer").setAttribute("aria-busy", "true");
      $("finding").textContent = "Computing …";
      const found = await ask(...wanted);
      if (String(wanted) !== drawn) return; // another choice was made meanwhile
      $("explorer").removeAttribute("aria-busy");
      shown = found.error ? null : found;
      if (found.error) $("finding").textContent = found.error;
    }
    if (shown) redraw();
  }

  fill($("record"), setup.exhibits.map((one, at) => [at, `${one.name}: ${one.fact.subject}`]));
  $("record").value = state.record;
  $("record-choice").hidden = setup.exhibits.length < 2;
  $("record-choice").style.display = setup.exhibits.length < 2 ? "none" : "";
  $("record").addEventListener("change", (event) => {
    const { task } = prompt();
    state.record = Number(event.target.value);
    another({ prompt: firstOf(task) });
  });
  $("task").addEventListener("change", (event) => another({ prompt: firstOf(event.target.value) }));
  $("prompt").addEventListener("change", (event) => another({ prompt: Number(event.target.value) }));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  segments("gamma", setup.gammas, (at) => { state.gamma = at; draw(); });
  segments("module", setup.modules.map(([, name]) => name), (at) => { state.module = at; draw(); });
  segments("window", setup.windows.map(String), (at) => { state.window = at; draw(); });
  segments("target", ["o_true, the right answer", "o_edit, the edited one"], (at) => { state.target = at; draw(); });
  another({ cell: state.cell, head: state.head });

  return {
    choose(given) {
      Object.assign(state, given);
      $("record").value = state.record;
      fillPrompts();
      draw();
    },
  };
}
