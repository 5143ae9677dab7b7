"use strict";
/* Search and choices over the answers of an evaluation's page. Without this script all of them are listed. */

function plain(text) {
  return text.normalize("NFKC").toLowerCase();
}

/* Whether an entry, {text, fields}, has every word of the query and every value that is chosen ("" = any). */
function matches(entry, query, chosen) {
  const words = plain(query).split(/\s+/).filter(Boolean);
  return words.every((w) => entry.text.includes(w)) && Object.keys(chosen).every((k) => !chosen[k] || entry.fields[k] === chosen[k]);
}

function filter(list) {
  const entries = [...list.querySelectorAll("details")].map((element) => ({
    element, text: plain(element.textContent), fields: { ...element.dataset },
  }));
  const controls = document.createElement("div"), search = document.createElement("input");
  const count = document.createElement("output"), chosen = {};
  controls.className = "controls";
  Object.assign(search, { type: "search", placeholder: "search", ariaLabel: "search in the answers" });
  controls.append(search);
  for (const key of ["answer", "language", "benchmark", "change"]) {
    const values = [...new Set(entries.map((e) => e.fields[key]).filter(Boolean))];
    if (values.length < 2) continue;
    const select = document.createElement("select");
    select.ariaLabel = key;
    select.append(new Option(key + ": all", ""), ...values.map((v) => new Option(v, v)));
    select.addEventListener("input", () => { chosen[key] = select.value; show(); });
    controls.append(select);
  }
  controls.append(count);
  search.addEventListener("input", show);
  list.before(controls);

  function show() {
    let shown = 0;
    for (const e of entries) {
      e.element.hidden = !matches(e, search.value, chosen);
      shown += e.element.hidden ? 0 : 1;
    }
    for (const section of list.querySelectorAll("section")) section.hidden = !section.querySelector("details:not([hidden])");
    count.textContent = shown + " of " + entries.length;
  }
  show();
}

if (typeof document !== "undefined" && document.querySelector("#answers details")) filter(document.getElementById("answers"));
if (typeof module !== "undefined") module.exports = { plain, matches };
