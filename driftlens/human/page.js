"use strict";
// One page for two uses: by itself answers stay in the browser and are downloaded as a file; from a server each answer
// is sent as soon as it is given, and the browser keeps what the server has not confirmed. All texts of models and
// users go in as text, never as markup.
(() => {
  const study = JSON.parse(document.getElementById("data").textContent);
  const byId = new Map(study.items.map((item) => [item.id, item]));
  const server = study.server || null; // {annotator, answers, comment}
  const $ = (id) => document.getElementById(id);
  const views = ["welcome", "judge", "finish"];
  const CHOICES = [["A", "A"], ["tie", "Tie"], ["B", "B"]];
  let state = null;
  let since = null; // when the pair on the screen was last begun to be looked at

  // ---- order of pairs and sides, from the study and the annotator alone -------------------------------------------
  function randomStream(text) {
    let seed = 2166136261; // FNV-1a
    for (const byte of new TextEncoder().encode(text)) seed = Math.imul(seed ^ byte, 16777619) >>> 0;
    return () => { // mulberry32
      seed = (seed + 0x6d2b79f5) >>> 0;
      let x = Math.imul(seed ^ (seed >>> 15), seed | 1);
      x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
      return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
    };
  }
  function shuffled(values, random) {
    const all = [...values];
    for (let at = all.length - 1; at > 0; at--) {
      const other = Math.floor(random() * (at + 1));
      [all[at], all[other]] = [all[other], all[at]];
    }
    return all;
  }
  function planFor(annotator) {
    const random = randomStream(`${study.study}\n${annotator.trim().toLowerCase()}`);
    const order = shuffled(study.items.map((item) => item.id), random);
    // As many pairs with the first text on the left as with the second.
    const sides = shuffled(order.map((_, at) => at % 2), random);
    return { order, shown: Object.fromEntries(order.map((id, at) => [id, sides[at] ? [1, 0] : [0, 1]])) };
  }

  // ---- what is kept ------------------------------------------------------------------------------------------------
  const SLOT = `driftlens-compare/${study.study}`;
  const slotOf = (annotator) => `${SLOT}/${server ? `${location.pathname}/` : ""}${annotator.trim().toLowerCase()}`;
  let storage = null;
  try {
    storage = window.localStorage;
    storage.setItem(`${SLOT}?`, "1");
    storage.removeItem(`${SLOT}?`);
  } catch { storage = null; }

  function stored(annotator) {
    try {
      const found = JSON.parse(storage.getItem(slotOf(annotator)));
      return found && found.study === study.study ? found : null;
    } catch { return null; }
  }
  function keep() {
    if (!storage || !state) return;
    try {
      storage.setItem(slotOf(state.annotator), JSON.stringify(state));
      if (!server) storage.setItem(SLOT, state.annotator);
    } catch { storage = null; } // full, or switched off meanwhile
  }
  function begun(annotator) {
    return {
      study: study.study, annotator, session: crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2),
      started: new Date().toISOString(), at: 0, answers: {}, comment: "", commentRevision: 0, confirmed: {},
      confirmedComment: 0, shortcuts: true, ...planFor(annotator),
    };
  }
  const unsavedHere = () => (server ? pending().length > 0 : !storage && state && Object.keys(state.answers).length > 0);
  window.addEventListener("beforeunload", (event) => { if (unsavedHere()) event.preventDefault(); });

  // ---- answers -----------------------------------------------------------------------------------------------------
  const answerOf = (id) => state.answers[id] || { choices: {}, seconds: 0, answered: null, revision: 0 };
  const rounded = (seconds) => Math.round(1000 * seconds) / 1000;
  const isDone = (id) => study.criteria.every((criterion) => answerOf(id).choices[criterion.name]);
  const nDone = () => state.order.filter(isDone).length;
  const current = () => state.order[state.at];

  function choose(criterion, choice) {
    const id = current(), before = answerOf(id);
    state.answers[id] = {
      ...before, choices: { ...before.choices, [criterion]: choice }, seconds: before.seconds + elapsed(),
      answered: new Date().toISOString(), revision: before.revision + 1,
    };
    changed();
  }
  function elapsed() {
    if (since === null) return 0;
    const now = performance.now(), seconds = (now - since) / 1000;
    since = document.hidden ? null : now;
    return seconds;
  }
  document.addEventListener("visibilitychange", () => {
    if ($("judge").hidden || !state) return;
    if (!document.hidden) { since = performance.now(); return; }
    const id = current();
    const seconds = elapsed();
    if (state.answers[id]) state.answers[id].seconds += seconds;
    since = null;
    keep();
  });
  function changed() {
    keep();
    if (server) flush();
    showSaved();
    showProgress();
  }

  // ---- the server --------------------------------------------------------------------------------------------------
  let sending = false, wait = 500, timer = null, refused = "";
  function pending() {
    if (!state) return [];
    const items = Object.keys(state.answers).filter((id) => state.answers[id].revision > (state.confirmed[id] || 0));
    return state.commentRevision > state.confirmedComment ? [...items, null] : items;
  }
  async function put(path, body) {
    const answer = await fetch(path, {
      method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), cache: "no-store",
    });
    if (answer.status >= 400 && answer.status < 500) refused = "The server does not accept answers from this link.";
    if (!answer.ok) throw new Error(String(answer.status));
    return (await answer.json()).revision;
  }
  async function flush() {
    if (sending || refused) return;
    sending = true;
    clearTimeout(timer);
    try {
      for (let left = pending(); left.length; left = pending()) {
        const id = left[0];
        if (id === null) {
          const revision = await put("comment", { revision: state.commentRevision, comment: state.comment });
          state.confirmedComment = state.commentRevision = Math.max(revision, state.commentRevision);
        } else {
          const { revision, choices, seconds, answered } = state.answers[id];
          const confirmed = await put(`answers/${id}`, { revision, choices, seconds: rounded(seconds), answered, shown: state.shown[id] });
          state.confirmed[id] = Math.max(confirmed, revision);
          // Another tab was ahead: what is on this screen is newer, so it gets a newer number.
          if (confirmed > revision) state.answers[id].revision = Math.max(state.answers[id].revision, confirmed) + 1;
        }
        wait = 500;
        keep();
        showSaved();
      }
    } catch {
      timer = setTimeout(flush, wait);
      wait = Math.min(2 * wait, 10000);
    } finally {
      sending = false;
      showSaved();
    }
  }
  window.addEventListener("online", () => { wait = 500; flush(); });
  function merged(local) {
    // What the server has, and on top of it what this browser has not got through yet.
    const found = local || begun(server.annotator);
    for (const [id, theirs] of Object.entries(server.answers)) {
      if (!byId.has(id)) continue;
      const mine = found.answers[id];
      if (!mine || mine.revision <= theirs.revision) {
        found.answers[id] = { choices: theirs.choices, seconds: theirs.seconds, answered: theirs.answered, revision: theirs.revision };
        found.shown[id] = theirs.shown;
      }
      found.confirmed[id] = theirs.revision;
    }
    if (server.comment.revision >= found.commentRevision) {
      found.comment = server.comment.text;
      found.commentRevision = server.comment.revision;
    }
    found.confirmedComment = server.comment.revision;
    // A server that was set up anew does not have what it once confirmed.
    for (const id of Object.keys(found.confirmed)) if (!(id in server.answers)) found.confirmed[id] = 0;
    if (!local && Object.keys(found.answers).length) {
      const open = found.order.findIndex((id) => !study.criteria.every((each) => (found.answers[id] || { choices: {} }).choices[each.name]));
      found.at = open < 0 ? found.order.length : open;
    }
    return found;
  }

  // ---- what is shown -----------------------------------------------------------------------------------------------
  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }
  function show(view) {
    for (const name of views) $(name).hidden = name !== view;
    window.scrollTo(0, 0);
  }
  function factText(request) { return `${request.prompt} ${request.new}`; }

  function showPair({ focus = true } = {}) {
    if (state.at >= state.order.length) { showFinish(); return; }
    const item = byId.get(current());
    show("judge");
    since = document.hidden ? null : performance.now();
    $("place").textContent = `Pair ${state.at + 1} of ${state.order.length}`;
    $("request").replaceChildren(
      `${item.request.prompt} `, element("s", { textContent: item.request.true, title: "before the edit" }), " ",
      element("b", { textContent: item.request.new }),
    );
    for (const [side, at] of [["a", 0], ["b", 1]]) {
      const text = item.texts[state.shown[item.id][at]];
      $(`text-${side}`).replaceChildren(element("span", { className: "prompt", textContent: item.prompt }), text.trimEnd());
    }
    $("questions").replaceChildren(...study.criteria.map((criterion) => question(criterion, item)));
    $("problem").textContent = "";
    $("back").disabled = state.at === 0;
    showProgress();
    showSaved();
    if (focus) $("place").focus({ preventScroll: true });
  }
  function question(criterion, item) {
    const hint = criterion.hint.replace("{fact}", () => `“${factText(item.request)}”`).replace("{new}", () => item.request.new);
    const labels = CHOICES.map(([value, label]) => {
      const input = element("input", {
        type: "radio", name: criterion.name, value, checked: answerOf(item.id).choices[criterion.name] === value,
      });
      input.setAttribute("aria-label", value === "tie" ? "Tie" : `Text ${value}`);
      input.addEventListener("change", () => { choose(criterion.name, value); $("problem").textContent = ""; });
      return element("label", {}, input, element("span", { textContent: label, ariaHidden: "true" }));
    });
    const asked = element("div", { className: "asked", id: `asked-${criterion.name}` },
      element("b", { textContent: criterion.question }), element("span", { className: "hint", textContent: hint }));
    const group = element("div", { className: "choices" }, ...labels);
    const made = element("div", { className: "question", id: `question-${criterion.name}` }, asked, group);
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-labelledby", asked.id);
    group.addEventListener("focusin", markQuestion);
    return made;
  }
  const firstOpen = () => study.criteria.find((criterion) => !answerOf(current()).choices[criterion.name]);
  function activeQuestion() {
    const focused = document.activeElement && document.activeElement.closest(".question");
    return (focused && study.criteria.find((criterion) => focused.id === `question-${criterion.name}`)) || firstOpen();
  }
  function markQuestion() {
    const active = activeQuestion();
    for (const criterion of study.criteria) {
      $(`question-${criterion.name}`).classList.toggle("current", criterion === active);
    }
  }
  function showProgress() {
    if ($("judge").hidden) return;
    Object.assign($("progress"), { max: state.order.length, value: nDone() });
    $("next").textContent = state.reviewing || state.at === state.order.length - 1 ? "Finish" : "Next";
    $("next").setAttribute("aria-disabled", String(!isDone(current())));
    markQuestion();
    $("keys").replaceChildren(...(state.shortcuts
      ? [element("kbd", { textContent: "A" }), " ", element("kbd", { textContent: "T" }), " ", element("kbd", { textContent: "B" }),
        " answer · ", element("kbd", { textContent: "Enter" }), " next · ", element("kbd", { textContent: "Backspace" }), " back"]
      : []));
  }
  function showSaved() {
    const left = server ? pending().length : 0;
    const text = server
      ? refused || (left ? "Not saved yet – trying again" : "Saved")
      : storage ? "Kept in this browser" : "Not kept: do not close this page";
    const trouble = Boolean(refused) || (server ? left > 0 && wait > 500 : !storage);
    const quiet = server ? left > 0 && wait <= 500 && !refused : false;
    $("saved").textContent = quiet ? "Saving …" : text;
    $("saved").classList.toggle("unsaved", trouble);
    $("sent").textContent = server && !$("finish").hidden ? (left || refused ? text : "All answers are saved. You can close this page.") : "";
    $("partial").replaceChildren();
    if (!server && state && nDone()) {
      const link = element("button", { type: "button", className: "plain", textContent: "Download the answers given so far" });
      link.addEventListener("click", download);
      $("partial").append(link);
    }
  }
  function move(by) {
    const id = current();
    if (state.answers[id]) state.answers[id].seconds += elapsed();
    state.at = Math.max(0, state.at + by);
    keep();
    showPair();
  }
  function next() {
    const open = firstOpen();
    if (open) {
      $("problem").textContent = `Still open: ${open.title.toLowerCase()}. Choose A, B or tie.`;
      focusQuestion(open);
      return;
    }
    // Somebody who came from the overview to one pair goes back there.
    move(state.reviewing ? state.order.length - state.at : 1);
  }
  function focusQuestion(criterion) {
    const inputs = [...document.querySelectorAll(`input[name="${criterion.name}"]`)];
    (inputs.find((input) => input.checked) || inputs[0]).focus();
  }

  function showFinish() {
    show("finish");
    since = null;
    state.reviewing = nDone() === state.order.length;
    const open = state.order.length - nDone();
    $("finished-by").textContent = state.annotator;
    $("thanks").textContent = open ? `${open} ${open === 1 ? "pair is" : "pairs are"} still open` : "Done – thank you!";
    $("handing-over").textContent = server
      ? "You can still change your answers with this link."
      : "Download your answers and send the file to the person who invited you. You can still change them and download again.";
    $("download-row").hidden = Boolean(server);
    $("comment").value = state.comment;
    $("overview").replaceChildren(...state.order.map((id, at) => {
      const choices = study.criteria.map((criterion) => {
        const choice = answerOf(id).choices[criterion.name];
        return choice ? (choice === "tie" ? "Tie" : choice) : "–";
      });
      const button = element("button", { type: "button", className: isDone(id) ? "" : "open" },
        element("b", { textContent: `Pair ${at + 1}` }), choices.join(" · "));
      button.addEventListener("click", () => { state.at = at; state.reviewing = true; keep(); showPair(); });
      return element("li", {}, button);
    }));
    showSaved();
    $("thanks").focus({ preventScroll: true });
  }

  // ---- the file ----------------------------------------------------------------------------------------------------
  function answersDocument() {
    return {
      format: "driftlens-answers-1", study: study.study, annotator: state.annotator, session: state.session,
      started: state.started, exported: new Date().toISOString(), comment: state.comment,
      answers: state.order.filter((id) => state.answers[id]).map((id) => ({
        item: id, shown: state.shown[id], choices: state.answers[id].choices,
        seconds: rounded(state.answers[id].seconds), answered: state.answers[id].answered,
      })),
    };
  }
  function download() {
    const safe = state.annotator.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") || "annotator";
    const file = new Blob([`${JSON.stringify(answersDocument(), null, 1)}\n`], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(file), download: `answers-${safe}.json` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    $("downloaded").textContent = `Downloaded ${link.download} at ${new Date().toLocaleTimeString()}.`;
  }

  // ---- what is pressed ---------------------------------------------------------------------------------------------
  const KEYS = { a: "A", t: "tie", b: "B" };
  document.addEventListener("keydown", (event) => {
    if ($("judge").hidden || $("instructions").open || !state.shortcuts) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const choice = KEYS[event.key.toLowerCase()];
    if (choice) {
      const criterion = activeQuestion() || study.criteria[study.criteria.length - 1];
      const input = document.querySelector(`input[name="${criterion.name}"][value="${choice}"]`);
      input.checked = true;
      choose(criterion.name, choice);
      $("problem").textContent = "";
      const open = firstOpen();
      if (open) focusQuestion(open); else $("next").focus();
    } else if (event.key === "Enter" && !event.target.closest("button, a")) {
      next();
    } else if (event.key === "Backspace" && state.at > 0) {
      move(-1);
    } else {
      return;
    }
    event.preventDefault();
  });
  $("next").addEventListener("click", next);
  $("back").addEventListener("click", () => move(-1));
  $("download").addEventListener("click", download);
  $("comment").addEventListener("input", () => {
    state.comment = $("comment").value;
    state.commentRevision += 1;
    keep();
    if (server) { clearTimeout(timer); timer = setTimeout(flush, 600); }
    showSaved();
  });
  $("help").addEventListener("click", () => { $("shortcuts").checked = state.shortcuts; showSaved(); $("instructions").showModal(); });
  $("shortcuts").addEventListener("change", () => { state.shortcuts = $("shortcuts").checked; keep(); showProgress(); });
  $("questions").addEventListener("submit", (event) => event.preventDefault());
  $("start").addEventListener("submit", (event) => {
    event.preventDefault();
    const annotator = server ? server.annotator : $("name").value.trim();
    if (!annotator) { $("name").focus(); return; }
    state = server ? state : stored(annotator) || begun(annotator);
    keep();
    if (server) flush();
    showPair();
  });

  // ---- beginning ---------------------------------------------------------------------------------------------------
  show("welcome");
  $("keeping").textContent = server
    ? "Your answers are saved as you give them. You can close the page and go on later with the same link."
    : "Your answers are kept in this browser as you give them, so you can close the page and go on later. At the end you download them as a file; nothing is sent anywhere.";
  if (!storage && !server) $("keeping").textContent = "This browser keeps nothing for this page, so please answer all pairs in one go. At the end you download your answers as a file; nothing is sent anywhere.";
  if (server) {
    $("who").hidden = true;
    $("name").required = false;
    state = merged(stored(server.annotator));
    keep();
    flush();
  } else {
    const last = storage && storage.getItem(SLOT);
    if (last && stored(last)) $("name").value = last;
  }
  function invite() {
    const found = server ? state : storage && $("name").value.trim() ? stored($("name").value) : null;
    const before = state;
    if (found) state = found;
    const done = found ? nDone() : 0;
    state = before;
    $("begin").textContent = done ? "Go on" : "Start";
    $("resume").hidden = !done;
    $("resume").textContent = done ? `Welcome back, ${found.annotator}: ${done} of ${study.items.length} pairs are answered.` : "";
  }
  $("name").addEventListener("input", invite);
  invite();
  const returning = server ? Object.keys(state.answers).length > 0 : Boolean(storage && storage.getItem(SLOT) && stored(storage.getItem(SLOT)));
  if (returning) {
    // Somebody who comes back wants to go on, not to read the instructions again.
    const lead = $("welcome").querySelector(".lead");
    lead.after($("start"), $("resume"), $("keeping"));
  }
})();
