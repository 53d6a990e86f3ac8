// The page: its head, its filters, the overview, a section a family, and what follows.
"use strict";

const SIZES = [
  ["", "any size"], ["0-5e7", "under 50 M"], ["5e7-2e8", "50 M to 200 M"],
  ["2e8-1e9", "200 M to 1 B"], ["1e9-1e15", "1 B and more"],
];
const KINDS = [["", "measured and published"], ["measured", "measured"], ["published", "published"]];
const SHOWN = /^(?:(?:acc1|mIoU)(?:_.*)?|(?:image|text)_retrieval_recall@1)$/; // beside main metrics
const main = document.querySelector("main");
const grids = new Map();
const drawnKeys = new Map(); // of each part: the choices it was drawn with

// Head.

const measuredModels = models.filter((model) => model.isMeasured);
const facts = [
  source.date ? `newest record ${source.date.slice(0, 10)}` : "no records",
  `silc-bench ${source.version}`,
  counted(measuredModels.length, "model"),
  counted(source.questions.length, "question"),
  counted(source.num_images, "image"),
];
document.getElementById("facts").textContent = facts.join(" · ");

// Filters: each control is one choice of the address.

function fill(id, options) {
  document.getElementById(id)
    .append(...options.map(([value, text]) => h("option", { value }, text)));
}

const mainColumns = columns.filter((column) => column.is_main && !column.isPublishedOnly);
fill("family", [["", "all families"], ...families.map((family) => [family, familyTitle(family)])]);
fill("question", [["", "all questions"],
  ...mainColumns.map((column) => [column.id, shortened(column.title, 70)])]);
fill("size", SIZES);
fill("kind", KINDS);
const CONTROLS = ["q", "family", "question", "size", "kind"];
for (const id of CONTROLS) {
  const control = document.getElementById(id);
  control.addEventListener("input", () => address.change({ [id]: control.value }));
}
document.getElementById("reset").addEventListener("click", () => {
  address.change(Object.fromEntries(CONTROLS.map((id) => [id, null])));
});
if (window.matchMedia("(max-width: 40rem)").matches) {
  document.getElementById("filters").open = CONTROLS.some((id) => address.one(id) !== "");
}

// What the choices leave.

function chosen() {
  const [q, family, question, size, kind] = CONTROLS.map((id) => address.one(id));
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const [low, high] = size ? size.split("-").map(Number) : [0, Infinity];
  const asked = columnOf.get(question);
  const rows = models.filter((model) => {
    const text = `${model.sortName} ${model.label ?? ""} ${model.revision ?? ""}`.toLowerCase();
    const isSize = size === "" || (model.params !== null && model.params >= low && model.params < high);
    const isKind = kind === "" || model.isMeasured === (kind === "measured");
    const isAsked = !asked || asked.cells.has(model.row);
    return isSize && isKind && isAsked && words.every((word) => text.includes(word));
  });
  const shown = columns.filter((column) => (family === "" || column.family === family)
    && (!asked || (column.question !== null && column.question === asked.question)));
  return { rows, shown, kind };
}

// Overview.

const overview = document.getElementById("overview");
grids.set("overview", new Grid(overview.querySelector(".place"), "Overview",
  (id, desc) => address.change({ "sort.overview": `${desc ? "-" : ""}${id}` })));

function modelColumn() {
  return {
    id: "model", title: "model", isText: true, width: "name", value: (model) => model.sortName,
    draw: (model) => ({
      content: [
        h("a", { href: address.link({ model: model.id }), title: model.name },
          nameOf(shortened(model.name, 90))),
        h("small", {}, model.isMeasured ? `@${model.revision} ${model.label}` : model.where),
      ],
    }),
  };
}

function sizeColumn() {
  return {
    id: "size", title: "size", note: "params", width: "size", isLowBest: true,
    value: (model) => model.params ?? undefined,
    draw: (model) => ({ content: [sizeText(model.params)] }),
  };
}

// The scores of every row that has them, and the questions that they are a mean of.
function scoresOf(candidates, rows) {
  const measured = rows.filter((model) => model.isMeasured);
  const counting = (measured.length > 0 ? measured : rows).map((model) => model.row);
  const usable = candidates.filter((column) => column.is_main && column.is_fraction);
  const base = basis(usable, counting);
  const scores = new Map();
  for (const model of rows) {
    const score = meanScore(model.row, base.columns);
    if (score !== undefined) scores.set(model.row, 100 * score);
  }
  return { base, scores };
}

