// The page's script: draws the charts in the colours of the theme, and lets a person walk through the clusters.
// Text of the corpus is put in with textContent alone: nothing in it can become markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const nodes = data.nodes;
  const count = nodes.node.length;
  const rowOf = new Map(nodes.node.map((node, row) => [node, row]));
  const parents = new Set(nodes.parent);
  const children = new Map();
  nodes.parent.forEach((parent, row) => {
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(row);
  });
  const levels = [...new Set(nodes.level)].filter((level) => level > 0).sort((a, b) => a - b);
  const deepest = levels[levels.length - 1] || 0;
  const LISTED = 100;
  const LABELLED = 150;
  const COLOURS = ["sample", "second", "third", "less"]; // of specialists, as in the charts
  const FOLD = 6; // of what has no share at all: beyond the ends of the scale
  const state = { root: rowOf.get(0) ?? 0, level: deepest, whose: "after", area: "before", picked: null, words: "" };
  const views = new Map();

  const byId = (id) => document.getElementById(id);
  const percent = (share) => (share >= 0.9995 ? "100%" : share < 0.000005 ? "0%" : (100 * share).toFixed(share < 0.001 ? 3 : share < 0.1 ? 2 : 1) + "%");
  const whole = (number) => Math.round(number).toLocaleString("en");
  const element = (tag, text, more = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(more)) made.setAttribute(key, value);
    return made;
  };
  const title = (row) => (nodes.leaf[row] >= 0 ? `${nodes.leaf[row]}` : row === state0 ? "all" : `node ${nodes.node[row]}`);
  const state0 = rowOf.get(0) ?? 0;
  const isEnd = (row) => !parents.has(nodes.node[row]); // nothing of the map is below it

  // Which clusters are looked at.

  const below = (row) => {
    const found = [];
    const waiting = [row];
    while (waiting.length) {
      const next = waiting.pop();
      for (const child of children.get(nodes.node[next]) || []) {
        if (nodes.level[child] === state.level || isEnd(child)) found.push(child);
        if (nodes.level[child] < state.level) waiting.push(child);
      }
    }
    return found;
  };
  const shareOf = (row, which) => (which === "sample" ? nodes[sampleShown()][row] : nodes[which][row]);
  const sampleShown = () => (state.whose.startsWith("sample") ? state.whose : "sample0");
  const weight = (row) => {
    const before = nodes.before[row];
    const share = shareOf(row, state.whose);
    return before > 0 ? share / before : share > 0 ? Infinity : 0;
  };
  const fold = (row) => Math.max(-FOLD, Math.min(FOLD, Math.log2(weight(row))));
  const times = (row) => (Number.isFinite(weight(row)) ? `${weight(row).toPrecision(3)}×` : "no text in the corpus");
  const matches = (row) => !state.words || state.words.split(/\s+/).every((word) => `${nodes.name[row]} ${nodes.words[row]}`.toLowerCase().includes(word));
  const shown = () => below(state.root).filter(matches);

  const mapRows = () => {
    const rows = shown();
    const sizes = rows.map((row) => shareOf(row, state.area)).sort((a, b) => b - a);
    const least = sizes[Math.min(LABELLED, sizes.length) - 1] ?? 0; // thousands of names are laid out anew with each turn of the wheel
    return rows.map((row) => ({
      row,
      x: nodes.x[row],
      y: nodes.y[row],
      size: shareOf(row, state.area),
      fold: fold(row),
      title: title(row),
      name: nodes.name[row] || "–",
      label: shareOf(row, state.area) >= least ? (nodes.name[row] || "").split(", ").slice(0, 2).join(", ") : "",
      before: nodes.before[row],
      sample: nodes[sampleShown()][row],
      after: nodes.after[row],
      times: times(row),
    }));
  };

  // Charts.

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const coloured = (value) => {
    if (typeof value === "string" && value.startsWith("$") && !value.startsWith("$schema")) return colour(value.slice(1)) || value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === "values" ? v : coloured(v)]));
    return value;
  };
  const config = (width) => ({
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    axis: {
      labelColor: colour("ink"), titleColor: colour("soft"), gridColor: colour("line"), domainColor: colour("line"), tickColor: colour("line"),
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", gridOpacity: 0.6,
    },
    axisY: { labelLimit: Math.max(90, Math.min(330, width * 0.42)) },
    legend: { labelColor: colour("ink"), titleColor: colour("soft"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", symbolSize: 80, columns: width < 480 ? 2 : 0 },
  });

  // Names on the map: Vega's own label layout, which leaves out those that would lie on each other.
  const labelled = (spec) => {
    const marks = spec.marks.find((mark) => mark.name === "marks");
    if (marks) {
      const box = (marks.marks || spec.marks);
      box.push({
        type: "text", from: { data: "marks" }, interactive: false,
        encode: { enter: { text: { field: "datum.label" }, fontSize: { value: 11 }, fill: { value: colour("ink") }, stroke: { value: colour("surface") }, strokeWidth: { value: 0 } } },
        transform: [{ type: "label", size: [{ signal: "width" }, { signal: "height" }], anchor: ["right", "left", "top", "bottom"], offset: [2], sort: { field: "datum.datum.size", order: "descending" }, padding: 0 }],
      });
    }
    return spec;
  };

  const draw = async (figure) => {
    const place = figure.dataset.chart;
    const spec = data.charts[place];
    if (!spec) { figure.hidden = true; return; }
    const ready = coloured(spec);
    const isMap = place === "map";
    if (isMap && !shown().length) { // a scale of nothing has no ends
      views.get(place)?.finalize();
      views.delete(place);
      figure.replaceChildren(element("p", "No cluster here has these words.", { class: "note" }));
      return;
    }
    const width = Math.max(200, (figure.clientWidth || 600) - (isMap ? 16 : 0));
    ready.width = width;
    ready.autosize = { type: isMap ? "fit" : "fit-x", contains: "padding" };
    if (isMap) {
      ready.data = { name: "nodes", values: mapRows() };
      const room = Math.min(1, Math.sqrt(150 / Math.max(1, ready.data.values.length))); // thousands of discs are smaller ones
      ready.encoding.size.scale.range = ready.encoding.size.scale.range.map((area) => Math.max(4, area * room));
      ready.height = Math.round(Math.min(560, Math.max(340, width * 0.8)));
    }
    const result = await vegaEmbed(figure, ready, {
      mode: "vega-lite", actions: false, renderer: isMap && count > 600 ? "canvas" : "svg", config: config(width),
      tooltip: { theme: colour("paper").toLowerCase() === "#ffffff" ? "light" : "dark" },
      ...(isMap ? { patch: labelled } : {}),
    });
    const before = views.get(place);
    if (before) before.finalize();
    views.set(place, result);
    if (isMap) {
      result.view.addEventListener("click", (event, item) => {
        const datum = item && (item.datum?.row !== undefined ? item.datum : item.datum?.datum);
        if (datum && datum.row !== undefined) pick(datum.row);
      });
    }
  };
  const drawAll = () => Promise.all([...document.querySelectorAll("figure[data-chart]")].map(draw));
  const drawMap = () => draw(document.querySelector('figure[data-chart="map"]'));

  // The panel: one cluster.

  const bar = (label, share, colourName, extra) => {
    const row = element("tr");
    row.append(element("th", label, { scope: "row" }), element("td", percent(share), { class: "n" }), element("td", extra || "", { class: "note" }));
    row.firstChild.style.borderLeft = `4px solid ${colour(colourName)}`;
    return row;
  };
  const excerptsOf = (row) => {
    const own = data.excerpts[nodes.node[row]];
    if (own) return own;
    const found = {}; // of a node further up: one of each below it
    const waiting = [row];
    while (waiting.length) {
      const next = waiting.shift();
      for (const child of children.get(nodes.node[next]) || []) waiting.push(child);
      for (const [whose, texts] of Object.entries(data.excerpts[nodes.node[next]] || {})) {
        found[whose] = found[whose] || [];
        if (found[whose].length < 5) found[whose].push(texts[0]);
      }
    }
    return found;
  };
  const after = data.drawn ? "new corpus" : "asked for";

  const show = (row) => {
    const panel = byId("panel");
    panel.replaceChildren();
    panel.append(element("h3", `${nodes.leaf[row] >= 0 ? "Cluster " : ""}${title(row)}: ${nodes.name[row] || "–"}`));
    if (nodes.words[row]) panel.append(element("p", nodes.words[row], { class: "note" }));
    panel.append(element("p", `${whole(nodes.windows[row])} windows, ${whole(nodes.tokens[row])} tokens` + (nodes.leaf[row] < 0 ? `, ${whole(nodes.leaves[row])} clusters` : ""), { class: "note" }));
    const table = element("table", null, { class: "shares" });
    const body = element("tbody");
    body.append(bar("corpus", nodes.before[row], "before"));
    data.specialists.forEach((name, i) => {
      const low = nodes[`low${i}`][row];
      const claim = nodes[`claim${i}`][row];
      const said = low === null || !claim ? "" : `, ${percent(low)} to ${percent(nodes[`high${i}`][row])}`;
      body.append(bar(name, nodes[`sample${i}`][row], COLOURS[i % COLOURS.length], `asks for ${percent(claim)}${said}`));
    });
    if (data.drawn) body.append(bar("asked for", nodes.asked[row], "line", "of the new corpus"));
    body.append(bar(after, nodes.after[row], "after", data.drawn ? `${whole(nodes.drawn[row])} tokens` : ""));
    table.append(body);
    panel.append(table);
    const heard = data.specialists.map((name, i) => `${whole(nodes[`heard${i}`][row])} windows of ${name}'s sample`);
    panel.append(element("p", heard.join(", ") + ".", { class: "note" }));
    if (data.drawn) {
      const facts = [`${nodes.epochs[row].toFixed(2)} passes over its text`, `${whole(nodes.fresh[row])} tokens are no repeats`];
      if (nodes.rewritten[row]) facts.push(`${whole(nodes.rewritten[row])} are rewrites`);
      if (nodes.missing && nodes.missing[row] >= 1) facts.push(`${whole(nodes.missing[row])} tokens fewer than asked for`);
      panel.append(element("p", facts.join("; ") + ".", { class: "note" }));
    }
    if (!isEnd(row)) {
      const inside = element("button", "Look inside", { type: "button" });
      inside.addEventListener("click", () => enter(row));
      panel.append(inside);
    }
    const texts = excerptsOf(row);
    const kinds = [["g", "Corpus"], ["d", "Drawn"], ...data.specialists.map((name, i) => [`s${i}`, name])].filter(([key]) => texts[key]?.length);
    const tabs = element("div", null, { class: "tabs", role: "group", "aria-label": "Text of" });
    const place = element("div");
    const fill = (key) => {
      place.replaceChildren();
      for (const [text, id, window_, copies] of texts[key]) {
        place.append(element("q", text, { dir: "auto" }));
        place.append(element("p", `${id}, window ${window_}${key === "d" || (key === "g" && data.drawn) ? `, ${copies === 1 ? "1 copy" : copies + " copies"} drawn` : ""}`, { class: "note" }));
      }
      for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab.dataset.key === key));
    };
    for (const [key, label] of kinds) {
      const tab = element("button", label, { type: "button", "data-key": key });
      tab.addEventListener("click", () => fill(key));
      tabs.append(tab);
    }
    panel.append(tabs, place);
    if (kinds.length) fill(data.drawn && texts.d ? "d" : kinds[0][0]);
  };

  const pick = (row, { focus = false } = {}) => {
    state.picked = row;
    show(row);
    if (focus) {
      byId("map").scrollIntoView();
      byId("panel").focus({ preventScroll: true });
    }
  };

  // Walking through the tree.

  const enter = (row) => {
    state.root = row;
    const inside = levels.filter((level) => level > nodes.level[row]);
    if (!inside.includes(state.level)) state.level = inside[0];
    if (row !== state0) state.level = Math.max(nodes.level[row] + 1, Math.min(state.level, deepest));
    refresh();
    show(row);
  };
  const path = () => {
    const line = byId("path");
    line.replaceChildren();
    const above = [];
    for (let row = state.root; row !== undefined; row = rowOf.get(nodes.parent[row])) above.unshift(row);
    above.forEach((row, i) => {
      if (i) line.append(" › ");
      if (i === above.length - 1 && i) line.append(element("strong", `${title(row)}: ${nodes.name[row]}`));
      else if (i || above.length > 1) {
        const up = element("button", row === state0 ? "All clusters" : `${title(row)}: ${nodes.name[row]}`, { type: "button" });
        up.addEventListener("click", () => enter(row));
        line.append(up);
      }
    });
    const number = shown().length;
    line.append(element("span", ` ${whole(number)} ${state.level === deepest ? (number === 1 ? "cluster" : "clusters") : "groups of clusters"}`, { class: "note" }));
  };
  const levelButtons = () => {
    const place = byId("levels");
    place.replaceChildren();
    const inside = levels.filter((level) => level > nodes.level[state.root]);
    if (inside.length < 2) return;
    for (const level of inside) {
      const button = element("button", level === deepest ? "clusters" : `level ${level}`, { type: "button", "aria-pressed": String(level === state.level) });
      button.addEventListener("click", () => { state.level = level; refresh(); });
      place.append(button);
    }
  };
  const list = () => {
    const rows = shown().sort((a, b) => Math.abs(nodes.after[b] - nodes.before[b]) - Math.abs(nodes.after[a] - nodes.before[a]));
    const body = byId("list").tBodies[0];
    body.replaceChildren();
    for (const row of rows.slice(0, LISTED)) {
      const line = element("tr");
      const cell = element("td");
      const button = element("button", `${title(row)} ${nodes.name[row] || "–"}`, { type: "button", class: "cluster" });
      button.addEventListener("click", () => pick(row, { focus: true }));
      cell.append(button);
      line.append(cell, element("td", percent(nodes.before[row]), { class: "n" }));
      data.specialists.forEach((_, i) => line.append(element("td", percent(nodes[`sample${i}`][row]), { class: "n" })));
      line.append(element("td", percent(nodes.after[row]), { class: "n" }), element("td", times(row), { class: "n" }));
      body.append(line);
    }
    byId("more").textContent = rows.length > LISTED ? `${whole(rows.length - LISTED)} more: find them by their words, or look inside a group.` : "";
  };
  const refresh = () => { path(); levelButtons(); list(); return drawMap(); };

  // Start.

  document.querySelector(".controls").hidden = false;
  byId("whose").addEventListener("change", (event) => { state.whose = event.target.value; refresh(); });
  byId("area").addEventListener("change", (event) => { state.area = event.target.value; refresh(); });
  let typing;
  byId("find").addEventListener("input", (event) => {
    state.words = event.target.value.trim().toLowerCase();
    clearTimeout(typing);
    typing = setTimeout(refresh, 150);
  });
  for (const button of document.querySelectorAll("button.cluster[data-row]")) {
    button.addEventListener("click", () => pick(Number(button.dataset.row), { focus: true }));
  }
  byId("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
  let width = innerWidth;
  let resizing;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => { if (innerWidth !== width) { width = innerWidth; drawAll(); } }, 200);
  });
  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details:not(#all)")) one.open = true; });

  const most = shown().sort((a, b) => nodes.after[b] - nodes.before[b] - (nodes.after[a] - nodes.before[a]))[0];
  if (most !== undefined) pick(most);
  path();
  levelButtons();
  list();
  window.drawn = drawAll().then(() => { document.documentElement.dataset.ready = "true"; });
})();
