"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Tables: a click on a column's name sorts by it, a second one the other way round.
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.sort);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b || 0 : String(a).localeCompare(String(b), "en", { numeric: true }));
  for (const heading of all("th")) {
    heading.querySelector("button").addEventListener("click", () => {
      const body = heading.closest("table").tBodies[0];
      const column = heading.cellIndex;
      const up = heading.getAttribute("aria-sort") !== "ascending";
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort((a, b) => (up ? compare(a[0], b[0]) : compare(b[0], a[0])));
      body.append(...rows.map((pair) => pair[1]));
      for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  }
  for (const form of all(".filters")) {
    const rows = [...form.parentElement.querySelector("tbody").rows];
    const narrow = () => {
      const wanted = form.querySelector("input").value.trim().toLowerCase();
      const chosen = all("select", form).filter((select) => select.value !== "");
      let shown = 0;
      for (const row of rows) {
        const fits = chosen.every((select) => row.cells[select.dataset.column].textContent.trim() === select.value);
        row.hidden = !(fits && row.textContent.toLowerCase().includes(wanted));
        shown += !row.hidden;
      }
      form.querySelector("output").textContent = `${shown} of ${rows.length}`;
    };
    form.addEventListener("input", narrow);
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  // Commands can be copied.
  for (const code of all(".command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy the command");
    const text = code.textContent;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
    });
    code.after(" ", button);
  }

  // Plots.
  const views = [];
  const draw = async (data, targets) => {
    const roots = Object.fromEntries(Object.entries(data.roots).map(([name, id]) => [id, targets[name]]));
    const drawn = await Bokeh.embed.embed_items(data.documents, [{ docid: data.docid, roots, root_ids: Object.values(data.roots) }]);
    views.push(...drawn);
    return drawn;
  };
  const repaint = () => {
    for (const manager of views) {
      for (const view of manager) {
        view.invalidate_painters?.();
        view.repaint?.(); // at once: a printer does not wait
      }
    }
  };
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const charts = document.getElementById("charts-data").textContent;
  if (charts) unpack(charts).then((data) => draw(data, Object.fromEntries(all("[data-plot]").map((place) => [place.dataset.plot, place]))));

  // The maps of an image come alive when they are about to be seen; so does the look-up of a pixel by its numbers.
  const said = (data, values, row, column) => {
    const cell = Math.floor(row / data.edge) * data.columns + Math.floor(column / data.edge);
    const at = (name) => values[name][0][cell];
    const within = (name, value) => value - (value % data.edge) + at(name);
    const place = data.edge > 1 ? `Block of ${data.edge} x ${data.edge}, worst at ${within("row", row)}, ${within("column", column)}` : `Pixel ${row}, ${column}`;
    const radius = at("radius") > 0 ? at("radius").toPrecision(4) : "none";
    const parts = [`${place}: ${data.classes[at("prediction")]}`, `radius ${radius}`];
    if (!(at("distance") > 0)) return [...parts, "never seen flipped"].join(", ");
    const ratio = at("radius") > 0 ? (at("radius") / at("distance")).toFixed(4) : "0";
    const after = data.classes[at("to")] ?? "another class";
    const by = data.attacks[at("by")] ?? "nobody";
    return [...parts, `flip distance ${at("distance").toPrecision(4)}`, `r / d ${ratio}`, `to ${after} by ${by}`].join(", ");
  };
  const enliven = async (article) => {
    const data = await unpack(article.querySelector(".maps-data").textContent);
    const figures = all("[data-map]", article);
    const [manager] = await draw(data, Object.fromEntries(figures.map((f) => [f.dataset.map, f.querySelector(".live") ?? f])));
    const values = manager.roots[0].model.renderers[0].data_source.data;
    const form = article.querySelector(".lookup");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      form.querySelector("output").textContent = said(data, values, form.row.valueAsNumber, form.column.valueAsNumber);
    });
    form.hidden = false;
    requestAnimationFrame(() => figures.forEach((figure) => figure.querySelector(".frame")?.classList.add("ready")));
  };
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        seen.unobserve(entry.target);
        enliven(entry.target);
      }
    },
    { rootMargin: "300px" },
  );
  if ("DecompressionStream" in window) all("[data-image]").forEach((article) => seen.observe(article));

  // Light and dark.
  const button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % themes.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
    repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  addEventListener("beforeprint", () => {
    root.dataset.paper = "";
    all("details").forEach((part) => (part.open = true));
    repaint();
  });
  addEventListener("afterprint", () => {
    delete root.dataset.paper;
    repaint();
  });
})();
