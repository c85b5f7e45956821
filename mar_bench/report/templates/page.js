"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const made = (tag, text, parent) => { const e = document.createElement(tag); e.textContent = text; parent?.append(e); return e; };
  const narrow = () => innerWidth < 720;

  // theme: the system's, unless the button has chosen another
  const root = document.documentElement;
  const kept = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = theme => { root.dataset.theme = theme; all("[data-drawn]").forEach(draw); };
  document.getElementById("theme").onclick = () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", theme); } catch { /* a page opened as a file may have no storage */ }
    setTheme(theme);
  };
  system.onchange = () => kept() || setTheme(system.matches ? "dark" : "light");

  // records
  const dialog = document.getElementById("record");
  const showRecords = ids => {
    const body = dialog.querySelector("div");
    body.replaceChildren();
    dialog.querySelector("h3").textContent = ids.length === 1 ? `Record ${ids[0]}` : `${ids.length} records of this row`;
    for (const id of ids) {
      const { metrics, seeds, ...rest } = data.records[id];
      const link = made("a", `${id}.json`, made("h4", "", body));
      link.href = `${data.recordsAt}/${id}.json`;
      const list = made("dl", "", body);
      const parts = { seeds: `training ${seeds[0]}, sampling ${seeds[1]}`, ...metrics, ...rest };
      for (const [name, value] of Object.entries(parts)) if (value != null) { made("dt", name, list); made("dd", value, list); }
    }
    dialog.showModal();
  };
  document.addEventListener("click", event => {
    const link = event.target.closest("[data-record]");
    if (link && data.records[link.dataset.record]) { event.preventDefault(); showRecords([link.dataset.record]); }
  });

  // figures, drawn when they come into view
  const sizes = place => {
    const { layout, rows, columns } = data.figures[place.dataset.figure];
    const [across, down] = narrow() ? [1, rows * columns] : [columns, rows];
    const titleLines = Math.max(...Object.entries(layout).map(([k, v]) => k.startsWith("xaxis") ? v.title.text.split("<br>").length : 0));
    const gap = 76 + 20 * titleLines, cell = 240 + gap; // pixels between lines of panels, and of a panel with its share
    return { across, down, titleLines, gap, cell, height: cell * down + 90 };
  };
  const draw = place => {
    const { data: traces, layout } = data.figures[place.dataset.figure];
    const { across, down, titleLines, gap, cell, height } = sizes(place);
    const style = getComputedStyle(root), colour = name => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), zeroline: false, automargin: true, linecolor: colour("--line"), exponentformat: "none" };
    const axes = Object.fromEntries(Object.entries(layout).map(([k, v]) => [k, /^[xy]axis/.test(k) ? { ...axis, ...v } : v]));
    for (const shape of axes.shapes ?? []) shape.layer = "below";
    Plotly.react(place, traces, {
      ...axes, grid: { rows: down, columns: across, pattern: "independent", xgap: 0.16, ygap: gap / cell },
      height, margin: { t: 30, r: 12, b: 60, l: 60 }, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12.5 },
      legend: { orientation: "h", y: -(54 + 20 * titleLines) / (cell * down), yanchor: "top" }, hoverlabel: { align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") },
    }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
    if (!place.dataset.drawn) place.on("plotly_click", ({ points }) => points[0].customdata?.length && showRecords([...new Set(points[0].customdata)]));
    place.dataset.drawn = "yes";
  };
  const whenSeen = new IntersectionObserver(entries => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      whenSeen.unobserve(target);
      if (target.dataset.figure) draw(target); else target.src = data.sprites[target.dataset.sprite];
    }
  }, { rootMargin: "400px" });
  all("[data-figure]").forEach(place => { place.style.minHeight = `${sizes(place).height}px`; }); // nothing moves later
  all("[data-figure], [data-sprite]").forEach(e => whenSeen.observe(e));
  let wasNarrow = narrow();
  addEventListener("resize", () => { if (wasNarrow !== narrow()) { wasNarrow = narrow(); all("[data-drawn]").forEach(draw); } });
  addEventListener("beforeprint", () => {
    all("[data-sprite]").forEach(e => { e.src = data.sprites[e.dataset.sprite]; });
    all("[data-figure]").filter(e => e.offsetParent).forEach(draw);
  });

  // tables: a click on a heading sorts; a second one reverses
  const value = cell => {
    const found = /^[<>]?\s*(-?[\d,.]+)\s*([kMB%]?)/.exec(cell.textContent.trim());
    return found ? parseFloat(found[1].replaceAll(",", "")) * ({ k: 1e3, M: 1e6, B: 1e9 }[found[2]] ?? 1) : NaN;
  };
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (Number.isNaN(x) && Number.isNaN(y)) return a.textContent.localeCompare(b.textContent);
    return Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : x - y;
  };
  for (const table of all("table.sortable")) {
    const headings = all("thead tr:last-child th", table);
    headings.forEach((heading, i) => {
      const button = document.createElement("button"), notes = all("sup", heading);
      button.type = "button";
      button.append(...[...heading.childNodes].filter(n => !notes.includes(n)));
      heading.prepend(button);
      button.onclick = () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach(h => h.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = all("tbody tr", table).sort((a, b) => compare(a.cells[i], b.cells[i]) * (down ? -1 : 1));
        table.tBodies[0].append(...rows);
      };
    });
  }

  // copies of tables
  for (const place of all("[data-copies]")) {
    made("span", "Copy as", place).className = "quiet";
    for (const [format, text] of Object.entries(data.copies[place.dataset.copies])) {
      const button = made("button", format, place);
      button.type = "button";
      button.onclick = async () => {
        try { await navigator.clipboard.writeText(text); } catch {
          const area = made("textarea", text, document.body);
          area.select(); document.execCommand("copy"); area.remove();
        }
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = format; }, 1500);
      };
    }
  }

  // two rows of samples under one slider
  for (const place of all("[data-compare]")) {
    const sheets = all("figure", place.parentElement.querySelector(".sheets"));
    if (sheets.length < 2) continue;
    const pair = place.querySelector(".pair"), images = all("img", pair);
    all("select", place).forEach((select, side) => {
      sheets.forEach((sheet, i) => { made("option", sheet.querySelector("figcaption").textContent, select).value = i; });
      const show = () => { images[side].src = data.sprites[sheets[select.value].querySelector("img").dataset.sprite]; };
      select.selectedIndex = side;
      select.onchange = show;
      show();
    });
    place.querySelector("input").oninput = event => pair.style.setProperty("--cut", `${event.target.value}%`);
    place.hidden = false;
  }

  // served by `mar-bench report --serve`: show what runs, and load the page again when it has changed
  const live = document.getElementById("live");
  let version = null;
  const look = async () => {
    try {
      const state = await (await fetch("state")).json();
      if (version !== null && version !== state.version) location.reload();
      version = state.version;
      live.textContent = state.runs.map(([left, ...jobs]) => [`Running: ${left}`, ...jobs].join("\n")).join("\n");
      live.hidden = !state.runs.length;
    } catch { live.textContent = "The server has stopped."; live.hidden = false; }
  };
  if (location.protocol === "http:") { look(); setInterval(look, 5000); }

  // a footnote opens the notes that hold it
  const open = () => { for (let e = document.getElementById(location.hash.slice(1)); e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true; };
  addEventListener("hashchange", () => { open(); document.getElementById(location.hash.slice(1))?.scrollIntoView(); });
  all("nav li a").forEach(link => { link.onclick = () => { link.closest("details").open = false; }; });
  setTheme(kept() ?? (system.matches ? "dark" : "light"));
  open();
})();