// What the table, the plot and the list of questions show; it depends on the filters alone.
function computeOverview({ rows, shown, kind }) {
  // columns that nobody measured here are in the overview only where there are no others
  const asked = shown.filter((column) => !column.isPublishedOnly);
  const measurable = kind === "published" || asked.length === 0 ? shown : asked;
  const names = families.filter((family) => measurable.some((column) => column.family === family));
  const byFamily = names.map((family) => {
    const own = measurable.filter((column) => column.family === family);
    return { family, ...scoresOf(own, rows) };
  }).filter(({ base }) => base.columns.length > 0);
  const measured = rows.filter((model) => model.isMeasured).map((model) => model.row);
  const ranking = basis(measurable.filter((column) => column.is_main), measured);
  const ranks = meanRanks(ranking.rows, ranking.columns);
  drawBasis(byFamily, ranking, measured.length);
  return { rows, measurable, byFamily, ranking, ranks };
}

function drawOverview({ rows, byFamily, ranking, ranks }) {
  const familyColumns = byFamily.map(({ family, base, scores }) => ({
    id: family, title: family, note: `over ${base.columns.length}`,
    hint: base.columns.map((column) => column.title).join("; "),
    value: (model) => scores.get(model.row),
    draw: (model) => {
      const score = scores.get(model.row);
      if (score === undefined) return null;
      const target = base.columns.length === 1
        ? { column: base.columns[0].id, model: model.id } : { model: model.id };
      return { content: [h("a", { href: address.link(target) }, scoreText(score))],
        style: barStyle(score / 100) };
    },
  }));
  const rankColumn = {
    id: "rank", title: "mean rank", note: `over ${ranking.columns.length}`,
    hint: ranking.columns.map((column) => column.title).join("; "), isLowBest: true,
    value: (model) => ranks.get(model.row),
    draw: (model) => (ranks.has(model.row) ? { content: [fixed(ranks.get(model.row), 2)] } : null),
  };

  const listed = rows.filter((model) => model.isMeasured
    || byFamily.some(({ scores }) => scores.has(model.row)));
  const first = byFamily.map(({ family }) => ({ id: family, desc: true }));
  const sorting = sortingOf("overview", [{ id: "rank", desc: false }, ...first]);
  grids.get("overview").show(
    [modelColumn(), sizeColumn(), ...familyColumns, rankColumn], listed, sorting,
  );
}

function sortingOf(name, otherwise) {
  const text = address.one(`sort.${name}`);
  return text ? [{ id: text.replace(/^-/, ""), desc: text.startsWith("-") }] : otherwise;
}

function barStyle(share, low = share, high = share) {
  const ends = [share, low, high].map((end) => Math.max(0, Math.min(1, end)));
  const [, from, to] = ends.map((end) => `${fixed(100 * end, 1)}%`);
  return `--from:${from};--to:${to}`;
}

function drawBasis(byFamily, ranking, numMeasured) {
  const lines = byFamily.map(({ family, base }) => [family, base]);
  lines.push(["mean rank", ranking]);
  const items = lines.filter(([, base]) => base.columns.length > 0).map(([name, base]) => {
    const titles = base.columns.map((column) => column.title).join("; ");
    const count = `${base.rows.length} of ${counted(numMeasured || base.rows.length, "model")}`;
    return h("li", {}, h("b", {}, name), `: ${titles} (${count})`);
  });
  document.getElementById("basis").replaceChildren(...items);
}

