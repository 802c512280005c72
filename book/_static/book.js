// Keep punctuation on the line of the formula before it (U+2060 joins the two).
document.addEventListener("DOMContentLoaded", () => {
  for (const formula of document.querySelectorAll("span.math")) {
    const next = formula.nextSibling;
    if (next?.nodeType === Node.TEXT_NODE && /^[.,;:?!)]/.test(next.data)) {
      next.data = "\u2060" + next.data;
    }
  }
});
