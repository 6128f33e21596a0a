/* Puts the chosen class, features and row into the figures. Names get onto the page as text, never as markup. */
(() => {
  "use strict";
  document.documentElement.classList.add("js");
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const state = { level: 0, output: 0, cohort: 0, prediction: 0, feature: null, row: 0, order: "input" };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  let printing = false;

  // Data

  const KINDS = {
    f4: Float32Array, f8: Float64Array, i1: Int8Array, i2: Int16Array, i4: Int32Array,
    u1: Uint8Array, u2: Uint16Array, u4: Uint32Array,
  };
  const decoded = new Map();

  function numbers(encoded) {
    if (!decoded.has(encoded)) {
      const bytes = Uint8Array.from(atob(encoded.data), (letter) => letter.charCodeAt(0));
      decoded.set(encoded, new KINDS[encoded.kind](bytes.buffer));
    }
    return decoded.get(encoded);
  }

  const level = () => data.levels[state.level];
  const sampled = () => (level() && level().sample ? level().sample[state.output] : null);
  const valuesOf = (feature) => {
    const at = level().values[feature];
    return at < 0 ? null : data.sample.values[at];
  };

  // Text

  function shortened(text, most) {
    const letters = Array.from(text);
    return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text;
  }

  // Plotly takes <b>, <a href> and $…$ for markup
  const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;" };
  const escaped = (text) => text.replace(/[&<>$]/g, (letter) => ESCAPES[letter]);
  const small = () => narrow.matches && !printing;

  // cut in the middle: names of engineered features often differ at their ends alone
  function label(text, most = small() ? 16 : 36) {
    const letters = Array.from(text);
    if (letters.length <= most) return escaped(text);
    const tail = Math.floor((most - 1) / 3);
    return escaped(letters.slice(0, most - 1 - tail).join("") + "…" + letters.slice(-tail).join(""));
  }

  const name = (feature, most) => label(level().features[feature], most);

  // right-to-left names do not turn around what stands beside them
  const isolated = (text) => `\u2068${text}\u2069`;

  function number(value, digits = 4) {
    if (value === null || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    const text =
      Number.isInteger(value) && size < 1e15 ? size.toLocaleString("en-US")
      : size >= 1e15 || size < 1e-4 ? size.toExponential(digits - 2)
      : size >= 10 ** (digits - 1) ? Math.round(size).toLocaleString("en-US")
      : String(Number(size.toPrecision(digits)));
    return (value < 0 ? "\u2212" : "") + text;
  }

  const signed = (value) => (value > 0 ? "+" : "") + number(value, 3);

  function valueText(column, row, digits = 9) {
    const value = numbers(column.values)[row];
    if (column.kind === "category") return value < 0 ? "no value" : column.labels[value];
    if (Number.isNaN(value)) return "no value";
    return column.kind === "date" ? dateText(value) : String(Number(value.toPrecision(digits))).replace("-", "\u2212");
  }

  function dateText(value) {
    const date = new Date(value);
    if (Number.isNaN(date.getTime())) return String(value);
    return date.toISOString().replace("T00:00:00.000Z", "").replace("T", " ").replace(/(:00)?\.000Z$/, "");
  }

  // Figures: templates with slots

  function fill(node, slots) {
    if (Array.isArray(node)) return node.map((each) => fill(each, slots));
    if (node === null || typeof node !== "object") return node;
    if ("$" in node) {
      if (node.$.endsWith(".at")) return slots[node.$.slice(0, -3)].map((_, at) => at);
      return slots[node.$];
    }
    const found = {};
    for (const [key, value] of Object.entries(node)) {
      if (key === "...") Object.assign(found, fill(value, slots));
      else found[key] = fill(value, slots);
    }
    return found;
  }

  const figures = new Map(); // element -> { draw, visible, stale }

  function figure(kind, slots) {
    const colours = data.colours[dark.matches && !printing ? "dark" : "light"];
    const all = { ...slots };
    for (const [role, colour] of Object.entries(colours)) all[`colour.${role}`] = colour;
    const filled = fill(data.templates[kind], all);
    if (printing) filled.layout.width = 660;
    return filled;
  }

  function show(element, kind, slots) {
    const filled = figure(kind, slots);
    Plotly.react(element, filled.data, filled.layout, { displayModeBar: false, displaylogo: false, responsive: true });
  }

  function register(id, draw) {
    const element = find(`plot-${id}`);
    if (!element) return;
    figures.set(element, { draw, visible: false, stale: true });
    watcher.observe(element);
  }

  function refresh(element) {
    const entry = figures.get(element);
    if (entry.stale && (entry.visible || printing)) {
      entry.stale = false;
      entry.draw(element);
    }
  }

  function redraw(...ids) {
    for (const [element, entry] of figures) {
      if (ids.length && !ids.includes(element.id.slice(5))) continue;
      entry.stale = true;
      refresh(element);
    }
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const each of entries) {
        figures.get(each.target).visible = each.isIntersecting;
        refresh(each.target);
      }
    },
    { rootMargin: "300px" },
  );

  const rows = (count, extra) => count * 26 + extra;

  // Importance, by class, by cohort

  function drawImportance(element) {
    const { features, values, others, others_sum: sum } = level().importance[state.output];
    find("importance-note").textContent = others
      ? `The ${features.length} largest are shown; the other ${others.toLocaleString("en-US")} together have ${number(sum, 3)}.`
      : "";
    show(element, "bars", {
      values,
      names: features.map((each) => name(each)),
      texts: values.map((value) => number(value, 3)),
      title: "Mean |importance|",
      hover: features.map((each, at) => `${name(each, 80)}<br>mean |importance| ${number(values[at])}`),
      height: rows(features.length, 64),
    });
  }

  function showHeat(element, { features, values }, groups, notes) {
    const most = small() ? 8 : 14;
    show(element, "heatmap", {
      values,
      names: features.map((each) => name(each)),
      groups: groups.map((each) => label(each, most)),
      texts: groups.length > (small() ? 4 : 12) ? [] : values.map((line) => line.map((value) => number(value, 2))),
      hover: values.map((line, row) =>
        line.map((value, at) => `${name(features[row], 80)}<br>${label(groups[at], 80)}${notes[at]}<br>mean |importance| ${number(value)}`),
      ),
      height: rows(features.length, 48),
    });
  }

  function drawClasses(element) {
    showHeat(element, level().classes, data.outputs, data.outputs.map(() => ""));
  }

  function drawCohorts(element) {
    const cohort = data.cohorts[state.cohort];
    if (!cohort.levels[level().name]) return;
    const groups = cohort.groups.map((group) => (group === null ? "no value" : group));
    const notes = cohort.counts.map((count) => `, ${count.toLocaleString("en-US")} rows`);
    showHeat(element, cohort.levels[level().name][state.output], groups, notes);
  }

  // The sample: direction, dependence

  function drawBeeswarm(element) {
    const sample = sampled();
    if (!sample) return;
    const swarm = numbers(data.sample.swarm);
    const values = numbers(sample.values);
    const offsets = numbers(sample.offsets);
    const count = data.sample.ids.length;
    const lines = offsets.length / swarm.length;
    const points = { x: [], y: [], shades: [], grey_x: [], grey_y: [] };
    let categories = 0;
    let known = 0;
    for (let line = 0; line < lines; line++) {
      const column = valuesOf(sample.features[line]);
      const shades = column && numbers(column.shades);
      if (column && column.kind === "category") categories++;
      swarm.forEach((row, at) => {
        const x = values[line * count + row];
        const y = line + offsets[line * swarm.length + at] / 100;
        if (shades && shades[at] < 255) {
          points.x.push(x);
          points.y.push(y);
          points.shades.push(shades[at] / 254);
          known++;
        } else {
          points.grey_x.push(x);
          points.grey_y.push(y);
        }
      });
    }
    find("beeswarm-note").textContent =
      (known ? ", from low to high; " + (categories ? "categories and missing values are grey" : "missing values are grey") : " where it is kept: here all points are grey") +
      `. ${swarm.length.toLocaleString("en-US")} rows are shown.`;
    show(element, "beeswarm", {
      ...points,
      names: sample.features.slice(0, lines).map((each) => name(each)),
      height: rows(lines, 0) * 1.25 + 70,
    });
  }

  const dependable = () => (sampled() ? sampled().features.filter((feature) => valuesOf(feature)) : []);

  function listFeatures() {
    const list = find("feature");
    if (!list) return;
    const before = state.feature;
    const features = dependable();
    list.replaceChildren(
      ...features.map((feature) => {
        const option = document.createElement("option");
        option.value = feature;
        option.textContent = shortened(level().features[feature], 80);
        return option;
      }),
    );
    const same = features.find((feature) => level().features[feature] === before);
    const chosen = same === undefined ? features[0] : same;
    if (chosen !== undefined) list.value = chosen;
    list.closest(".bar").hidden = !features.length;
    find("plot-dependence").hidden = !features.length;
    const note = find("dependence-empty");
    note.hidden = Boolean(features.length);
    note.textContent = data.sample.values.length
      ? "The sample has the values of the raw features: choose raw above."
      : "The run kept no feature values.";
  }

  function drawDependence(element) {
    const features = dependable();
    if (!features.length) return;
    const feature = Number(find("feature").value);
    const column = valuesOf(feature);
    const sample = sampled();
    const count = data.sample.ids.length;
    const start = sample.features.indexOf(feature) * count;
    const importances = numbers(sample.values).subarray(start, start + count);
    const values = numbers(column.values);
    const aside = numbers(data.sample.beside);
    const slots = { x: [], y: [], hover: [], missing_x: [], missing_y: [], axis: { type: column.axis.type }, title: name(feature, 60) };
    const category = column.kind === "category";
    let low = Infinity;
    let high = -Infinity;
    const missing = [];
    for (let row = 0; row < count; row++) {
      const value = values[row];
      if (category ? value < 0 : !Number.isFinite(value)) {
        missing.push(row);
        continue;
      }
      const place = category ? Math.min(value, data.sample.categories) : value;
      low = Math.min(low, place);
      high = Math.max(high, place);
      slots.x.push(category ? place + aside[row] : place);
      slots.y.push(importances[row]);
      slots.hover.push(escaped(shortened(valueText(column, row), 60)));
    }
    const gap = category ? 1 : (high - low) * 0.07 || 1;
    const column_of_missing = low === Infinity ? 0 : category ? high + 1 : low - gap;
    for (const row of missing) {
      slots.missing_x.push(column_of_missing + (category ? aside[row] : aside[row] * gap * 0.4));
      slots.missing_y.push(importances[row]);
    }
    if (category) {
      const labels = column.axis.labels.map((text) => label(text, small() ? 10 : 16));
      if (missing.length) labels.push("no value");
      Object.assign(slots.axis, { tickmode: "array", tickvals: labels.map((_, at) => at), ticktext: labels });
    }
    if (missing.length) slots.title += " (◆ no value)";
    show(element, "dependence", slots);
  }

  // Predictions

  function drawPredictions(element) {
    const chosen = data.predictions[state.prediction];
    find("predictions-note").textContent = `${chosen.title}, ${chosen.note}.`;
    if (chosen.labels.length) {
      show(element, "bars", {
        values: chosen.counts,
        names: chosen.labels.map((text) => label(text)),
        texts: chosen.counts.map((count) => count.toLocaleString("en-US")),
        hover: chosen.hover.map((text, at) => `${label(chosen.labels[at], 80)}: ${text}`),
        title: "Rows",
        height: rows(chosen.labels.length, 64),
      });
    } else {
      show(element, "histogram", { ...chosen, y: chosen.counts, title: escaped(chosen.title) });
    }
  }

  // Single rows

  let order = [];

  function sortRows() {
    if (!sampled()) return;
    order = data.sample.ids.map((_, row) => row);
    const margins = numbers(sampled().margins);
    if (state.order !== "input") order.sort((a, b) => (state.order === "high" ? margins[b] - margins[a] : margins[a] - margins[b]));
  }

  function stepsOf(row) {
    const sample = sampled();
    const margin = numbers(sample.margins)[row];
    const base = sample.expected === null ? 0 : sample.expected;
    const steps = [];
    let sum = 0;
    for (let at = 0; at < sample.shown; at++) {
      const feature = numbers(sample.steps)[row * sample.shown + at];
      const size = numbers(sample.sizes)[row * sample.shown + at];
      const column = valuesOf(feature);
      const [value, brief] = column ? [valueText(column, row), valueText(column, row, small() ? 4 : 6)] : [null, null];
      steps.push({ text: level().features[feature], value, brief, size });
      sum += size;
    }
    const others = level().features.length - sample.shown;
    if (others > 0) steps.push({ text: `${others.toLocaleString("en-US")} other features`, value: null, brief: null, size: margin - base - sum });
    return { base, margin, known: sample.expected !== null, steps };
  }

  function drawWaterfall(element) {
    if (!sampled()) return;
    const { base, margin, known, steps } = stepsOf(state.row);
    const starts = [];
    let at = base;
    let low = Math.min(base, margin);
    let high = Math.max(base, margin);
    for (const step of steps) {
      starts.push(at);
      at += step.size;
      low = Math.min(low, at);
      high = Math.max(high, at);
    }
    const room = (high - low || 1) * (small() ? 0.3 : 0.12);
    const names = steps.map(({ text, brief }) =>
      brief === null ? label(text, small() ? 20 : 44) : `${isolated(label(text, small() ? 13 : 28))} = ${isolated(label(brief, small() ? 8 : 18))}`,
    );
    show(element, "waterfall", {
      base,
      margin,
      starts,
      ups: steps.map((step) => (step.size > 0 ? step.size : null)),
      downs: steps.map((step) => (step.size > 0 ? null : step.size)),
      texts: steps.map((step) => signed(step.size)),
      names,
      hover: steps.map(({ text, value, size }) => `${label(text, 80)}${value === null ? "" : `<br>value ${label(value, 80)}`}<br>importance ${signed(size)}`),
      base_text: known ? `expected value ${number(base)}` : "0 (expected value not known)",
      margin_text: `margin ${number(margin)}`,
      base_anchor: base > (low + high) / 2 ? "right" : "left",
      margin_anchor: margin > (low + high) / 2 ? "right" : "left",
      span: [low - room, high + room],
      height: rows(steps.length, 0) * 1.15 + 110,
    });
  }

  function showRow(row) {
    if (!sampled()) return;
    state.row = row;
    const { id, parts } = described(row);
    const status = find("row-status");
    const bold = document.createElement("b");
    const isolated = document.createElement("bdi");
    isolated.textContent = id;
    bold.append(isolated);
    status.replaceChildren(bold, document.createTextNode(parts.map((part) => ` · ${part}`).join("")));
    const body = find("row-table").tBodies[0];
    const { base, margin, known, steps } = stepsOf(row);
    const lines = [...steps.map((step) => [step.text, step.value === null ? "" : step.value, signed(step.size)])];
    if (known) lines.unshift(["Expected value", "", number(base)]);
    lines.push(["Margin", "", number(margin)]);
    body.replaceChildren(
      ...lines.map((cells) => {
        const line = document.createElement("tr");
        cells.forEach((text, at) => {
          const cell = document.createElement(at ? "td" : "th");
          if (!at) cell.scope = "row";
          if (at === 1) cell.className = "t";
          const inside = document.createElement("bdi");
          inside.textContent = text;
          cell.append(inside);
          line.append(cell);
        });
        return line;
      }),
    );
    redraw("waterfall");
  }

  function described(row) {
    const { ids, prediction, probabilities } = data.sample;
    const parts = [];
    if (prediction) parts.push(`prediction: ${shortened(valueText(prediction, row), 60)}`);
    const which = probabilities.length === data.outputs.length ? state.output : probabilities.length - 1;
    if (probabilities.length) {
      const { class: of, values } = probabilities[which];
      parts.push(`probability of ${shortened(of, 40)}: ${(numbers(values)[row] * 100).toFixed(1)}%`);
    }
    parts.push(`row ${(order.indexOf(row) + 1).toLocaleString("en-US")} of ${ids.length.toLocaleString("en-US")}`);
    return { id: ids[row], parts };
  }

  function seek(text) {
    const { ids } = data.sample;
    const wanted = text.trim();
    if (!wanted) return;
    let row = ids.indexOf(wanted);
    if (row < 0) row = ids.findIndex((id) => id.split(" · ").includes(wanted));
    if (row < 0) row = ids.findIndex((id) => id.startsWith(wanted));
    if (row >= 0) showRow(row);
    else find("row-status").textContent = `No row of the sample has the id ${shortened(wanted, 60)}. The run's tables have all rows.`;
  }

  function step(by) {
    const at = order.indexOf(state.row);
    showRow(order[(at + by + order.length) % order.length]);
    find("row").value = "";
  }

  // Tables

  function sortable(table) {
    const body = table.tBodies[0];
    const initial = Array.from(body.rows);
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      const numeric = head.classList.contains("n");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = numeric ? "descending" : "ascending";
        const second = numeric ? "ascending" : "descending";
        const next = now === null ? first : now === first ? second : null;
        table.querySelectorAll("[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
        let lines = initial;
        if (next) {
          head.setAttribute("aria-sort", next);
          const keyed = initial.map((line) => [line, line.cells[column].textContent]);
          const value = (text) => {
            const found = parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
            return Number.isNaN(found) ? -Infinity : found;
          };
          const compare = numeric ? (a, b) => value(a[1]) - value(b[1]) : (a, b) => a[1].localeCompare(b[1]);
          keyed.sort((a, b) => (next === "ascending" ? compare(a, b) : compare(b, a)));
          lines = keyed.map(([line]) => line);
        }
        body.append(...lines);
      });
    });
  }

  function filterable(input) {
    const body = input.closest("details").querySelector("tbody");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const line of body.rows) line.hidden = !line.cells[0].textContent.toLowerCase().includes(wanted);
    });
  }

  function showTables() {
    document.querySelectorAll("details.features").forEach((each) => {
      each.hidden = each.dataset.level !== level().name || Number(each.dataset.output) !== state.output;
    });
  }

  // Choices

  function chosen() {
    showTables();
    listFeatures();
    sortRows();
    redraw();
    if (data.sample) showRow(state.row);
  }

  function on(id, event, action) {
    const element = find(id);
    if (element) element.addEventListener(event, () => action(element));
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("input.filter").forEach(filterable);
  document.querySelectorAll("input[name=level]").forEach((each) =>
    each.addEventListener("change", () => {
      state.level = Number(each.value);
      const open = document.querySelector("details.features[open]:not([hidden])");
      chosen();
      if (open) document.querySelectorAll("details.features:not([hidden])").forEach((table) => (table.open = true));
    }),
  );
  on("output", "change", (list) => {
    state.output = Number(list.value);
    chosen();
  });
  on("cohort", "change", (list) => {
    state.cohort = Number(list.value);
    redraw("cohorts");
  });
  on("prediction", "change", (list) => {
    state.prediction = Number(list.value);
    redraw("predictions");
  });
  on("feature", "change", (list) => {
    state.feature = level().features[Number(list.value)];
    redraw("dependence");
  });
  on("order", "change", (list) => {
    state.order = list.value;
    sortRows();
    showRow(order[0]);
  });
  on("row", "change", (input) => seek(input.value));
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  if (find("ids")) {
    find("ids").append(
      ...data.sample.ids.slice(0, 500).map((id) => {
        const option = document.createElement("option");
        option.value = id;
        return option;
      }),
    );
  }

  if (level()) {
    register("importance", drawImportance);
    register("classes", drawClasses);
    register("cohorts", drawCohorts);
    if (data.sample) {
      register("beeswarm", drawBeeswarm);
      register("dependence", drawDependence);
      register("waterfall", drawWaterfall);
    }
    chosen();
  }
  if (data.predictions.length) register("predictions", drawPredictions);
  dark.addEventListener("change", () => redraw());
  narrow.addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => {
    printing = true;
    redraw();
  });
  addEventListener("afterprint", () => {
    printing = false;
    redraw();
  });

  // Which section is being read
  const links = new Map(Array.from(document.querySelectorAll("nav a"), (link) => [link.hash.slice(1), link]));
  const reading = new IntersectionObserver(
    (entries) => {
      for (const each of entries) {
        if (!each.isIntersecting) continue;
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(each.target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  links.forEach((_, id) => find(id) && reading.observe(find(id)));
})();