// What may be drawn against parameters: the score of a family, or the values of a question.
function drawScorePlot({ rows, measurable, byFamily }) {
  const choices = new Map();
  for (const { family, scores } of byFamily) {
    const points = rows.map((model) => ({ model, score: scores.get(model.row) }));
    choices.set(family, { text: family, label: "score, 0 is chance", points });
  }
  for (const column of measurable.filter((one) => one.is_main && one.is_fraction)) {
    const points = rows.map((model) => scorePoint(column, model));
    choices.set(column.id, { text: shortened(column.title, 60), label: "percent", points });
  }
  const select = document.getElementById("plot");
  const option = (id) => h("option", { value: id }, choices.get(id).text);
  const ids = [...choices.keys()];
  select.replaceChildren(
    h("optgroup", { label: "families, above chance" }, ids.slice(0, byFamily.length).map(option)),
    h("optgroup", { label: "questions" }, ids.slice(byFamily.length).map(option)),
  );

  // unasked, the one that shows the most measured models, and of these the most published ones
  const size = ({ points }) => points.filter(isDrawn)
    .reduce((sum, { model }) => sum + (model.isMeasured ? 10_000 : 1), 0);
  const sizes = new Map([...choices].map(([id, choice]) => [id, size(choice)]));
  const largest = ids.reduce((best, id) => (sizes.get(id) > sizes.get(best) ? id : best), ids[0]);
  select.value = choices.has(address.one("plot")) ? address.one("plot") : largest ?? "";
  const { points, label } = choices.get(select.value) ?? { points: [], label: "" };
  drawSizes(document.getElementById("sizes"), points, label);
}

function scorePoint(column, model) {
  const cell = column.cells.get(model.row);
  if (!cell) return { model };
  const [low, high] = cell.error === null ? [] : interval(cell).map((end) => 100 * end);
  return { model, score: 100 * cell.value, low, high };
}

document.getElementById("plot").addEventListener("input", (event) => {
  address.change({ plot: event.target.value });
});

// Families.

const sections = new Map();
families.forEach((family, number) => {
  const ofFamily = columns.filter((column) => column.family === family);
  const section = h("section", { id: `family-${number}`, "data-part": family },
    h("h2", {}, familyTitle(family)),
    h("p", { class: "count" }),
    h("details", { class: "choice" }, h("summary", {}, "Columns"),
      h("div", { class: "boxes" }, ofFamily.map((column) => columnBox(family, column)))),
    h("div", { class: "place" }),
    h("div", { class: "figures" }));
  document.getElementById("families").append(section);
  sections.set(family, section);
  const name = `sort.${family}`;
  grids.set(family, new Grid(section.querySelector(".place"), familyTitle(family),
    (id, desc) => address.change({ [name]: `${desc ? "-" : ""}${id}` })));
});

function columnBox(family, column) {
  const box = h("input", { type: "checkbox", value: column.id, onchange: () => {
    const boxes = [...sections.get(family).querySelectorAll(".boxes input")];
    const ids = boxes.filter((one) => one.checked).map((one) => one.value);
    address.change({ [`show.${family}`]: ids.length > 0 ? ids : ["none"] });
  } });
  return h("label", {}, box, " ", nameOf(column.title));
}

function visibleColumns(family, shown, kind) {
  const own = shown.filter((column) => column.family === family);
  const wanted = address.all(`show.${family}`);
  if (wanted.length > 0) return own.filter((column) => wanted.includes(column.id));
  const hasMeasured = own.some((column) => !column.isPublishedOnly);
  const byDefault = own.filter((column) => column.is_main || SHOWN.test(column.metric));
  if (!hasMeasured || kind === "published") return byDefault;
  return byDefault.filter((column) => !column.isPublishedOnly);
}

function drawFamily(family, { rows, shown, kind }) {
  const section = sections.get(family);
  const visible = visibleColumns(family, shown, kind);
  const own = shown.filter((column) => column.family === family);
  section.hidden = own.length === 0;
  if (section.hidden) return;

  const ids = new Set(visible.map((column) => column.id));
  for (const box of section.querySelectorAll(".boxes input")) {
    box.checked = ids.has(box.value);
    box.closest("label").hidden = !own.some((column) => column.id === box.value);
  }
  const listed = rows.filter((model) => visible.some((column) => column.cells.has(model.row)));
  const numMeasured = listed.filter((model) => model.isMeasured).length;
  const numPublished = listed.length - numMeasured;
  const count = [`${counted(numMeasured, "model")} measured`, `${numPublished} published`];
  section.querySelector(".count").textContent = `${count.join(", ")}.`;

  const byValue = visible.filter((column) => column.is_main)
    .map((column) => ({ id: column.id, desc: column.is_fraction }));
  grids.get(family).show([modelColumn(), ...visible.map(scoreColumn)], listed,
    sortingOf(family, byValue.length > 0 ? byValue : [{ id: "model", desc: false }]));
}

