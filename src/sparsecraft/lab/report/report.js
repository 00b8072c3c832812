// Everything here is comfort: without it the page shows the same numbers.
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  root.classList.add("js");

  // Hints: the browser's own, from <title>, come late and cannot be styled.
  const hint = document.getElementById("hint");
  for (const title of all("svg title")) {
    title.parentNode.dataset.hint = title.textContent;
    title.parentNode.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  const hide = () => { hint.hidden = true; };
  const show = (target, x, y) => {
    hint.textContent = target.dataset.hint;
    hint.hidden = false;
    const left = Math.min(x + 16, window.innerWidth - hint.offsetWidth - 12);
    const below = y + 16 + hint.offsetHeight < window.innerHeight;
    hint.style.left = `${Math.max(8, left) + window.scrollX}px`;
    hint.style.top = `${(below ? y + 16 : y - hint.offsetHeight - 12) + window.scrollY}px`;
  };

  // One arm lights up everywhere at once.
  const light = (arm) => {
    for (const lit of all(".lit")) lit.classList.remove("lit");
    root.classList.toggle("dimmed", Boolean(arm));
    if (!arm) return;
    for (const part of all("[data-arm]")) {
      if (part.dataset.arm === arm) part.classList.add("lit");
    }
  };
  document.addEventListener("pointermove", (event) => {
    const target = event.target.closest("[data-hint]");
    if (target) show(target, event.clientX, event.clientY); else hide();
  });
  document.addEventListener("pointerover", (event) => {
    const target = event.target.closest(".point, #table tbody tr, g.row");
    light(target ? target.dataset.arm : "");
  });
  document.addEventListener("scroll", hide, { passive: true });

  // The legend shows and hides methods in the charts.
  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const part of all(`.charts [data-series="${button.dataset.series}"]`)) {
        part.classList.toggle("hidden", !on);
      }
    });
  }

  // The table: sort by a column, arms without a value last; filter by words.
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const value = (row, column) => {
    if (column === 0) return row.cells[0].textContent.trim().toLowerCase();
    const key = row.cells[column].dataset.sort;
    return key === "" ? null : Number(key);
  };
  for (const head of all("th[data-column]", table)) {
    const column = Number(head.dataset.column);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((left, right) => {
        const a = value(left, column), b = value(right, column);
        if (a === null || b === null) return (a === null) - (b === null);
        return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
      });
      body.append(...rows);
    });
  }
  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word));
      row.classList.toggle("hidden", !fits);
      count += fits;
    }
    shown.textContent = `${count} of ${body.rows.length} arms`;
  };
  filter.addEventListener("input", apply);
  apply();

  // The layers of one arm at a time.
  const arm = document.getElementById("arm");
  if (arm) {
    arm.addEventListener("change", () => {
      for (const part of all("[data-layers]")) part.open = part.dataset.layers === arm.value;
    });
  }

  const copy = document.getElementById("copy");
  if (copy) {
    copy.addEventListener("click", async () => {
      const command = document.getElementById("command");
      try {
        await navigator.clipboard.writeText(command.textContent);
        copy.textContent = "Copied";
      } catch {
        // A page opened from disk may not use the clipboard in every browser.
        getSelection().selectAllChildren(command);
        copy.textContent = "Selected";
      }
    });
  }
})();
