// The figures, drawn by Observable Plot as SVG. Filled marks are measured, hollow ones published.
"use strict";

const MOST_LINES = 10; // curves that can be told apart

function drawn(place, options, label) {
  const width = Math.max(260, Math.floor(place.clientWidth || 640));
  const figure = Plot.plot({ width, style: { background: "none", overflow: "visible", fontSize: "12px" }, ...options });
  for (const part of figure.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
  for (const part of figure.querySelectorAll("svg")) part.setAttribute("aria-hidden", "true");
  const svg = figure.tagName === "svg" ? figure : figure.querySelector(":scope > svg");
  svg.removeAttribute("aria-hidden");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  place.replaceChildren(figure);
  return figure;
}

function around(values, factor) {
  return [Math.min(...values) / factor, Math.max(...values) * factor];
}

// The marks of models: ``points`` of {model, x, y, title}; a click opens the model.
function modelMarks(points) {
  const published = points.filter((point) => !point.model.isMeasured);
  const measured = points.filter((point) => point.model.isMeasured);
  const hollow = { x: "x", y: "y", r: 3.5, stroke: "var(--soft)", fill: "var(--card)" };
  const filled = { x: "x", y: "y", r: 4.5, fill: "var(--accent)", stroke: "var(--card)" };
  return [
    Plot.dot(published, hollow),
    Plot.dot(measured, filled),
    Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: "title", fill: "var(--card)" })),
  ];
}

// In pixels, as ``drawn`` writes it.
function textWidth(text) {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.font = "12px system-ui, sans-serif";
  return Math.ceil(canvas.measureText(text).width);
}

function openOnClick(figure) {
  figure.addEventListener("click", () => {
    const model = figure.value?.model;
    if (model) address.change({ model: model.id, column: null, with: null }, { isStep: true });
  });
}

function modelTitle(model) {
  const parts = [model.name, model.label, model.isMeasured ? "" : "(published)"];
  return parts.filter(Boolean).join(" ");
}

// Score against parameters, with the line of those that no smaller measured model beats.
function isDrawn({ model, score }) {
  return model.params !== null && score !== undefined;
}

function drawSizes(place, scores, label) {
  const points = scores.filter(isDrawn).map(({ model, score, low, high }) => ({
      model, score, low, high, params: model.params, x: model.params, y: score,
      title: `${modelTitle(model)}\n${sizeText(model.params)} parameters, ${scoreText(score)}`,
    }));
  if (points.length === 0) {
    const text = "No shown model has both this score and a known number of parameters.";
    place.replaceChildren(h("p", {}, text));
    return;
  }
  const line = paretoLine(points.filter((point) => point.model.isMeasured));
  const named = line.length <= 6 ? line : line.filter((_, index) => index % 2 === line.length % 2);
  const domain = around(points.map((point) => point.params), 1.6);
  const figure = drawn(place, {
    height: 330, marginLeft: 42, marginRight: 24, marginTop: 26, marginBottom: 40,
    x: { type: "log", domain, label: "parameters", ticks: 4, tickFormat: sizeText },
    y: { label, grid: true, nice: true },
    marks: [
      Plot.line(line, { x: "x", y: "y", stroke: "var(--accent)", strokeOpacity: 0.5 }),
      Plot.ruleX(points.filter((point) => point.low !== undefined), {
        x: "x", y1: "low", y2: "high", stroke: "var(--soft)",
      }),
      ...modelMarks(points),
      ...namesWithin(named, domain),
    ],
  }, `${label} against parameters of ${counted(points.length, "model")}; the table has the numbers`);
  openOnClick(figure);
}

// The names of points; near an edge they are written away from it.
function namesWithin(points, [low, high]) {
  const anchorOf = (point) => {
    const share = Math.log(point.params / low) / Math.log(high / low);
    return share < 0.35 ? "start" : share > 0.65 ? "end" : "middle";
  };
  return ["start", "middle", "end"].map((textAnchor) => Plot.text(
    points.filter((point) => anchorOf(point) === textAnchor),
    {
      x: "x", y: "y", text: (point) => shortened(modelTitle(point.model), 26), dy: -12,
      fill: "var(--ink)", stroke: "var(--card)", textAnchor,
    },
  ));
}

function shortened(text, length) {
  const letters = [...text];
  if (letters.length <= length) return text;
  const half = Math.floor((length - 1) / 2);
  return `${letters.slice(0, half).join("")}…${letters.slice(-half).join("")}`;
}

// Few-shot curves: one line a model, of the columns of one question.
function shotsOf(column) {
  const match = /_(\d+)shot$/.exec(column.metric);
  return match ? Number(match[1]) : null;
}

