// Keep punctuation on the line of the formula before it (U+2060 joins the two).
document.addEventListener("DOMContentLoaded", () => {
  for (const formula of document.querySelectorAll("span.math")) {
    const next = formula.nextSibling;
    if (next?.nodeType === Node.TEXT_NODE && /^[.,;:?!)]/.test(next.data)) {
      next.data = "\u2060" + next.data;
    }
  }
});

// Tables that are sorted by a click on a header, and searched by the words of a field, in titles as well.
document.addEventListener("DOMContentLoaded", () => {
  for (const header of document.querySelectorAll("table.sortable thead th")) {
    header.tabIndex = 0;
    const sort = () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      const column = header.cellIndex;
      const body = header.closest("table").tBodies[0];
      const order = (a, b) =>
        a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
      const rows = [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
      for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows);
    };
    header.addEventListener("click", sort);
    header.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  }
  for (const field of document.querySelectorAll("input[data-filters]")) {
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of document.getElementById(field.dataset.filters).querySelectorAll("tbody tr")) {
        const titles = [...row.querySelectorAll("[title]")].map((titled) => titled.title);
        const text = [row.textContent, ...titles].join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
});

// Paper is white, whatever the screen is.
let themeOnScreen;
window.addEventListener("beforeprint", () => {
  themeOnScreen = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
});
window.addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = themeOnScreen;
});
