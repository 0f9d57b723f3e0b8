// The page is complete without this script, which adds tips, sorting, filters and zoom.
(function () {
  "use strict";
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    element.className = name;
    if (text) element.textContent = text;
    return element;
  };

  // Tips: in place of the browser's own, at once, and for touch.
  const tip = document.body.appendChild(make("div", "tip"));
  const show = (text, event) => {
    tip.textContent = text;
    tip.style.display = text ? "block" : "none";
    const width = document.documentElement.clientWidth, box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(event.clientX + 14, width - box.width - 8)) + "px";
    tip.style.top = (event.clientY > 80 ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
  };
  const tips = (element, words) => {
    element.addEventListener("pointermove", (event) => show(words(event), event));
    element.addEventListener("pointerleave", (event) => show("", event));
  };
  all(".bars > div[title], .dot[title]").forEach((element) => {
    const words = element.title;
    element.setAttribute("aria-label", words);
    element.removeAttribute("title");
    tips(element, () => words);
  });

  // Histograms: the values under the pointer.
  const number = (value) => String(+value.toPrecision(3)).replace("-", "\u2212");
  const place = (event, element) => {
    const box = element.getBoundingClientRect();
    return Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
  };
  all(".histogram").forEach((element) => {
    const data = element.dataset, svg = element.querySelector("svg");
    const values = (data.counts || data.channels).split(",").map(Number);
    const sum = values.reduce((a, b) => a + b, 0);
    tips(element, (event) => {
      const k = Math.floor(place(event, svg) * values.length);
      if (data.channels) return "up to " + number(values[k]) + " (" + (k + 1) + " of " + values.length + ")";
      const step = (data.high - data.low) / values.length, left = +data.low + k * step;
      const share = ((100 * values[k]) / sum).toPrecision(2);
      return number(left) + " to " + number(left + step) + ": " + values[k].toLocaleString("en") + " values, " + share + " %";
    });
  });

  // Tables: a click on a heading sorts; long ones get a filter.
  const key = (row, column) => {
    const cell = row.cells[column], text = cell.dataset.value || cell.textContent.trim();
    const value = parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
    return cell.classList.contains("num") && !isNaN(value) ? value : text;
  };
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  all("table.sortable").forEach((table) => {
    const body = table.tBodies[0], rows = Array.from(body.rows);
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sorted = rows.slice().sort((a, b) => order(key(a, column), key(b, column)));
        (down ? sorted.reverse() : sorted).forEach((row) => body.appendChild(row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
    if (rows.length < 8) return;
    const bar = make("div", "tools"), field = make("input", "filter"), count = make("span", "quiet small");
    field.type = "search";
    field.placeholder = "Filter";
    field.setAttribute("aria-label", "Show the rows that contain this text");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      });
      count.textContent = words.length ? shown + " of " + rows.length : "";
    });
    bar.append(field, count);
    table.parentElement.before(bar);
  });

  // Layers: a click on a column shows the layer's histograms, else its row.
  const open = (element) => {
    for (let node = element; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    element.scrollIntoView({ block: "center" });
    element.classList.add("flash");
    setTimeout(() => element.classList.remove("flash"), 1500);
  };
  const details = new Map(all("details[data-layer]").map((element) => [element.dataset.layer, element]));
  all(".strips[data-rows]").forEach((chart) => {
    const rows = all("tbody tr", document.getElementById(chart.dataset.rows));
    all(".bars", chart).forEach((bars) =>
      Array.from(bars.children).forEach((column, k) => {
        column.style.cursor = "pointer";
        column.addEventListener("click", () => open(details.get(rows[k].cells[0].textContent.trim()) || rows[k]));
      }));
  });

  // Charts of many columns: zoom.
  all(".strips").forEach((chart) => {
    const columns = +chart.style.getPropertyValue("--columns");
    if (columns < 24) return;
    const bar = make("div", "tools");
    let zoom = 1;
    [["\u2212", 0.5, "Narrower columns"], ["+", 2, "Wider columns"]].forEach(([text, factor, label]) => {
      const button = make("button", "", text);
      button.setAttribute("aria-label", label);
      button.addEventListener("click", () => {
        zoom = Math.min(16, Math.max(1, zoom * factor));
        chart.style.setProperty("--zoom", zoom);
      });
      bar.append(button);
    });
    chart.before(bar);
  });

  // Histograms of all layers: logarithmic or linear counts.
  const values = document.getElementById("values");
  if (values) {
    const button = make("button", "", "Linear counts");
    let linear = false;
    button.addEventListener("click", () => {
      linear = !linear;
      button.textContent = linear ? "Logarithmic counts" : "Linear counts";
      all(".histogram[data-counts]", values).forEach((element) => {
        const counts = element.dataset.counts.split(",").map((text) => (linear ? +text : Math.log1p(+text)));
        const top = Math.max.apply(null, counts), step = 100 / counts.length;
        element.querySelector("path").setAttribute("d", counts.map((count, k) =>
          count ? "M" + k * step + " 100V" + (100 - (100 * count) / top) + "H" + (k + 1) * step + "V100z" : "").join(""));
      });
    });
    const bar = make("div", "tools");
    bar.append(button);
    values.querySelector("h2").after(bar);
  }
})();
