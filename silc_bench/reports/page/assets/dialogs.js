// What opens from a cell or a name: the record, the published source, or all scores of a model.
"use strict";

const dialog = document.getElementById("dialog");
const content = document.getElementById("content");
let opened = ""; // what the dialog shows: an older answer of an unpacked record is thrown away

document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  opened = "";
  address.change({ column: null, model: null, with: null, by: null });
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

async function showDialog() {
  const id = address.one("model");
  const model = modelOf.get(id);
  const column = columnOf.get(address.one("column"));
  const key = ["model", "column", "with", "by"].map((name) => address.one(name)).join("\n");
  if (id === "") {
    if (dialog.open) dialog.close();
    return;
  }
  if (key === opened) return;
  const isSame = opened.split("\n").slice(0, 2).join() === key.split("\n").slice(0, 2).join();
  opened = key;

  let parts;
  const cell = model && column ? column.cells.get(model.row) : undefined;
  if (!model) parts = missing(id);
  else if (cell === undefined) parts = modelParts(model);
  else if (model.isMeasured) parts = recordParts(cell, model, await recordOf(cell));
  else parts = publishedParts(cell, model);
  if (opened !== key) return;

  const focused = document.activeElement?.id;
  content.replaceChildren(...parts.flat().filter(Boolean));
  if (!dialog.open) dialog.showModal();
  if (isSame && focused) document.getElementById(focused)?.focus();
  else {
    dialog.scrollTop = 0;
    content.querySelector("h2").focus();
  }
  const other = modelOf.get(address.one("with"));
  if (cell && model.isMeasured) await fillClasses(cell, model, other, key);
}

function heading(title, model) {
  const revision = model.isMeasured ? `@${model.revision}` : "published";
  return [
    h("h2", { tabindex: "-1", id: "dialog-title" }, nameOf(title)),
    h("p", { class: "of" }, h("a", { href: address.link({ model: model.id }) }, nameOf(model.name)),
      h("small", {}, ` ${revision} ${model.label ?? ""}`)),
  ];
}

function missing(id) {
  return [h("h2", { tabindex: "-1", id: "dialog-title" }, "No such model"),
    h("p", {}, "The address names one that this page does not hold: ", nameOf(id))];
}

function terms(pairs) {
  const rows = pairs.map(([name, value]) => {
    let shown = String(value);
    if (Array.isArray(value)) {
      const list = h("ul", {}, value.map((item) => h("li", {}, nameOf(String(item)))));
      shown = value.length > 3
        ? h("details", {}, h("summary", {}, `${value.length}, as: ${value[0]}`), list)
        : list;
    }
    return h("div", {}, h("dt", {}, name), h("dd", {}, shown));
  });
  return h("dl", {}, rows);
}

function valueLine(cell) {
  const { column } = cell;
  const unit = column.is_fraction ? " %" : "";
  const parts = [h("b", {}, valueText(cell.value, column.is_fraction) + unit)];
  if (cell.error !== null) {
    const ends = interval(cell).map((end) => valueText(end, column.is_fraction));
    const error = valueText(cell.error, column.is_fraction);
    parts.push(` ± ${error} (one standard error); 95 % interval ${ends[0]} to ${ends[1]}`);
  }
  if (column.chance !== null) {
    parts.push(`; chance ${valueText(column.chance, column.is_fraction)}`);
  }
  const marks = { best: "; the best of this question", tied: "; tied with the best" };
  parts.push(marks[cell.mark] ?? "", ".");
  return h("p", { class: "value" }, parts);
}

function recordParts(cell, model, record) {
  const { column } = cell;
  const when = [["measured", record.created.replace("T", " ").replace("Z", " UTC")],
    ["took", `${record.seconds} s`], ["samples", record.n]];
  const others = columns.filter((one) => one.question === column.question && one !== column
    && one.cells.has(cell.row));
  const also = others.map((one) => [one.title,
    valueText(one.cells.get(cell.row).value, one.is_fraction)]);
  const details = Object.entries(record.details)
    .map(([name, value]) => [name.replaceAll("_", " "), detailText(value)])
    .filter(([, text]) => text !== "");
  return [
    heading(column.title, model),
    valueLine(cell),
    record.notes.length > 0 ? h("ul", {}, record.notes.map((note) => h("li", {}, nameOf(note)))) : null,
    h("h3", {}, "The question"), terms(record.question.words),
    h("h3", {}, "Measure it again"), commandLine(record.command),
    h("p", {}, "DATA is the folder of your datasets. Data of your own is named as it was then, for example folder:PATH."),
    record.classes ? h("div", { id: "classes" }) : null,
    also.length > 0 ? [h("h3", {}, "Other metrics of the same run"), terms(also)] : null,
    h("h3", {}, "How the model took it"), terms(record.setup),
    record.training ? [h("h3", {}, "How the model was trained"), terms(record.training)] : null,
    h("h3", {}, "When and where"), terms([...when, ...record.environment]),
    details.length > 0 ? [h("h3", {}, "What the task says besides"), terms(details)] : null,
  ].flat();
}

function detailText(value) {
  if (value === null || (typeof value === "object" && Object.keys(value).length === 0)) return "";
  return typeof value === "object" ? JSON.stringify(value).replaceAll(/([,:])/g, "$1 ") : String(value);
}

