// The charts of a report: a card for each number, with a line for each run that has it.
//
// A pointer or the arrow keys move one cursor through all charts; each says below itself what the
// runs had there. What a reader chooses stands in the address.
"use strict";

const source = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 6; // --run-0 and so on, in report.css
// Five patterns against six colours: thirty lines differ, and neighbours differ in both.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "14 4"];
const TABLE_ROWS = 25; // of a chart's table
const NEAR = 7; // pixels between the cursor and an event that it names
// A curve of more points is noise that hides its course: a mean over a part of them is drawn on it.
const MOST_CLEAR = 120;
const MOST_DOTS = { probe: 40, row: 12 }; // points that get a dot each
const PART = 40; // of its points, the part that a mean takes

const runs = source.runs.map((run, index) => ({
  ...run,
  index,
  color: source.runs.length === 1 ? "var(--accent)" : `var(--run-${index % COLOURS})`,
  dash: DASHES[index % DASHES.length],
}));
const figures = [];
let cursor = null; // where on the axis, in its unit

// The axis: where a step of a run lies.

const longest = Math.max(...runs.map((run) => run.clock.at(-1)[1]));
const TIME_UNITS = [[7200, 3600, "hours"], [120, 60, "minutes"], [0, 1, "seconds"]];
const [, SECONDS_OF_UNIT, TIME_UNIT] = TIME_UNITS.find(([least]) => longest >= least);
const AXES = {
  step: { label: "step", place: (run, step) => step },
  images: { label: "images seen", place: (run, step) => step * run.batch },
  time: {
    label: `${TIME_UNIT} of training steps`,
    place: (run, step) => secondsAt(run, step) / SECONDS_OF_UNIT,
  },
};

function secondsAt(run, step) {
  const after = d3.bisector(([at]) => at).left(run.clock, step);
  if (after === run.clock.length) return run.clock.at(-1)[1];
  const [step1, seconds1] = run.clock[after];
  const [step0, seconds0] = after > 0 ? run.clock[after - 1] : [0, 0];
  return step1 === step0 ? seconds1 : seconds0 + (seconds1 - seconds0) * (step - step0) / (step1 - step0);
}

function axis() {
  return AXES[address.one("axis")] ?? AXES.step;
}

function shownRuns() {
  const hidden = address.all("hide");
  return runs.filter((run) => !hidden.includes(String(run.index)));
}

// Numbers as text.

function numberText(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const short = Number(value.toPrecision(4));
  return size >= 1e6 || size < 1e-3 ? short.toExponential().replace("+", "") : String(short);
}

function pointText(chart, [, value, error]) {
  const scale = chart.percent ? 100 : 1;
  const text = chart.percent ? (scale * value).toFixed(1) : numberText(value);
  return error === undefined ? text : `${text} ± ${(scale * error).toFixed(1)}`;
}

function stepText(step) {
  return step.toLocaleString("en");
}

function lineOf(run) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ width: 28, height: 8, "aria-hidden": "true", class: "line" })) {
    svg.setAttribute(name, value);
  }
  const looks = { x1: 0, x2: 28, y1: 4, y2: 4, stroke: run.color, "stroke-width": 2.5, "stroke-dasharray": run.dash };
  for (const [name, value] of Object.entries(looks)) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}

// A chart.

class Figure {
  constructor(chart, place) {
    this.chart = chart;
    this.drawing = h("div", {
      class: "chart", tabindex: "0", role: "group",
      "aria-label": `Chart of ${chart.title}; arrow keys move through its values`,
    });
    this.readout = h("p", { class: "readout" });
    this.table = h("details", {}, h("summary", {}, "Table", hidden(` of ${chart.title}`)));
    const bounds = chart.bounds.map(([value, side, words]) => `${side} ${value}: ${words}`);
    place.append(h("div", { class: "card" },
      h("h3", {}, nameOf(chart.title)), this.drawing, this.readout,
      chart.meaning ? h("p", {}, chart.meaning) : null,
      bounds.length > 0 ? h("p", {}, `Thresholds: ${bounds.join("; ")}.`) : null,
      this.table));

    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerdown", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => setCursor(null));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    // only the chart that is being read speaks
    this.drawing.addEventListener("focus", () => this.readout.setAttribute("aria-live", "polite"));
    this.drawing.addEventListener("blur", () => {
      this.readout.removeAttribute("aria-live");
      setCursor(null);
    });
    this.table.addEventListener("toggle", () => this.fillTable());
    figures.push(this);
  }