function drawCurves(place, ofQuestion, rows) {
  const byShots = [...ofQuestion].sort((a, b) => shotsOf(a) - shotsOf(b));
  const lines = rows.map((model) => {
    const points = byShots.filter((column) => column.cells.has(model.row)).map((column) => {
      const cell = column.cells.get(model.row);
      const [low, high] = cell.error === null ? [cell.value, cell.value] : interval(cell);
      const title = `${modelTitle(model)}\n${shotsOf(column)} shots: ${valueText(cell.value)}`;
      return {
        model, title, x: shotsOf(column), y: 100 * cell.value, low: 100 * low, high: 100 * high,
        name: shortened(`${modelTitle(model)}@${model.revision ?? ""}`, 44),
      };
    });
    return points;
  });
  const kept = lines.filter((points) => points.length > 0);
  kept.sort((a, b) => b.at(-1).y - a.at(-1).y);
  const shown = kept.slice(0, MOST_LINES).flat();
  if (shown.length === 0) {
    place.replaceChildren(h("p", {}, "No shown model was measured."));
    return;
  }
  const measured = shown.filter((point) => point.model.isMeasured);
  const figure = drawn(place, {
    height: 300, marginLeft: 42, marginRight: 20, marginTop: 26, marginBottom: 40,
    color: { legend: true, domain: [...new Set(shown.map((point) => point.name))], scheme: "observable10" },
    x: { type: "log", label: "shots a class", ticks: byShots.map(shotsOf), tickFormat: String },
    y: { label: "percent", grid: true, zero: true },
    marks: [
      Plot.ruleX(measured, { x: "x", y1: "low", y2: "high", stroke: "name", strokeOpacity: 0.6 }),
      Plot.line(shown, { x: "x", y: "y", z: "name", stroke: "name" }),
      Plot.dot(measured, { x: "x", y: "y", fill: "name" }),
      Plot.dot(shown.filter((point) => !point.model.isMeasured), {
        x: "x", y: "y", stroke: "name", fill: "var(--card)",
      }),
      Plot.tip(shown, Plot.pointer({ x: "x", y: "y", title: "title", fill: "var(--card)" })),
    ],
  }, `Few-shot curves of ${counted(new Set(shown.map((one) => one.name)).size, "model")}`);
  openOnClick(figure);
  if (kept.length > MOST_LINES) {
    place.append(h("p", {}, `The best ${MOST_LINES} of ${kept.length} shown models.`));
  }
}

// ImageNet against each of its variants; below the line a model is worse on the variant.
const VARIANTS = /^(imagenet_(v2|a|r|sketch)|objectnet)\/zeroshot$/;

function imagenetPairs(shown) {
  const top1 = shown.filter((column) => column.metric === "acc1");
  const largest = (some) => some.sort((a, b) => b.cells.size - a.cells.size)[0];
  const base = largest(top1.filter((column) => column.task === "imagenet1k/zeroshot"));
  const tasks = [...new Set(top1.map((column) => column.task))].filter((one) => VARIANTS.test(one));
  if (!base) return [];
  return tasks.sort().map((task) => [base, largest(top1.filter((one) => one.task === task))]);
}

function drawVariants(place, pairs, rows) {
  place.replaceChildren();
  for (const [base, variant] of pairs) {
    const both = rows.filter(({ row }) => base.cells.has(row) && variant.cells.has(row));
    const points = both.map((model) => {
      const x = 100 * base.cells.get(model.row).value;
      const y = 100 * variant.cells.get(model.row).value;
      return { model, x, y, title: `${modelTitle(model)}\n${fixed(x, 1)} and ${fixed(y, 1)}` };
    });
    if (points.length === 0) continue;
    const own = h("div", { class: "small" });
    place.append(h("div", { class: "card" }, h("h4", {}, variant.title), own));
    const ends = points.flatMap((point) => [point.x, point.y]);
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const figure = drawn(own, {
      height: 240, marginLeft: 40, marginTop: 26, marginBottom: 40,
      x: { label: "ImageNet, percent", nice: true }, y: { label: "variant", grid: true, nice: true },
      marks: [
        Plot.link([0], {
          x1: () => low, y1: () => low, x2: () => high, y2: () => high,
          stroke: "var(--soft)", strokeDasharray: "2 3",
        }),
        ...modelMarks(points),
      ],
    }, `${variant.title} against ${base.title}: ${counted(points.length, "model")}`);
    openOnClick(figure);
  }
}

// Differences with their intervals, in points.
function drawChanges(place, rows) {
  const points = rows.map(([title, before, after, low, high]) => {
    const difference = 100 * (after - before);
    const ends = low === null ? {} : { low: 100 * low, high: 100 * high };
    const tone = low === null || (low <= 0 && high >= 0) ? "flat" : difference > 0 ? "accent" : "down";
    return { title: shortened(title, 46), difference, ...ends, color: `var(--${tone})` };
  });
  // the names stand beside the figure where they leave at least half of it
  const widest = Math.max(...points.map((point) => textWidth(point.title)));
  const isNarrow = place.clientWidth < 2 * widest;
  drawn(place, {
    height: 40 + 26 * points.length + (isNarrow ? 16 * points.length : 0),
    marginLeft: isNarrow ? 12 : widest + 12, marginTop: 24, marginRight: 16, marginBottom: 16,
    x: { label: null, grid: true, axis: "top" },
    y: { label: null, domain: points.map((point) => point.title), axis: isNarrow ? null : "left",
      tickSize: 0 },
    marks: [
      Plot.ruleX([0], { stroke: "var(--soft)" }),
      Plot.ruleY(points, { y: "title", x1: "low", x2: "high", stroke: "color", strokeWidth: 2.5 }),
      Plot.dot(points, { y: "title", x: "difference", fill: "color", r: 4.5 }),
      isNarrow
        ? Plot.text(points, {
            y: "title", text: "title", frameAnchor: "left", dy: -14, fill: "var(--ink)",
            stroke: "var(--card)",
          })
        : null,
    ],
  }, "Differences with 95 % intervals; the table has the numbers");
}