function commandLine(command) {
  const code = h("pre", { tabindex: "0", "aria-label": "command" }, h("code", {}, command));
  const button = h("button", { type: "button", class: "plain", onclick: async () => {
    await navigator.clipboard.writeText(command);
    button.textContent = "Copied";
  } }, "Copy");
  return h("div", { class: "command" }, code, navigator.clipboard ? button : null);
}

function publishedParts(cell, model) {
  const { column } = cell;
  return [
    heading(column.title, model),
    h("p", { class: "value" }, h("b", {}, valueText(cell.value, column.is_fraction)),
      column.is_fraction ? " %, " : ", ", "published; not measured here, and never ranked."),
    sourceOf(model),
  ].flat();
}

function sourceOf(model) {
  const words = nameOf(model.where || model.url);
  const isLink = /^https?:\/\//.test(model.url);
  const link = isLink ? h("a", { href: model.url, rel: "noreferrer" }, words) : words;
  return h("dl", {}, h("div", {}, h("dt", {}, "source"), h("dd", {}, link)),
    model.note ? h("div", {}, h("dt", {}, "note"), h("dd", {}, nameOf(model.note))) : null);
}

function modelParts(model) {
  const own = columns.filter((column) => column.cells.has(model.row));
  const parts = families.map((family) => {
    const cells = own.filter((column) => column.family === family);
    if (cells.length === 0) return null;
    const rows = cells.map((column) => {
      const cell = column.cells.get(model.row);
      const link = h("a", { href: address.link({ column: column.id, model: model.id }) },
        valueText(cell.value, column.is_fraction));
      const error = cell.error === null ? "" : ` ± ${valueText(cell.error, column.is_fraction)}`;
      const mark = cell.mark ? h("small", {}, cell.mark === "best" ? " best" : " tied") : "";
      return h("tr", {}, h("th", { scope: "row" }, nameOf(column.title)),
        h("td", { class: "number" }, link, h("small", {}, error), mark));
    });
    return h("table", { class: "list" }, h("caption", {}, familyTitle(family)), h("tbody", {}, rows));
  });
  const facts = [["parameters", sizeText(model.params)],
    ["image size", model.size === null ? "" : `${model.size} pixels`]];
  return [
    heading(model.name, model),
    terms(facts.filter(([, text]) => text !== "")),
    model.isMeasured ? null : sourceOf(model),
    ...parts,
  ].flat();
}

// The classes of one record, or of two side by side.
async function fillClasses(cell, model, other, key) {
  const place = document.getElementById("classes");
  if (!place) return;
  const otherCell = other ? cell.column.cells.get(other.row) : undefined;
  const own = (await recordOf(cell)).classes;
  const theirs = otherCell && other.isMeasured ? (await recordOf(otherCell)).classes : null;
  if (opened !== key) return;

  const beside = [...cell.column.cells.keys()].map((row) => models[row])
    .filter((one) => one.isMeasured && one !== model);
  const choice = h("select", { id: "beside", onchange: () => address.change({ with: choice.value }) },
    h("option", { value: "" }, "no other model"),
    beside.map((one) => h("option", { value: one.id, selected: one === other }, modelOption(one))));
  const score = source.questions[cell.column.question].class_score;
  const rows = own.map((one, index) => {
    const second = theirs ? theirs[index].score : null;
    const isKnown = theirs && one.score !== null && second !== null;
    return { ...one, second, difference: isKnown ? one.score - second : null };
  });
  const fields = [["name", "class"], ["score", theirs ? shortened(model.name, 24) : score]];
  if (theirs) fields.push(["second", shortened(other.name, 24)], ["difference", "difference"]);

  const by = address.one("by") || (theirs ? "-difference" : "-score");
  const field = by.replace(/^-/, "");
  const sign = by.startsWith("-") ? -1 : 1;
  const isEmpty = (value) => value === null || value === undefined;
  rows.sort((a, b) => isEmpty(a[field]) - isEmpty(b[field])
    || sign * ((a[field] > b[field]) - (a[field] < b[field])) || a.index - b.index);

  const heads = fields.map(([name, title]) => {
    const order = field === name ? (sign < 0 ? "descending" : "ascending") : null;
    const next = by === `-${name}` || (field !== name && name === "name") ? name : `-${name}`;
    return h("th", { scope: "col", "aria-sort": order, class: name === "name" ? null : "number" },
      h("button", { type: "button", id: `by-${name}`, onclick: () => address.change({ by: next }) },
        nameOf(title)));
  });
  const number = (value, isSigned) => {
    if (isEmpty(value)) return h("td", { class: "number" }, hidden("none"));
    const text = valueText(value);
    const kind = isSigned && value !== 0 ? (value > 0 ? " up" : " down") : "";
    return h("td", { class: `number${kind}` }, isSigned && value > 0 ? `+${text}` : text);
  };
  const lines = rows.map((row) => h("tr", {}, h("th", { scope: "row" }, nameOf(row.name)),
    fields.slice(1).map(([name]) => number(row[name], name === "difference"))));
  const table = h("table", { class: "list", id: "class-table" },
    h("caption", { class: "unseen" }, "Scores by class"),
    h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines));
  const focused = document.activeElement?.id;
  place.replaceChildren(
    h("h3", {}, `By class (${score}, percent)`),
    h("p", {}, h("label", { for: "beside" }, "Beside "), choice),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores by class" }, table),
  );
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function modelOption(model) {
  return shortened(`${model.name} ${model.label ?? ""}`.trim(), 60) + ` @${model.revision}`;
}
