"use strict";
(() => {
  document.documentElement.classList.add("js");

  /* A page without scripts is complete but for curves; this adds sorting, filters and drawings. */

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // Sorting: what was measured first, then what was only printed, then what says nothing.

  function keyOf(cell) {
    if (cell.dataset.key !== undefined) return [0, cell.dataset.key];
    if (cell.dataset.later !== undefined) return [1, cell.dataset.later];
    return [2, ""];
  }

  function compare(a, b, numeric, direction) {
    if (a[0] !== b[0]) return a[0] - b[0];
    if (numeric) return direction * (Number(a[1]) - Number(b[1]));
    return direction * a[1].localeCompare(b[1], undefined, { numeric: true });
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    if (original.length < 2) return;
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, place) => {
      const numeric = heading.classList.contains("number");
      const button = make("button", { type: "button", class: "sort" }, ...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const first = numeric ? "descending" : "ascending";
        const second = numeric ? "ascending" : "descending";
        const before = heading.getAttribute("aria-sort");
        const now = before === "none" ? first : before === first ? second : "none";
        for (const other of headings) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", now);
        const pinned = original.filter((row) => row.classList.contains("pinned"));
        const rows = original.filter((row) => !row.classList.contains("pinned"));
        if (now !== "none") {
          const direction = now === "ascending" ? 1 : -1;
          rows.sort((a, b) => compare(keyOf(a.cells[place]), keyOf(b.cells[place]), numeric, direction));
        }
        body.append(...pinned, ...rows);
      });
    });
  }

  // Filters: rows that hold every word.

  function makeFilterable(table) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6) return;
    const name = table.getAttribute("aria-label");
    const input = make("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter rows of ${name}` });
    const count = make("span", { role: "status" });
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        row.hidden = !words.every((word) => texts.get(row).includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
    table.closest(".scroll").before(make("div", { class: "controls" }, input, count));
  }

  // Curves: two drawings of the runs whose names were pressed.

  const curves = JSON.parse(document.getElementById("curves").textContent);
  const panel = document.getElementById("curve-panel");
  const drawn = new Map();
  const buttons = [];
  const COLOURS = 7;
  const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
  const MOST = COLOURS * DASHES.length;

  function shape(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function line(place, more) {
    const dash = DASHES[Math.floor(place / COLOURS) % DASHES.length];
    return { class: `s${place % COLOURS}`, ...(dash ? { "stroke-dasharray": dash } : {}), ...more };
  }

  function ticks(low, high, wanted) {
    const raw = (high - low || 1) / wanted;
    const size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= raw);
    const found = [];
    for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick += 1) found.push(tick * step);
    return found;
  }

  function chart(title, field) {
    const series = [...drawn].filter(([key]) => curves[key][field]).map(([key, place]) => [curves[key], place]);
    // On a phone the drawings stand under one another, and their letters would shrink with them.
    const width = innerWidth < 640 ? Math.max(260, innerWidth - 32) : 520;
    const height = 190, left = 44, right = 8, top = 8, bottom = 34;
    const picture = shape("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} by epoch` });
    const values = series.flatMap(([curve]) => curve[field]).filter((value) => value !== null);
    if (values.length) {
      let low = Math.min(...values), high = Math.max(...values);
      if (low === high) { low -= 1; high += 1; }
      const at = (curve, place) => (curve.e ? curve.e[0] + curve.e[1] * place : 1 + place);
      const last = Math.max(2, ...series.map(([curve]) => at(curve, curve[field].length - 1)));
      const x = (epoch) => left + ((epoch - 1) / (last - 1)) * (width - left - right);
      const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
      for (const tick of ticks(low, high, 4)) {
        picture.append(shape("line", { class: "gridline", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
        picture.append(shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toPrecision(6)))));
      }
      for (const tick of ticks(1, last, 6)) {
        if (Number.isInteger(tick)) picture.append(shape("text", { x: x(tick), y: height - bottom + 15, "text-anchor": "middle" }, tick));
      }
      for (const [curve, place] of series) {
        let path = "", pen = "M";
        curve[field].forEach((value, place) => {
          if (value === null) { pen = "M"; return; }
          path += `${pen}${x(at(curve, place)).toFixed(1)} ${y(value).toFixed(1)}`;
          pen = "L";
        });
        const stroke = shape("path", line(place, { d: path }));
        stroke.append(shape("title", {}, `${curve.n}: ${curve[field].at(-1)} after epoch ${at(curve, curve[field].length - 1)}`));
        picture.append(stroke);
      }
    } else {
      picture.append(shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "not recorded for these runs"));
    }
    picture.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    picture.append(shape("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "epoch"));
    return make("figure", {}, make("div", {}, title), picture);
  }

  function redraw() {
    panel.hidden = drawn.size === 0;
    document.body.classList.toggle("drawing", !panel.hidden);
    for (const [button, keys] of buttons) button.setAttribute("aria-pressed", String(keys.every((key) => drawn.has(key))));
    panel.replaceChildren();
    if (panel.hidden) return;
    const close = make("button", { type: "button" }, "close");
    close.addEventListener("click", clear);
    const entries = [...drawn].map(([key, place]) => {
      const sample = shape("svg", { viewBox: "0 0 30 10", "aria-hidden": "true" });
      sample.append(shape("line", line(place, { x1: 0, x2: 30, y1: 5, y2: 5, "stroke-width": 2 })));
      return make("li", {}, sample, curves[key].n);
    });
    panel.append(
      make("div", { class: "panel-head" }, make("b", {}, "Training curves"), close),
      make("div", { class: "charts" }, chart("training loss", "l"), chart("top-1 on the images it is evaluated on, %", "a")),
      make("ul", { class: "legend" }, ...entries),
    );
  }

  function clear() {
    drawn.clear();
    redraw();
  }

  // All of these runs, or none if all are drawn already.
  function toggle(keys) {
    if (keys.every((key) => drawn.has(key))) {
      for (const key of keys) drawn.delete(key);
    } else {
      for (const key of keys) {
        const used = new Set(drawn.values());
        if (!drawn.has(key) && used.size < MOST) drawn.set(key, [...Array(MOST).keys()].find((place) => !used.has(place)));
      }
    }
    redraw();
  }

  function makeDrawable(place, keys) {
    const known = keys.filter((key) => Object.hasOwn(curves, key));
    if (!known.length) return;
    const button = make("button", { type: "button", class: "draw", "aria-pressed": "false" }, place.firstChild);
    button.addEventListener("click", () => toggle(known));
    place.prepend(button);
    buttons.push([button, known]);
  }

  for (const cell of document.querySelectorAll("[data-run]")) makeDrawable(cell, [cell.dataset.run]);
  for (const cell of document.querySelectorAll("[data-runs]")) {
    makeDrawable(cell.querySelector(".measured"), cell.dataset.runs.split(" "));
  }

  // Addresses: a cell that is pointed at or focused, and every claim and table, can be copied as a link and as BibTeX.

  const citing = JSON.parse(document.getElementById("citing").textContent);
  const said = document.getElementById("said");

  function words(element) {
    const copy = element.cloneNode(true);
    for (const extra of copy.querySelectorAll(".below, .tools, sup")) extra.remove();
    return copy.textContent.replace(/\s+/g, " ").trim();
  }

  function nameOf(target) {
    if (target.localName === "tr") return `Claim ${words(target.cells[0])}: ${words(target.cells[5])} by tables, ${words(target.cells[6])} by runs`;
    if (target.localName !== "td") return words(target.querySelector(".caption"));
    const table = target.closest("table");
    const column = table.tHead.rows[0].cells[target.cellIndex];
    return `${table.getAttribute("aria-label")}: ${words(target.parentElement.cells[0])}, ${words(column)}: ${words(target)}`;
  }

  function latex(text) {
    return text.replace(/[\\{}]/g, "").replace(/[&%$#_]/g, "\\$&").replace(/[~^]/g, "-").replace(/±/g, "$\\pm$")
      .replace(/>/g, "$\\to$").replace(/</g, "$<$").replace(/−/g, "$-$").replace(/Δ/g, "$\\Delta$");
  }

  function addressOf(target) {
    return `${location.href.split("#")[0]}#${target.id}`;
  }

  function citationOf(target) {
    const makers = new Map();
    for (const key of (target.dataset.runs || "").split(" ").filter(Boolean)) {
      const maker = citing.makers[citing.runs[key]];
      makers.set(maker, [...(makers.get(maker) || []), key]);
    }
    const records = [...makers].map(([maker, keys]) => `Records ${keys.join(", ")}: ${maker}`).join("; ");
    const fields = {
      key: target.id.replace(/[^a-z0-9.+]+/g, "-"), title: latex(nameOf(target)), year: citing.year,
      address: addressOf(target), suite: citing.suite, records: records ? `${records}.` : citing.nothing,
    };
    return citing.entry.replace(/\$(\w+)/g, (_, name) => fields[name]);
  }

  async function copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // A browser that keeps the clipboard from a page lets it copy what is selected.
      const field = make("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    said.textContent = `${what} copied`;
    setTimeout(() => { said.textContent = ""; }, 2000);
  }

  function makeTools(find) {
    const link = make("button", { type: "button", title: "Copy the address", "aria-label": "Copy the address" }, "#");
    const entry = make("button", { type: "button", title: "Copy a citation", "aria-label": "cite in BibTeX" }, "cite");
    link.addEventListener("click", () => copy(addressOf(find()), "Address"));
    entry.addEventListener("click", () => copy(citationOf(find()), "Citation"));
    return make("span", { class: "tools" }, link, entry);
  }

  for (const target of document.querySelectorAll("tr[id], #tables article[id]")) {
    (target.querySelector(".caption") || target.cells[0]).append(makeTools(() => target));
  }
  let pointed = null;
  const tools = makeTools(() => pointed);
  for (const kind of ["mouseover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const cell = event.target.closest("td[id]");
      if (!cell || cell === pointed) return;
      pointed = cell;
      cell.append(tools);
    });
  }

  // A link into what is folded opens it.
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const first = target.querySelector(":scope > details:first-child") || target.closest("details");
    for (let one = first; one; one = one.parentElement.closest("details")) one.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
  addEventListener("keydown", (event) => { if (event.key === "Escape" && !panel.hidden) clear(); });

  for (const table of document.querySelectorAll("table.data")) {
    makeFilterable(table);
    makeSortable(table);
  }

  // On paper nothing can be opened.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
