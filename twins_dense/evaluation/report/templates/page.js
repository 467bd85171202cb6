// The theme is set before the page is drawn; everything else waits for the document.
"use strict";

// Browsers may refuse storage to pages that are opened from disk.
const storedTheme = {
  read() { try { return localStorage.getItem("theme"); } catch { return null; } },
  write(theme) { try { localStorage.setItem("theme", theme); } catch { /* the choice lasts until the page is closed */ } },
};
if (["light", "dark"].includes(storedTheme.read())) document.documentElement.dataset.theme = storedTheme.read();

document.addEventListener("DOMContentLoaded", () => {
  setUpTheme();
  document.querySelectorAll("table.sortable").forEach(setUpSorting);
  document.querySelectorAll("input[data-filters]").forEach(setUpFilter);
  document.querySelectorAll("select[data-picks]").forEach(setUpPicking);
  document.querySelectorAll("[role=tablist]").forEach(setUpTabs);
  setUpContents();
});

function setUpTheme() {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    storedTheme.write(theme);
    show();
  });
  system.addEventListener("change", show);
  show();
  button.style.visibility = "visible";
}

function setUpSorting(table) {
  const body = table.tBodies[0];
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const isText = header.classList.contains("text");
    const value = (row) => {
      const cell = row.cells[column];
      return isText ? cell.textContent.trim() : cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
    };
    const compare = (a, b, sign) => {
      if (isText) return sign * collator.compare(a, b);
      // Unknown values come last in both directions.
      if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
      return sign * (a - b);
    };
    header.querySelector("button").addEventListener("click", () => {
      const first = isText ? "ascending" : "descending";
      const other = isText ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      headers.forEach((each) => each.setAttribute("aria-sort", each === header ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function setUpFilter(input) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const output = input.closest(".table-tools").querySelector("output");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      count += Number(!row.hidden);
    });
    output.textContent = words.length ? `${count} of ${rows.length} rows` : `${rows.length} rows`;
  });
}

function setUpPicking(select) {
  const chart = select.closest("figure").querySelector(".chart");
  select.addEventListener("change", () => {
    chart.classList.toggle("picks", select.value !== "");
    chart.querySelectorAll("[data-key]").forEach((group) => {
      group.classList.toggle("is-picked", group.dataset.key === select.value);
    });
  });
}

function setUpTabs(list) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const choose = (chosen) => tabs.forEach((tab) => {
    const isChosen = tab === chosen;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !isChosen;
  });
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const ends = { Home: 0, End: tabs.length - 1 };
      const next = event.key in ends ? ends[event.key] : (i + (steps[event.key] ?? 0) + tabs.length) % tabs.length;
      if (next === i) return;
      event.preventDefault();
      choose(tabs[next]);
      tabs[next].focus();
    });
  });
}

// Mark the section that is being read in the table of contents.
function setUpContents() {
  const links = [...document.querySelectorAll(".contents-wide a")];
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => {
        if (link.hash === `#${entry.target.id}`) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    }
  }, { rootMargin: "-10% 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((section) => observer.observe(section));
  // A list of sections on a phone closes when one of them is chosen.
  const narrow = document.querySelector(".contents-narrow");
  narrow?.addEventListener("click", (event) => { if (event.target.closest("a")) narrow.open = false; });
}
