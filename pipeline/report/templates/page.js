// The page's script: draws the charts in the colours of the theme, and lets a person browse the clusters.
// Text of the corpus is inserted only as textContent, so none of it can become markup.
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
  const MAX_LISTED = 100;
  const MAX_LABELS = 150;
  const COLOURS = ["sample", "second", "third", "less"]; // of specialists, as in the charts
  const MAX_LOG2_WEIGHT = 6; // of clusters without any share: beyond the ends of the colour scale
  const rootRow = rowOf.get(0) ?? 0;
  const state = { root: rootRow, level: deepest, colour: "after", area: "before", words: "" };
  const views = new Map();

  const byId = (id) => document.getElementById(id);
  const percent = (share) => (share >= 0.9995 ? "100%" : share < 0.000005 ? "0%" : (100 * share).toFixed(share < 0.001 ? 3 : share < 0.1 ? 2 : 1) + "%");
  const formatCount = (number) => Math.round(number).toLocaleString("en");
  const element = (tag, text, attributes = {}) => {
    const created = document.createElement(tag);
    if (text !== undefined && text !== null) created.textContent = text;
    for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
    return created;
  };
  const title = (row) => (nodes.leaf[row] >= 0 ? `${nodes.leaf[row]}` : row === rootRow ? "all" : `node ${nodes.node[row]}`);
  const isMapLeaf = (row) => !parents.has(nodes.node[row]); // no node of the map is below it

  // The clusters that are shown.

  const rowsBelow = (row) => {
    const found = [];
    const pending = [row];
    while (pending.length) {
      const next = pending.pop();
      for (const child of children.get(nodes.node[next]) || []) {
        if (nodes.level[child] === state.level || isMapLeaf(child)) found.push(child);
        if (nodes.level[child] < state.level) pending.push(child);
      }
    }
    return found;
  };
  const shareOf = (row, column) => (column === "sample" ? nodes[sampleColumn()][row] : nodes[column][row]);
  const sampleColumn = () => (state.colour.startsWith("sample") ? state.colour : "sample0");
  const weight = (row) => {
    const before = nodes.before[row];
    const share = shareOf(row, state.colour);
    return before > 0 ? share / before : share > 0 ? Infinity : 0;
  };
  const log2Weight = (row) => Math.max(-MAX_LOG2_WEIGHT, Math.min(MAX_LOG2_WEIGHT, Math.log2(weight(row))));
  const formatWeight = (row) => (Number.isFinite(weight(row)) ? `${weight(row).toPrecision(3)}×` : "not in the corpus");
  const matches = (row) => !state.words || state.words.split(/\s+/).every((word) => `${nodes.name[row]} ${nodes.terms[row]}`.toLowerCase().includes(word));
  const shownRows = () => rowsBelow(state.root).filter(matches);

  const mapRows = () => {
    const rows = shownRows();
    const sizes = rows.map((row) => shareOf(row, state.area)).sort((a, b) => b - a);
    const minLabelled = sizes[Math.min(MAX_LABELS, sizes.length) - 1] ?? 0; // each zoom lays out all labels again, so thousands would be slow
    return rows.map((row) => ({
      row,
      x: nodes.x[row],
      y: nodes.y[row],
      size: shareOf(row, state.area),
      log2_weight: log2Weight(row),
      title: title(row),
      name: nodes.name[row] || "–",
      label: shareOf(row, state.area) >= minLabelled ? (nodes.name[row] || "").split(", ").slice(0, 2).join(", ") : "",
      before: nodes.before[row],
      sample: nodes[sampleColumn()][row],
      after: nodes.after[row],
      weight: formatWeight(row),
    }));
  };

  // Charts.

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const resolveColours = (value) => {
    if (typeof value === "string" && value.startsWith("$") && !value.startsWith("$schema")) return colour(value.slice(1)) || value;
    if (Array.isArray(value)) return value.map(resolveColours);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === "values" ? v : resolveColours(v)]));
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

  // Names on the map, by Vega's label layout, which omits overlapping labels.
  const addLabels = (spec) => {
    const marks = spec.marks.find((mark) => mark.name === "marks");
    if (marks) {
      const target = (marks.marks || spec.marks);
      target.push({
        type: "text", from: { data: "marks" }, interactive: false,
        encode: { enter: { text: { field: "datum.label" }, fontSize: { value: 11 }, fill: { value: colour("ink") }, stroke: { value: colour("surface") }, strokeWidth: { value: 0 } } },
        transform: [{ type: "label", size: [{ signal: "width" }, { signal: "height" }], anchor: ["right", "left", "top", "bottom"], offset: [2], sort: { field: "datum.datum.size", order: "descending" }, padding: 0 }],
      });
    }
    return spec;
  };

  const draw = async (figure) => {
    const name = figure.dataset.chart;
    const spec = data.charts[name];
    if (!spec) { figure.hidden = true; return; }
    const resolved = resolveColours(spec);
    const isMap = name === "map";
    if (isMap && !shownRows().length) { // an empty scale has no domain
      views.get(name)?.finalize();
      views.delete(name);
      figure.replaceChildren(element("p", "No cluster here matches these words.", { class: "note" }));
      return;
    }
    const width = Math.max(200, (figure.clientWidth || 600) - (isMap ? 16 : 0));
    resolved.width = width;
    resolved.autosize = { type: isMap ? "fit" : "fit-x", contains: "padding" };
    if (isMap) {
      resolved.data = { name: "nodes", values: mapRows() };
      const scale = Math.min(1, Math.sqrt(150 / Math.max(1, resolved.data.values.length))); // many discs are drawn smaller
      resolved.encoding.size.scale.range = resolved.encoding.size.scale.range.map((area) => Math.max(4, area * scale));
      resolved.height = Math.round(Math.min(560, Math.max(340, width * 0.8)));
    }
    const result = await vegaEmbed(figure, resolved, {
      mode: "vega-lite", actions: false, renderer: isMap && count > 600 ? "canvas" : "svg", config: config(width),
      tooltip: { theme: colour("paper").toLowerCase() === "#ffffff" ? "light" : "dark" },
      ...(isMap ? { patch: addLabels } : {}),
    });
    views.get(name)?.finalize();
    views.set(name, result);
    if (isMap) {
      result.view.addEventListener("click", (event, item) => {
        const datum = item && (item.datum?.row !== undefined ? item.datum : item.datum?.datum);
        if (datum && datum.row !== undefined) select(datum.row);
      });
    }
  };
  const drawAll = () => Promise.all([...document.querySelectorAll("figure[data-chart]")].map(draw));
  const drawMap = () => draw(document.querySelector('figure[data-chart="map"]'));

  // The panel: one cluster.

  const shareRow = (label, share, colourName, note) => {
    const row = element("tr");
    row.append(element("th", label, { scope: "row" }), element("td", percent(share), { class: "n" }), element("td", note || "", { class: "note" }));
    row.firstChild.style.borderLeft = `4px solid ${colour(colourName)}`;
    return row;
  };
  const excerptsOf = (row) => {
    const own = data.excerpts[nodes.node[row]];
    if (own) return own;
    const found = {}; // an inner node: one excerpt of each node below it
    const pending = [row];
    while (pending.length) {
      const next = pending.shift();
      for (const child of children.get(nodes.node[next]) || []) pending.push(child);
      for (const [origin, texts] of Object.entries(data.excerpts[nodes.node[next]] || {})) {
        found[origin] = found[origin] || [];
        if (found[origin].length < 5) found[origin].push(texts[0]);
      }
    }
    return found;
  };
  const after = data.is_sampled ? "new corpus" : "target mixture";

  const showPanel = (row) => {
    const panel = byId("panel");
    panel.replaceChildren();
    panel.append(element("h3", `${nodes.leaf[row] >= 0 ? "Cluster " : ""}${title(row)}: ${nodes.name[row] || "–"}`));
    if (nodes.terms[row]) panel.append(element("p", nodes.terms[row], { class: "note" }));
    panel.append(element("p", `${formatCount(nodes.windows[row])} windows, ${formatCount(nodes.tokens[row])} tokens` + (nodes.leaf[row] < 0 ? `, ${formatCount(nodes.leaves[row])} clusters` : ""), { class: "note" }));
    const table = element("table", null, { class: "shares" });
    const body = element("tbody");
    body.append(shareRow("corpus", nodes.before[row], "before"));
    data.specialists.forEach((name, i) => {
      const low = nodes[`low${i}`][row];
      const share = nodes[`mixture${i}`][row];
      const interval = low === null || !share ? "" : ` (${percent(low)} to ${percent(nodes[`high${i}`][row])})`;
      body.append(shareRow(`sample of ${name}`, nodes[`sample${i}`][row], COLOURS[i % COLOURS.length], `in the mixture ${percent(share)}${interval}`));
    });
    if (data.is_sampled) body.append(shareRow("target mixture", nodes.target[row], "line", "before limits on repeats"));
    body.append(shareRow(after, nodes.after[row], "after", data.is_sampled ? `${formatCount(nodes.sampled_tokens[row])} tokens` : ""));
    table.append(body);
    panel.append(table);
    const sampleWindows = data.specialists.map((name, i) => `${formatCount(nodes[`sample_windows${i}`][row])} windows of the sample of ${name}`);
    panel.append(element("p", sampleWindows.join(", ") + ".", { class: "note" }));
    if (data.is_sampled) {
      const facts = [`${nodes.epochs[row].toFixed(2)} epochs`, `${formatCount(nodes.first_copy_tokens[row])} tokens in first copies`];
      if (nodes.rewritten_tokens[row]) facts.push(`${formatCount(nodes.rewritten_tokens[row])} tokens in rewrites`);
      if (nodes.deficit_tokens && nodes.deficit_tokens[row] >= 1) facts.push(`deficit of ${formatCount(nodes.deficit_tokens[row])} tokens`);
      panel.append(element("p", facts.join("; ") + ".", { class: "note" }));
    }
    if (!isMapLeaf(row)) {
      const inside = element("button", "Show subclusters", { type: "button" });
      inside.addEventListener("click", () => enter(row));
      panel.append(inside);
    }
    const texts = excerptsOf(row);
    const origins = [["g", "Corpus"], ["d", "New corpus"], ...data.specialists.map((name, i) => [`s${i}`, `Sample of ${name}`])].filter(([key]) => texts[key]?.length);
    const tabs = element("div", null, { class: "tabs", role: "group", "aria-label": "Excerpts from" });
    const excerpts = element("div");
    const showExcerpts = (key) => {
      excerpts.replaceChildren();
      for (const [text, id, window_, copies] of texts[key]) {
        excerpts.append(element("q", text, { dir: "auto" }));
        excerpts.append(element("p", `${id}, window ${window_}${key === "d" || (key === "g" && data.is_sampled) ? `, ${copies === 1 ? "1 copy" : copies + " copies"} in the new corpus` : ""}`, { class: "note" }));
      }
      for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab.dataset.key === key));
    };
    for (const [key, label] of origins) {
      const tab = element("button", label, { type: "button", "data-key": key });
      tab.addEventListener("click", () => showExcerpts(key));
      tabs.append(tab);
    }
    panel.append(tabs, excerpts);
    if (origins.length) showExcerpts(data.is_sampled && texts.d ? "d" : origins[0][0]);
  };

  const select = (row, { focus = false } = {}) => {
    showPanel(row);
    if (focus) {
      byId("map").scrollIntoView();
      byId("panel").focus({ preventScroll: true });
    }
  };

  // Navigation in the cluster tree.

  const enter = (row) => {
    state.root = row;
    const inside = levels.filter((level) => level > nodes.level[row]);
    if (!inside.includes(state.level)) state.level = inside[0];
    if (row !== rootRow) state.level = Math.max(nodes.level[row] + 1, Math.min(state.level, deepest));
    refresh();
    showPanel(row);
  };
  const updatePath = () => {
    const line = byId("path");
    line.replaceChildren();
    const above = [];
    for (let row = state.root; row !== undefined; row = rowOf.get(nodes.parent[row])) above.unshift(row);
    above.forEach((row, i) => {
      if (i) line.append(" › ");
      if (i === above.length - 1 && i) line.append(element("strong", `${title(row)}: ${nodes.name[row]}`));
      else if (i || above.length > 1) {
        const up = element("button", row === rootRow ? "All clusters" : `${title(row)}: ${nodes.name[row]}`, { type: "button" });
        up.addEventListener("click", () => enter(row));
        line.append(up);
      }
    });
    const number = shownRows().length;
    line.append(element("span", ` ${formatCount(number)} ${state.level === deepest ? (number === 1 ? "cluster" : "clusters") : "groups of clusters"}`, { class: "note" }));
  };
  const updateLevels = () => {
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
  const updateList = () => {
    const rows = shownRows().sort((a, b) => Math.abs(nodes.after[b] - nodes.before[b]) - Math.abs(nodes.after[a] - nodes.before[a]));
    const body = byId("list").tBodies[0];
    body.replaceChildren();
    for (const row of rows.slice(0, MAX_LISTED)) {
      const line = element("tr");
      const cell = element("td");
      const button = element("button", `${title(row)} ${nodes.name[row] || "–"}`, { type: "button", class: "cluster" });
      button.addEventListener("click", () => select(row, { focus: true }));
      cell.append(button);
      line.append(cell, element("td", percent(nodes.before[row]), { class: "n" }));
      data.specialists.forEach((_, i) => line.append(element("td", percent(nodes[`sample${i}`][row]), { class: "n" })));
      line.append(element("td", percent(nodes.after[row]), { class: "n" }), element("td", formatWeight(row), { class: "n" }));
      body.append(line);
    }
    byId("more").textContent = rows.length > MAX_LISTED ? `${formatCount(rows.length - MAX_LISTED)} more clusters: search by words, or open a group with “Show subclusters”.` : "";
  };
  const refresh = () => { updatePath(); updateLevels(); updateList(); return drawMap(); };

  // Start.

  document.querySelector(".controls").hidden = false;
  byId("colour").addEventListener("change", (event) => { state.colour = event.target.value; refresh(); });
  byId("area").addEventListener("change", (event) => { state.area = event.target.value; refresh(); });
  let typing;
  byId("find").addEventListener("input", (event) => {
    state.words = event.target.value.trim().toLowerCase();
    clearTimeout(typing);
    typing = setTimeout(refresh, 150);
  });
  for (const button of document.querySelectorAll("button.cluster[data-row]")) {
    button.addEventListener("click", () => select(Number(button.dataset.row), { focus: true }));
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

  const largestGain = shownRows().sort((a, b) => nodes.after[b] - nodes.before[b] - (nodes.after[a] - nodes.before[a]))[0];
  if (largestGain !== undefined) select(largestGain);
  updatePath();
  updateLevels();
  updateList();
  window.drawn = drawAll().then(() => { document.documentElement.dataset.ready = "true"; });
})();
