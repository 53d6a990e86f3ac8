// The data of the page as objects, its numbers as text, and what is computed from what is shown.
"use strict";

const source = JSON.parse(document.getElementById("data").textContent);

const models = source.models.id.map((id, row) => {
  const model = { row };
  for (const [field, values] of Object.entries(source.models)) model[field] = values[row];
  model.isMeasured = model.url === null;
  model.sortName = model.name.toLowerCase();
  return model;
});

const columns = source.columns.map((given, index) => {
  const column = { ...given, index, cells: new Map() };
  given.rows.forEach((row, place) => {
    const value = given.values[place];
    column.cells.set(row, { row, column, value, error: given.errors[place], place });
  });

  // of the rows that are best or tied with the best, the best itself has the best value
  const bestValues = given.best.map((row) => column.cells.get(row).value);
  const best = given.is_fraction ? Math.max(...bestValues) : Math.min(...bestValues);
  for (const row of given.best) {
    const cell = column.cells.get(row);
    cell.mark = cell.value === best ? "best" : "tied";
  }
  given.published.rows.forEach((row, place) => {
    column.cells.set(row, { row, column, value: given.published.values[place], error: null });
  });
  column.isPublishedOnly = given.question === null;
  return column;
});

const columnOf = new Map(columns.map((column) => [column.id, column]));
const modelOf = new Map(models.map((model) => [model.id, model]));
const known = Object.keys(source.family_titles);
const families = [...new Set(columns.map((column) => column.family))];
families.sort((a, b) => placeOf(a) - placeOf(b));

// Others than ours come last, in the order of their columns.
function placeOf(family) {
  return known.includes(family) ? known.indexOf(family) : known.length;
}

function familyTitle(family) {
  const title = source.family_titles[family] ?? family;
  return title.charAt(0).toUpperCase() + title.slice(1);
}

// Numbers as text.

// As Python rounds: an exact tie goes to the even digit, so that the page and the tables beside it
// agree. toFixed is exact, and takes the larger of the two in a tie.
function fixed(number, digits) {
  const text = number.toFixed(digits);
  const rest = number.toFixed(60).split(".")[1].slice(digits);
  const isTie = /^50*$/.test(rest);
  if (!isTie || Number(text.at(-1)) % 2 === 0) return text;
  return (Number(text) - Math.sign(number) / 10 ** digits).toFixed(digits);
}

// A score of the overview, which may lie below 0; what rounds to 0 has no sign.
function scoreText(score) {
  const text = fixed(score, 1);
  return text === "-0.0" ? "0.0" : text;
}

// A fraction in percent, a rank as it is.
function valueText(value, isFraction = true, digits = 1) {
  return fixed(isFraction ? 100 * value : value, digits);
}

// Half of a 95 % interval is 1.96 standard errors; a fraction ends at 0 and 1.
function interval(cell) {
  const low = cell.value - 1.96 * cell.error;
  const high = cell.value + 1.96 * cell.error;
  return cell.column.is_fraction ? [Math.max(low, 0), Math.min(high, 1)] : [Math.max(low, 1), high];
}

function sizeText(params) {
  if (params === null) return "";
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (params >= size) return `${Number((params / size).toPrecision(3))} ${unit}`;
  }
  return String(params);
}

function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

// What is computed from the shown rows.

// The columns over which rows may be averaged: the one that most rows have, and all others that
// these rows have, too. A row that lacks one of them has no average: a mean over gaps would
// compare different questions.
function basis(candidates, rows) {
  let best = { rows: [], columns: [] };
  const seen = new Set();
  for (const column of candidates) {
    const having = rows.filter((row) => column.cells.has(row));
    const key = having.join();
    if (having.length === 0 || having.length < best.rows.length || seen.has(key)) continue;
    seen.add(key);
    const all = candidates.filter((other) => having.every((row) => other.cells.has(row)));
    const isLarger = having.length > best.rows.length || all.length > best.columns.length;
    if (isLarger) best = { rows: having, columns: all };
  }
  return best;
}

// 0 is chance and 1 is perfect.
function centred(cell) {
  const chance = cell.column.chance ?? 0;
  return (cell.value - chance) / (1 - chance);
}

function meanScore(row, ofBasis) {
  const cells = ofBasis.map((column) => column.cells.get(row));
  if (cells.length === 0 || cells.includes(undefined)) return undefined;
  return cells.reduce((sum, cell) => sum + centred(cell), 0) / cells.length;
}

// row -> mean of its ranks over the columns; equal values share the mean of their ranks.
function meanRanks(rows, ofBasis) {
  const sums = new Map(rows.map((row) => [row, 0]));
  for (const column of ofBasis) {
    const sign = column.is_fraction ? -1 : 1;
    const order = rows.map((row) => [sign * column.cells.get(row).value, row]);
    order.sort((a, b) => a[0] - b[0]);
    for (let start = 0; start < order.length; ) {
      let end = start;
      while (end < order.length && order[end][0] === order[start][0]) end += 1;
      const rank = (start + 1 + end) / 2;
      for (; start < end; start += 1) sums.set(order[start][1], sums.get(order[start][1]) + rank);
    }
  }
  return new Map(rows.map((row) => [row, sums.get(row) / ofBasis.length]));
}

// The points that no smaller model beats, from small to large.
function paretoLine(points) {
  const order = [...points].sort((a, b) => a.params - b.params || b.score - a.score);
  const line = [];
  for (const point of order) {
    if (line.length === 0 || point.score > line.at(-1).score) line.push(point);
  }
  return line;
}

// Packs: deflated, in base64.

async function unpackBytes(pack) {
  const bytes = Uint8Array.from(atob(pack), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const unpacked = new Map();
function unpackJson(pack) {
  if (!unpacked.has(pack)) {
    const text = unpackBytes(pack).then((bytes) => new TextDecoder().decode(bytes));
    unpacked.set(pack, text.then(JSON.parse));
  }
  return unpacked.get(pack);
}

// What the record behind a measured cell says; ``classes`` is null where the task knows none.
async function recordOf(cell) {
  const question = source.questions[cell.column.question];
  const [records, shared] = await Promise.all([
    unpackJson(question.records),
    unpackJson(source.shared),
  ]);
  const place = records.rows.indexOf(cell.row);
  let classes = null;
  if (records.class_names.length > 0) {
    const scores = new DataView(await unpackBytes(question.classes));
    const first = place * records.class_names.length;
    classes = records.class_names.map((name, index) => {
      const score = scores.getUint16(2 * (first + index), true);
      return { name, index, score: score === 0xffff ? null : score / 10000 };
    });
  }
  return {
    question,
    classes,
    setup: shared[records.setups[place]],
    training: shared[records.trainings[place]] ?? null,
    environment: shared[records.environments[place]],
    seconds: records.seconds[place],
    created: records.created[place],
    n: records.n[place],
    command: records.commands[place],
    notes: records.notes[place],
    details: records.details[place],
  };
}