  // The lines of the shown runs that have this number, of student and teacher.
  lines() {
    const { place } = axis();
    const scale = this.chart.percent ? 100 : 1;
    const numbers = [[this.chart.name, false]];
    if (this.chart.teacher) numbers.push([this.chart.teacher, true]);
    return shownRuns().flatMap((run) => {
      const own = numbers.filter(([name]) => Object.hasOwn(run.curves, name));
      return own.map(([name, isTeacher]) => {
        const curve = run.curves[name];
        const points = curve.points.map((point) => {
          const [step, value, error] = point;
          const x = place(run, step);
          if (error === undefined) return { step, point, x, y: scale * value };
          // a fraction ends at 0 and 1, and so does its interval
          const low = scale * Math.max(0, value - 1.96 * error);
          const high = scale * Math.min(1, value + 1.96 * error);
          return { step, point, x, y: scale * value, low, high };
        });
        const odd = curve.odd.map(([step, text]) => ({ step, text, x: place(run, step) }));
        const isShort = points.length <= MOST_DOTS[this.chart.percent ? "probe" : "row"];
        return { run, points, odd, isTeacher, isShort, hasTeacher: own.length > 1 };
      });
    });
  }

  draw() {
    const { chart } = this;
    const { label } = axis();
    this.shown = this.lines();
    const points = this.shown.flatMap((line) => line.points);
    const odd = this.shown.flatMap((line) => line.odd);
    const bounds = chart.bounds.map(([value, side, words]) => ({ value, side, words }));
    const values = [...points.flatMap(({ y, low = y, high = y }) => [low, high]), ...bounds.map((one) => one.value), ...chart.ends];

    // a logarithm needs what is above 0, in the curve as in its intervals
    const isLog = chart.is_log && values.every((value) => value > 0);
    const [low, high] = values.length > 0 ? padded(d3.extent(values), isLog) : [0, 1];
    // the same axis in every chart, so that the cursor stands at one place in all
    const last = Math.max(0, ...shownRuns().map((run) => axis().place(run, run.clock.at(-1)[0])));
    const drawnRuns = [...new Set(this.shown.map(({ run }) => run))];
    const events = drawnRuns.flatMap(eventsOf).filter(({ x }) => x <= last);
    const width = Math.max(240, Math.floor(this.drawing.clientWidth || 380));
    const plot = Plot.plot({
      width, height: 210, marginLeft: 48, marginRight: 14, marginTop: 24, marginBottom: 36,
      style: { background: "none", overflow: "visible", fontSize: "11.5px" },
      x: { label, domain: [0, last || 1], ticks: width < 340 ? 4 : 6, tickFormat: "~s" },
      y: {
        label: `${chart.unit || "value"}${isLog ? " (log scale)" : ""}`, type: isLog ? "log" : "linear",
        domain: [low, high], grid: true, ticks: isLog ? 4 : 5, tickFormat: tickText,
      },
      marks: [
        Plot.ruleX(events.filter((one) => one.kind === "resumption"), {
          x: "x", stroke: "var(--soft)", strokeDasharray: "1 3", strokeWidth: 1.5,
        }),
        Plot.ruleY(bounds, { y: "value", stroke: "var(--bound)", strokeDasharray: "4 3" }),
        ...this.shown.flatMap((line) => marksOf(line)),
        this.named(bounds, low, high, isLog).map((one) => Plot.text([one], {
          y: "value", text: [`${one.side} ${one.value}: ${one.words}`], frameAnchor: "right",
          textAnchor: "end", dy: one.dy, fill: "var(--bound)", stroke: "var(--card)", fontSize: 11,
        })),
        Plot.text(odd, {
          x: "x", frameAnchor: "top", dy: 4, text: () => "×", fontSize: 14, fill: "var(--bound)",
          title: (one) => `step ${one.step}: ${one.text}`,
        }),
        Plot.text(events.filter((one) => one.kind === "note"), {
          x: "x", frameAnchor: "top", dy: -7, text: () => "▼", fill: "var(--warned)", title: "text",
        }),
        Plot.text(events.filter((one) => one.kind === "checkpoint"), {
          x: "x", frameAnchor: "bottom", dy: -2, text: () => "▲", fontSize: 9, fill: "var(--soft)", title: "text",
        }),
      ].flat(),
    });
    for (const part of plot.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
    plot.setAttribute("aria-hidden", "true"); // the group around it, its readout and table speak
    this.events = events;
    this.scales = { x: plot.scale("x"), y: plot.scale("y") };
    this.cursor = d3.select(plot).append("g").attr("pointer-events", "none");
    this.drawing.replaceChildren(plot);
    if (this.table.open) this.fillTable();
    this.follow();
  }

  // The bounds whose words do not cover each other's; all of them stand above the chart.
  named(bounds, low, high, isLog) {
    const height = 150;
    const place = isLog ? d3.scaleLog([low, high], [height, 0]) : d3.scaleLinear([low, high], [height, 0]);
    const kept = [];
    for (const bound of bounds) {
      const y = place(bound.value);
      const dy = y < 16 ? 8 : -7;
      if (kept.every((other) => Math.abs(other.y + other.dy - y - dy) > 13)) kept.push({ ...bound, y, dy });
    }
    return kept;
  }

  // Pointer and keys.

  point(event) {
    const svg = this.drawing.querySelector("svg");
    if (!svg) return;
    const [x] = d3.pointer(event, svg);
    setCursor(Math.max(0, this.scales.x.invert(x)));
  }

  key(event) {
    const places = [...new Set(this.shown.flatMap((line) => line.points.map(({ x }) => x)))];
    places.sort((a, b) => a - b);
    if (event.key === "Escape") setCursor(null);
    if (places.length === 0) return;
    const at = cursor === null ? -1 : d3.bisectLeft(places, cursor - 1e-9);
    const page = Math.max(1, Math.round(places.length / 10));
    const moves = {
      ArrowRight: cursor !== null && places[at] !== cursor ? at : at + 1,
      ArrowLeft: at < 0 ? places.length - 1 : at - 1,
      Home: 0, End: places.length - 1, PageDown: at + page, PageUp: at - page,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    setCursor(places[Math.min(places.length - 1, Math.max(0, moves[event.key]))]);
  }

  // What the runs had at the cursor, or last.
  follow() {
    this.cursor.selectAll("*").remove();
    const parts = this.shown.map((line) => {
      const last = this.lastOf(line);
      const near = cursor === null ? last : nearest(line.points, cursor) ?? last;
      if (cursor !== null && near.y !== undefined) {
        this.cursor.append("circle").attr("cx", this.scales.x.apply(near.x))
          .attr("cy", this.scales.y.apply(near.y)).attr("r", 3.5).attr("fill", line.run.color);
      }
      const value = near.point ? pointText(this.chart, near.point) : near.text;
      const words = `${value}${this.chart.percent ? " %" : ""} at step ${stepText(near.step)}`;
      const whose = ownerOf(line);
      if (whose.length === 0) return h("span", {}, cursor === null ? `last ${words}` : words);
      return h("span", {}, lineOf(line.run), whose, words);
    });
    if (cursor !== null) {
      const x = this.scales.x.apply(cursor);
      this.cursor.append("line").attr("x1", x).attr("x2", x).attr("y1", 24).attr("y2", 174)
        .attr("stroke", "var(--ink)").attr("stroke-opacity", 0.5);
      for (const event of this.events) {
        if (Math.abs(this.scales.x.apply(event.x) - x) > NEAR) continue;
        parts.push(h("span", { class: "event" }, nameOf(event.text)));
      }
    }
    this.readout.replaceChildren(...parts);
  }

  // The last value of a line, be it finite or not.
  lastOf({ points, odd }) {
    const ends = [points.at(-1), odd.at(-1)].filter(Boolean);
    return ends.reduce((one, other) => (other.step >= one.step ? other : one));
  }

  // The same for those who see no lines: evenly spread steps, and the extremes.
  fillTable() {
    this.table.querySelector(".scroll")?.remove();
    if (!this.table.open) return;
    const steps = [...new Set(this.shown.flatMap(({ points, odd }) => [...points, ...odd].map(({ step }) => step)))];
    steps.sort((a, b) => a - b);
    const stride = (steps.length - 1) / (TABLE_ROWS - 1);
    const chosen = steps.length <= TABLE_ROWS ? steps
      : d3.range(TABLE_ROWS).map((place) => steps[Math.round(place * stride)]);
    const cellOf = ({ points, odd }, step) => {
      const point = points.find((one) => one.step === step);
      if (point) return pointText(this.chart, point.point);
      return odd.find((one) => one.step === step)?.text ?? "";
    };
    const extremes = [["least", d3.least], ["largest", d3.greatest]].map(([name, choose]) => h("tr", {},
      h("th", { scope: "row" }, name),
      this.shown.map(({ points }) => {
        const found = choose(points, ({ y }) => y);
        return h("td", { class: "number" },
          found ? `${pointText(this.chart, found.point)} at ${stepText(found.step)}` : "");
      })));
    this.table.append(h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Values of ${this.chart.title}` },
      h("table", { class: "list" },
        h("caption", {}, `${chosen.length} of ${counted(steps.length, "step")}, ${this.chart.unit || "values"}`),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "step"),
          this.shown.map((line) => h("th", { scope: "col" }, ownerOf(line), ownerOf(line).length ? null : "value")))),
        h("tbody", {}, extremes, chosen.map((step) => h("tr", {}, h("th", { scope: "row" }, stepText(step)),
          this.shown.map((line) => h("td", { class: "number" }, cellOf(line, step)))))))));
  }
}

// Whose a line is; nothing for the student of an only run, unless its teacher is there too.
function ownerOf({ run, isTeacher, hasTeacher }) {
  const name = runs.length > 1 ? [nameOf(run.name)] : [];
  if (isTeacher) return [...name, h("small", {}, " ○ teacher")];
  return hasTeacher && runs.length === 1 ? [h("small", {}, "● student")] : name;
}

function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

// Room around the values, so that no line lies on the frame.
function padded([low, high], isLog) {
  if (isLog) {
    const factor = Math.max(1.05, (high / low) ** 0.05);
    return [low / factor, high * factor];
  }
  if (low === high) return [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  const room = 0.04 * (high - low);
  return [low === 0 ? 0 : low - room, high + room];
}

function tickText(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential().replace("+", "").replace(/(\.\d\d)\d*/, "$1");
  return size >= 1e4 ? d3.format("~s")(value) : String(Number(value.toPrecision(4)));
}

// A teacher's line is thinner than the student's, and its dots are hollow.
function marksOf({ run, points, isTeacher, isShort }) {
  const looks = {
    x: "x", stroke: run.color, strokeWidth: isTeacher ? 1.2 : 1.8, strokeDasharray: run.dash,
  };
  const withErrors = points.filter(({ low }) => low !== undefined);
  const isNoisy = points.length > MOST_CLEAR;
  const fill = isTeacher ? "var(--card)" : run.color;
  return [
    Plot.areaY(withErrors, { x: "x", y1: "low", y2: "high", fill: run.color, fillOpacity: 0.13 }),
    isNoisy ? Plot.line(points, { x: "x", y: "y", stroke: run.color, strokeOpacity: 0.35, strokeWidth: 1 }) : null,
    Plot.line(isNoisy ? means(points) : points, { ...looks, y: "y" }),
    isShort ? Plot.dot(points, { x: "x", y: "y", r: isTeacher ? 3.2 : 2.6, fill, stroke: run.color }) : null,
  ];
}

// Around each point, the mean of a part of all; at both ends of what is there.
function means(points) {
  const half = Math.ceil(points.length / PART / 2);
  return points.map((point, place) => {
    const around = points.slice(Math.max(0, place - half), place + half + 1);
    return { x: point.x, y: d3.mean(around, ({ y }) => y) };
  });
}

function eventsOf(run) {
  const { place } = axis();
  const whose = runs.length > 1 ? `${run.name}, ` : "";
  const kinds = [["note", run.notes], ["checkpoint", run.checkpoints], ["resumption", run.resumptions]];
  return kinds.flatMap(([kind, events]) => events.map(([step, text]) => (
    { kind, x: place(run, step), text: `${whose}${text}` })));
}

function nearest(points, x) {
  const place = d3.bisector((one) => one.x).center(points, x);
  return points[place];
}

function setCursor(x) {
  if (cursor === x) return;
  cursor = x;
  for (const figure of figures) figure.follow();
}

// The page.

for (const { title, charts } of source.groups) {
  const place = h("div", { class: "charts" });
  document.getElementById("charts").append(h("section", {}, h("h2", {}, title), place));
  for (const chart of charts) new Figure(chart, place);
}

document.getElementById("controls").hidden = false;
const select = document.getElementById("axis");
for (const [value, { label }] of Object.entries(AXES)) select.append(h("option", { value }, label));
select.addEventListener("input", () => address.change({ axis: select.value === "step" ? null : select.value }));

const legend = document.getElementById("legend");
legend.hidden = runs.length === 1;
for (const run of runs) {
  const box = h("input", { type: "checkbox", value: String(run.index), oninput: chooseRuns });
  legend.append(h("label", {}, box, lineOf(run), nameOf(run.name)));
}

function chooseRuns() {
  const boxes = [...legend.querySelectorAll("input")];
  address.change({ hide: boxes.filter((box) => !box.checked).map((box) => box.value) });
}

const isThinned = ({ rows, points, odd }) => rows > points.length + odd.length;
const allCurves = runs.flatMap((run) => Object.values(run.curves));
document.getElementById("marks").textContent = [
  [runs.some((run) => run.notes.length > 0), "▼ what the run said"],
  [runs.some((run) => run.checkpoints.length > 0), "▲ a checkpoint that is kept"],
  [runs.some((run) => run.resumptions.length > 0), "┊ a resumption"],
  [figures.some((figure) => figure.lines().some(({ isTeacher }) => isTeacher)), "○ the teacher"],
  [figures.some(({ chart }) => chart.bounds.length > 0), "- - - a threshold"],
  [allCurves.some(({ odd }) => odd.length > 0), "× a value that is not finite"],
  [allCurves.some(({ points }) => points.length > MOST_CLEAR),
    "a bold line on a faint one: the mean of nearby values"],
  [allCurves.some(isThinned), `of curves of up to ${stepText(Math.max(...allCurves.map(({ rows }) => rows)))}`
    + " values, the least and the largest of each stretch are drawn"],
].filter(([is]) => is).map(([, words]) => words).join(" · ");

function apply() {
  applyTheme();
  select.value = Object.entries(AXES).find(([, one]) => one === axis())[0];
  const shown = shownRuns();
  for (const box of legend.querySelectorAll("input")) box.checked = shown.includes(runs[Number(box.value)]);
  const key = `${select.value} ${shown.map((run) => run.index)} ${document.documentElement.clientWidth}`;
  if (key === drawnKey) return;
  drawnKey = key;
  cursor = null;
  for (const figure of figures) figure.draw();
}

let drawnKey = "";
window.addEventListener("hashchange", apply);
window.addEventListener("resize", apply);
apply();
document.querySelector("main").dataset.ready = "yes";
