"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  // What is chosen. A cell or a head of null is the strongest one.
  const state = { record: 0, prompt: 0, gamma: 0, module: 0, window: 0, target: 0, cell: null, head: null };

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
  const exhibit = () => data.exhibits[state.record];
  const prompt = () => exhibit().prompts[state.prompt];
  const edited = () => exhibit().edits[state.gamma][state.prompt];
  const targetName = () => ["o_true", "o_edit"][state.target];
  const moduleName = () => data.modules[state.module][1];

  function layersOf(layer) {
    const window = data.windows[state.window];
    return [Math.max(0, layer - Math.floor(window / 2)), Math.min(data.layers, layer + Math.ceil(window / 2)) - 1];
  }

  // Of a cell: [o_true, o_edit, candidates …] with the substitution.
  function substituted(token, layer) {
    const values = unpack(edited().grids[state.window]);
    const width = 2 + edited().candidates.length;
    const start = ((state.module * prompt().tokens.length + token) * data.layers + layer) * width;
    return values.subarray(start, start + width);
  }
  function effects() {
    const before = unpack(edited().vanilla)[state.target];
    return prompt().tokens.map((_, token) =>
      Array.from({ length: data.layers }, (_, layer) => substituted(token, layer)[state.target] - before));
  }
  // Attention of the last token, [vanilla, edited] by head and token.
  function attention(layer, head) {
    const n = prompt().tokens.length;
    const start = (layer * data.heads + head) * n;
    return [prompt().attention, edited().attention].map((packed) => unpack(packed).subarray(start, start + n));
  }
  // How much more (after − before) each head looks at the edited subject's last token; without one, how much it moved.
  function drifts() {
    const at = prompt().subject;
    return Array.from({ length: data.heads }, (_, head) =>
      Array.from({ length: data.layers }, (_, layer) => {
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
    const focused = table.contains(document.activeElement);
    const every = data.layers > 16 ? 4 : 1;
    const head = element("tr", {}, element("th", { scope: "col", class: "corner" }, "layer"));
    for (let layer = 0; layer < data.layers; layer++) {
      const marked = data.edited_layers.includes(layer);
      const shown = marked || layer % every === 0 ? String(layer) : "";
      head.append(element("th", { scope: "col", class: marked ? "edited" : "", title: marked ? "edited layer" : null }, shown));
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
    const width = Math.max(11, Math.min(42, Math.floor(430 / data.layers)));
    table.style.setProperty("--cell", `max(11px, min(${width}px, calc((100vw - 150px) / ${data.layers})))`);
    table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
    if (focused) table.querySelector('[tabindex="0"]').focus({ preventScroll: true });
    table.onclick = (event) => {
      const cell = event.target.closest("td[data-row]");
      if (cell) { choose([Number(cell.dataset.row), Number(cell.dataset.column)]); table.querySelector('[tabindex="0"]').focus(); }
    };
    table.onkeydown = (event) => {
      const [row, column] = chosen;
      const moves = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1], Home: [row, 0], End: [row, data.layers - 1] };
      const next = moves[event.key];
      if (!next) return;
      event.preventDefault();
      if (grid[next[0]] && next[1] >= 0 && next[1] < data.layers) choose(next);
    };
    return limit;
  }
  function drawScale(place, limit) {
    place.replaceChildren(`−${limit.toFixed(2)}`, element("i"), `+${limit.toFixed(2)}`);
  }

  // ---- sections ----
  function drawHeader() {
    const { fact } = exhibit();
    $("setup").textContent = `· ${data.model}, ${data.layers} layers · ${exhibit().name}`;
    $("fact").replaceChildren(`${fact.text} `, element("s", {}, fact.true), " ", element("em", {}, fact.new));
    const [before, after] = [unpack(edited().vanilla), unpack(edited().edited)];
    const change = (at) => element("b", {}, `${plain(before[at])} → ${plain(after[at])}`);
    $("probabilities").replaceChildren(
      `On this prompt the edit changes P(${prompt().answers[0]}) `, change(0), ` and P(${prompt().answers[1]}) `, change(1), ".");
  }
  function drawGrid() {
    const grid = effects();
    const [token, layer] = state.cell ?? strongest(grid);
    const labels = prompt().tokens.map((text, at) => [visible(text), prompt().roles[at].endsWith("subject token") || prompt().roles[at] === "middle subject tokens", prompt().roles[at]]);
    const before = unpack(edited().vanilla)[state.target];
    const limit = drawMap($("grid"), grid, labels, [token, layer],
      (row, column, value) => `token ${quoted(prompt().tokens[row])}, ${prompt().roles[row]}, ${span(...layersOf(column))}: P(${targetName()}) ${plain(before)} → ${plain(before + value)}, ${signed(value)}`,
      (cell) => { state.cell = cell; draw(); });
    drawScale($("grid-scale"), limit);
    $("grid-note").textContent = `Change of P(${targetName()} = ${prompt().answers[state.target]}) when the edited model's ${moduleName()} is put into the unedited model. Bold: the edited subject; underlined: the edited layer.`;
    const value = grid[token][layer];
    const whole = unpack(edited().edited)[state.target] - before;
    const share = Math.abs(whole) < 0.01 ? "" : ` That is ${Math.round(100 * value / whole)}\u00a0% of what the whole edit changes (${signed(whole)}).`;
    $("finding").replaceChildren(`The ${moduleName()} at ${quoted(prompt().tokens[token])}, ${span(...layersOf(layer))}: `,
      element("b", {}, `${plain(before)} → ${plain(before + value)}`), ` (${signed(value)}).${share}`);
    drawNext(token, layer);
  }
  function drawNext(token, layer) {
    const columns = [unpack(edited().vanilla), unpack(edited().edited), substituted(token, layer)];
    const kinds = ["", "edit", "cell"];
    const row = (name, pick, kind) => element("tr", { class: kind }, element("td", { title: name.textContent }, name),
      ...columns.map((values, at) => {
        const value = Math.max(0, Math.min(1, pick(values)));
        return element("td", { class: "p" }, plain(value), element("span", { class: `bar ${kinds[at]}` }, element("i", { style: `width:${(100 * value).toFixed(1)}%` })));
      }));
    const labelled = (text, tag) => element("span", {}, text, " ", element("span", { class: "tag" }, tag));
    const { candidates } = edited();
    const order = candidates.map((_, at) => at).sort((a, b) => Math.max(...columns.map((c) => c[2 + b])) - Math.max(...columns.map((c) => c[2 + a])));
    const others = (values) => 1 - values.slice(2).reduce((sum, value) => sum + value, 0);
    const head = ["", "unedited", "edited", "unedited + cell"].map((text) => element("th", { scope: "col" }, text));
    $("next").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {},
      row(labelled(prompt().answers[0], "o_true"), (v) => v[0], "answer"),
      row(labelled(prompt().answers[1], "o_edit"), (v) => v[1], "answer"),
      ...order.map((at, place) => row(labelled(visible(candidates[at]), "token"), (v) => v[2 + at], place ? "" : "gap")),
      row(labelled("all other tokens", ""), others, "")));
    $("next-note").textContent = `After “${prompt().text}” · cell: ${quoted(prompt().tokens[token])}, ${span(...layersOf(layer))}`;
  }
  function drawHeads() {
    const grid = drifts();
    const [head, layer] = state.head ?? strongest(grid);
    const at = prompt().subject;
    const what = at >= 0 ? `attention to ${quoted(prompt().tokens[at])}` : "attention moved";
    const limit = drawMap($("heads"), grid, grid.map((_, n) => [`head ${n}`, false, null]), [head, layer],
      (row, column, value) => `layer ${column}, head ${row}: ${what} ${signed(value)}`, (cell) => { state.head = cell; draw(); });
    drawScale($("heads-scale"), limit);
    $("heads-note").textContent = at >= 0
      ? `Change of the last token's attention to ${quoted(prompt().tokens[at])}, the edited subject's last token. Blue: it looks there more.`
      : "This prompt does not name the edited subject; the colour is how much attention moved at all.";
    drawAttention(layer, head);
  }
  function drawAttention(layer, head) {
    const [before, after] = attention(layer, head);
    const largest = Math.max(0.01, ...before, ...after);
    const bar = (value) => element("i", { style: `width:${(100 * value / largest).toFixed(1)}%` });
    $("attention").replaceChildren(element("tbody", {}, ...prompt().tokens.map((text, token) =>
      element("tr", { title: prompt().roles[token] },
        element("th", { scope: "row", class: prompt().roles[token].includes("subject token") ? "subject" : "" }, visible(text)),
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
  function draw() {
    drawHeader();
    drawGrid();
    drawHeads();
    for (const id of ["gamma", "module", "window", "target"]) $(id).querySelectorAll("input")[state[id]].checked = true;
  }

  fill($("record"), data.exhibits.map((one, at) => [at, `${one.name}: ${one.fact.subject}`]));
  $("record-choice").hidden = data.exhibits.length < 2;
  $("record-choice").style.display = data.exhibits.length < 2 ? "none" : "";
  $("record").addEventListener("change", (event) => {
    const { task } = prompt();
    state.record = Number(event.target.value);
    another({ prompt: firstOf(task) });
  });
  $("task").addEventListener("change", (event) => another({ prompt: firstOf(event.target.value) }));
  $("prompt").addEventListener("change", (event) => another({ prompt: Number(event.target.value) }));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  segments("gamma", data.gammas, (at) => { state.gamma = at; draw(); });
  segments("module", data.modules.map(([, name]) => name), (at) => { state.module = at; draw(); });
  segments("window", data.windows.map(String), (at) => { state.window = at; draw(); });
  segments("target", ["o_true, the right answer", "o_edit, the edited one"], (at) => { state.target = at; draw(); });
  state.window = data.start_window;
  state.module = data.modules.length - 1;
  another({ prompt: firstOf(data.start) });
})();