function scoreColumn(column) {
  const notes = [];
  if (column.chance !== null) notes.push(`chance ${valueText(column.chance, column.is_fraction)}`);
  if (!column.is_fraction) notes.push("lower is better");
  return {
    id: column.id, title: column.title, note: notes.join(", "), isLowBest: !column.is_fraction,
    value: (model) => column.cells.get(model.row)?.value,
    draw: (model) => {
      const cell = column.cells.get(model.row);
      return cell ? scoreCell(column, cell, model) : null;
    },
  };
}

const MARKS = { best: "best", tied: "tied with the best" };

function scoreCell(column, cell, model) {
  const text = valueText(cell.value, column.is_fraction);
  const link = h("a", { href: address.link({ column: column.id, model: model.id }) }, text);
  if (!model.isMeasured) {
    return { content: [hidden("published "), link], mark: "hollow",
      hint: `published: ${model.where}` };
  }
  const error = cell.error === null ? null
    : h("small", {}, `±${valueText(cell.error, column.is_fraction)}`);
  const mark = MARKS[cell.mark] ? hidden(` ${MARKS[cell.mark]}`) : null;
  let style = null;
  if (column.is_fraction) {
    const [low, high] = cell.error === null ? [cell.value, cell.value] : interval(cell);
    style = barStyle(...[cell.value, low, high].map((value) => centred({ column, value })));
  }
  return { content: [link, error, mark], mark: cell.mark, style };
}

function drawFamilyFigures(family, { rows, shown }) {
  const place = sections.get(family).querySelector(".figures");
  const own = shown.filter((column) => column.family === family);
  place.replaceChildren();
  const curves = new Map();
  for (const column of own.filter((one) => shotsOf(one) !== null)) {
    const key = column.question ?? `published ${column.task}`;
    curves.set(key, [...(curves.get(key) ?? []), column]);
  }
  const several = [...curves.values()].filter((some) => some.length > 1);
  if (several.length > 0) {
    const canvas = h("div", { class: "canvas" });
    const select = h("select", { "aria-label": "curves of",
      oninput: () => address.change({ curves: select.value }) },
    several.map(([first]) => h("option", { value: first.id }, first.title.replace(/,[^,]*$/, ""))));
    const wanted = several.find(([first]) => first.id === address.one("curves")) ?? several[0];
    select.value = wanted[0].id;
    place.append(h("div", { class: "card" }, h("h3", {}, "Few-shot curves"),
      several.length > 1 ? select : h("p", {}, select.selectedOptions[0].text), canvas));
    drawCurves(canvas, wanted, rows);
  }

  const pairs = imagenetPairs(own);
  if (pairs.length > 0) {
    const canvas = h("div", { class: "variants" });
    place.append(h("div", {}, h("h3", {}, "ImageNet against its variants"),
      h("p", {}, "On the dotted line a model is as good on the variant as on ImageNet. Filled marks were measured here, hollow ones are published."),
      canvas));
    drawVariants(canvas, pairs, rows);
  }
}

// What follows the families: drawn once.

