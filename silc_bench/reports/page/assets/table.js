// A table of any length: sorted by TanStack Table; only the rows in sight are in the document.
//
// Measured rows stand first, published ones below them: they are never ranked with each other.
// Arrow keys, Home, End and Page keys move between the links of the cells.
"use strict";

const ROW_HEIGHT = 52; // pixels, as in style.css
const AHEAD = 8; // rows above and below those in sight

// A heading of long words has a wider column, so that none of them is broken.
function widthOf(column) {
  return /[^\s-]{11}/.test(column.title) ? "number long" : "number";
}

// "top-1" is not broken at its hyphen.
function unbroken(title) {
  const words = title.split(/( )/);
  const isWhole = (word) => /-\d/.test(word);
  return h("span", {}, words.map((one) => (isWhole(one) ? h("span", { class: "word" }, one) : one)));
}

class Grid {
  // ``place``: where it goes; ``label``: its name for screen readers.
  // ``onSort(columnId, isDescending)``: what a click on a heading does.
  constructor(place, label, onSort) {
    this.label = label;
    this.onSort = onSort;
    this.table = h("table");
    this.scroll = h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label });
    this.scroll.append(this.table);
    place.append(this.scroll);
    this.scroll.addEventListener("scroll", () => this.drawRows());
    this.scroll.addEventListener("keydown", (event) => this.move(event));
    this.current = [0, 0];
    this.core = TableCore.createTable({
      data: [],
      columns: [],
      state: {},
      onStateChange() {},
      renderFallbackValue: null,
      getCoreRowModel: TableCore.getCoreRowModel(),
      getSortedRowModel: TableCore.getSortedRowModel(),
      sortDescFirst: true,
    });
  }

  // ``columns``: {id, title, note, width, isText, value(model), draw(model), isLowBest}; the first
  // names the row. ``sorting``: [{id, desc}].
  show(columns, rows, sorting) {
    this.columns = columns;
    this.core.setOptions((options) => ({
      ...options,
      data: rows,
      columns: columns.map((column) => ({
        id: column.id,
        accessorFn: column.value,
        sortUndefined: "last",
        sortingFn: "basic",
        sortDescFirst: !column.isText && !column.isLowBest,
      })),
      state: { ...this.core.initialState, sorting },
    }));
    const sorted = this.core.getSortedRowModel().rows.map((row) => row.original);
    const measured = sorted.filter((model) => model.isMeasured);
    const published = sorted.filter((model) => !model.isMeasured);
    this.items = [...measured, ...(published.length > 0 ? ["published"] : []), ...published];
    this.sorting = sorting;
    this.current = [0, 0];
    this.drawHead();
    this.drawn = null;
    this.scroll.scrollTop = 0;
    this.drawRows();
  }

  drawHead() {
    const widths = this.columns.map((column) => h("col", { class: column.width ?? widthOf(column) }));
    const cells = this.columns.map((column) => {
      const own = this.sorting[0]?.id === column.id ? this.sorting[0] : null;
      const order = own ? (own.desc ? "descending" : "ascending") : null;
      const isFirstDown = !column.isText && !column.isLowBest;
      const next = own ? !own.desc : isFirstDown;
      const button = h(
        "button",
        { type: "button", onclick: () => this.onSort(column.id, next) },
        unbroken(column.title),
      );
      const note = column.note ? h("small", {}, column.note) : null;
      const kind = column.isText ? null : "number";
      const attributes = { scope: "col", "aria-sort": order, class: kind, title: column.hint };
      return h("th", attributes, button, note);
    });
    const body = h("tbody");
    this.table.replaceChildren(
      h("caption", { class: "unseen" }, this.label),
      h("colgroup", {}, widths),
      h("thead", {}, h("tr", { "aria-rowindex": "1" }, cells)),
      body,
    );
    this.table.setAttribute("aria-rowcount", this.items.length + 1);
    this.body = body;
  }

  drawRows() {
    const visible = Math.ceil((this.scroll.clientHeight || 600) / ROW_HEIGHT);
    const top = Math.floor(this.scroll.scrollTop / ROW_HEIGHT);
    const first = Math.max(0, Math.min(top - AHEAD, this.items.length));
    const end = Math.min(this.items.length, top + visible + AHEAD);
    if (this.drawn && this.drawn[0] === first && this.drawn[1] === end) return;

    // a row that is drawn anew would lose the focus
    const focused = this.body.contains(document.activeElement) ? [...this.current] : null;
    const rows = [];
    for (let index = first; index < end; index += 1) rows.push(this.row(index));
    this.body.replaceChildren(
      this.space(first),
      ...rows,
      this.space(this.items.length - end),
    );
    this.drawn = [first, end];
    this.markCurrent();
    if (focused) this.linkAt(focused)?.focus({ preventScroll: true });
  }

  space(count) {
    return h("tr", {
      class: "space",
      "aria-hidden": "true",
      style: `height:${count * ROW_HEIGHT}px`,
      hidden: count === 0,
    });
  }

  row(index) {
    const item = this.items[index];
    const position = { "aria-rowindex": index + 2, "data-row": index };
    if (item === "published") {
      const text = "Published elsewhere, under their own protocols: not ranked";
      const cell = h("td", { colspan: this.columns.length }, h("span", {}, text));
      return h("tr", { ...position, class: "divider" }, cell);
    }
    const cells = this.columns.map((column, place) => {
      const drawn = column.draw(item) ?? { content: [] };
      const kind = [column.isText ? "" : "number", drawn.mark ?? ""].join(" ").trim();
      const attributes = { class: kind || null, style: drawn.style, title: drawn.hint };
      if (place === 0) attributes.scope = "row";
      return h(place === 0 ? "th" : "td", attributes, drawn.content);
    });
    return h("tr", { ...position, class: item.isMeasured ? null : "published" }, cells);
  }

  // One link of a table is reached with Tab; the others with the arrow keys.
  linkAt([index, place]) {
    const row = this.body.querySelector(`tr[data-row="${index}"]`);
    return row?.children[place]?.querySelector("a") ?? null;
  }

  markCurrent() {
    for (const link of this.body.querySelectorAll("a")) link.tabIndex = -1;
    const link = this.linkAt(this.current) ?? this.body.querySelector("a");
    if (link) link.tabIndex = 0;
  }

  move(event) {
    const link = event.target.closest("tbody a");
    if (!link) return;
    const row = link.closest("tr");
    const here = [Number(row.dataset.row), [...row.children].indexOf(link.closest("td,th"))];
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / ROW_HEIGHT) - 2);
    const steps = {
      ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1],
      PageDown: [page, 0], PageUp: [-page, 0], Home: [0, -Infinity], End: [0, Infinity],
    };
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.go(here, step);
  }

  go([index, place], [down, right]) {
    if (right !== 0) {
      const cells = [...this.body.querySelector(`tr[data-row="${index}"]`).children];
      const places = [...cells.keys()].filter((one) => cells[one].querySelector("a"));
      const at = places.indexOf(place) + right;
      place = places[Math.max(0, Math.min(places.length - 1, at))];
    } else {
      // gaps are skipped; where a column ends, the focus stays
      const last = this.items.length - 1;
      const step = Math.sign(down);
      let next = Math.max(0, Math.min(last, index + down));
      const hasLink = (one) => this.items[one].row !== undefined
        && (place === 0 || this.columns[place].value(this.items[one]) !== undefined);
      while (next >= 0 && next <= last && !hasLink(next)) next += step;
      if (next < 0 || next > last) return;
      index = next;
    }
    this.current = [index, place];
    this.scrollTo(index);
    this.drawRows();
    this.markCurrent();
    const link = this.linkAt(this.current);
    link?.focus({ preventScroll: true });
    link?.closest("td,th").scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  scrollTo(index) {
    const head = this.table.tHead.offsetHeight;
    const top = index * ROW_HEIGHT;
    const room = this.scroll.clientHeight - head - ROW_HEIGHT;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top > this.scroll.scrollTop + room) this.scroll.scrollTop = top - room;
  }
}