function drawRest() {
  const changes = document.getElementById("changes");
  changes.hidden = source.changes.length === 0;
  for (const { title, rows, names } of source.changes) {
    if (names.length > 0) {
      const list = h("ul", {}, names.map((name) => h("li", {}, nameOf(name))));
      changes.append(h("div", { class: "card" }, h("h3", {}, nameOf(title)), list));
      continue;
    }
    const canvas = h("div", { class: "canvas" });
    const lines = rows.map(([name, before, after, low, high]) => {
      const difference = after - before;
      const sign = difference > 0 ? "+" : "";
      const ends = low === null ? "" : `${valueText(low)} to ${valueText(high)}`;
      return h("tr", {}, h("th", { scope: "row" }, nameOf(name)),
        [valueText(before), valueText(after), sign + valueText(difference), ends]
          .map((text) => h("td", { class: "number" }, text)));
    });
    const heads = ["", "contrastive", "silc", "difference", "95 % interval"];
    const table = h("table", { class: "list" },
      h("caption", { class: "unseen" }, title),
      h("thead", {}, h("tr", {}, heads.map((text, index) => index === 0
        ? h("td", {}) : h("th", { scope: "col", class: "number" }, text)))),
      h("tbody", {}, lines));
    changes.append(h("div", { class: "card" }, h("h3", {}, nameOf(title)), canvas,
      h("details", {}, h("summary", {}, "The numbers"),
        h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table))));
    drawChanges(canvas, rows);
  }

  const images = document.getElementById("images");
  images.hidden = source.images.length === 0;
  for (const image of source.images) {
    images.append(h("figure", {},
      h("img", { src: image.uri, alt: image.caption || image.title, loading: "lazy" }),
      h("figcaption", {}, h("b", {}, nameOf(image.title)), " ", nameOf(image.caption))));
  }

  const unranked = document.getElementById("unranked");
  unranked.hidden = source.unranked.length === 0;
  const rows = source.unranked.map(([name, revision, title, value, isFraction, reason]) => h("tr", {},
    h("th", { scope: "row" }, nameOf(name), h("small", {}, ` @${revision}`)), h("td", {}, nameOf(title)),
    h("td", { class: "number" }, valueText(value, isFraction)), h("td", {}, reason)));
  if (rows.length > 0) {
    unranked.querySelector(".place").append(
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Not ranked" },
        h("table", { class: "list" }, h("caption", { class: "unseen" }, "Not ranked"),
          h("thead", {}, h("tr", {}, ["model", "question", "value", "why"]
            .map((text) => h("th", { scope: "col" }, text)))),
          h("tbody", {}, rows))));
  }

  const remarks = document.getElementById("remarks");
  remarks.hidden = source.remarks.length === 0;
  remarks.querySelector("ul").append(...source.remarks.map((sentence) => h("li", {}, nameOf(sentence))));

  document.getElementById("libraries").replaceChildren(...source.libraries.flatMap((library, index) => [
    index > 0 ? ", " : "",
    h("a", { href: library.url, rel: "noreferrer" }, library.name),
    ` ${library.version} (${library.licence})`,
  ]));
  const parts = [...document.querySelectorAll("main section")].filter((part) => !part.hidden);
  document.getElementById("parts").append(...parts.map((part) => h("button", {
    type: "button", onclick: () => address.change({ at: part.dataset.part }),
  }, part.querySelector("h2").textContent)));
}

// A part is drawn again only where one of its choices changed.
function redraw(part, choices, draw) {
  const key = choices.map((name) => `${name}=${address.all(name)}`).join("&");
  if (drawnKeys.get(part) === key) return;
  drawnKeys.set(part, key);
  draw();
}

let at = "";
let scores; // of the overview, as computed last
function apply() {
  applyTheme();
  for (const id of CONTROLS) {
    const control = document.getElementById(id);
    if (control.value !== address.one(id)) control.value = address.one(id);
  }
  const choice = chosen();
  redraw("scores", CONTROLS, () => { scores = computeOverview(choice); });
  redraw("overview", [...CONTROLS, "sort.overview"], () => drawOverview(scores));
  redraw("plot", [...CONTROLS, "plot"], () => drawScorePlot(scores));
  for (const family of families) {
    const own = [`sort.${family}`, `show.${family}`];
    redraw(family, [...CONTROLS, ...own], () => drawFamily(family, choice));
    redraw(`figures of ${family}`, [...CONTROLS, "curves"], () => drawFamilyFigures(family, choice));
  }
  document.getElementById("none").hidden = choice.rows.length > 0;
  if (address.one("at") !== at) {
    at = address.one("at");
    goTo(at);
  }
  showDialog();
}

function goTo(name) {
  const part = [...document.querySelectorAll("main section")].find((one) => one.dataset.part === name);
  part?.scrollIntoView();
}

window.addEventListener("hashchange", apply);
let width = document.documentElement.clientWidth;
window.addEventListener("resize", () => {
  if (document.documentElement.clientWidth === width) return;
  width = document.documentElement.clientWidth;
  drawnKeys.clear();
  apply();
});
apply();
drawRest();
goTo(at); // again: what follows the families was hidden until now
main.dataset.ready = "yes";
