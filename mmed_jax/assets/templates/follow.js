"use strict";
/* Loads a page of `report --watch` anew when the server says that its files have changed. What is open stays open, and
   while values or texts are being read, or nobody sees the page, it stands as it is. */

function follow(note) {
  const words = note.textContent, place = "open " + document.title, details = [...document.querySelectorAll("details")];

  const isRead = () => document.hidden || String(getSelection()) !== ""
    || [...document.querySelectorAll("figure.curves")].some((figure) => figure.at !== undefined);

  /* A part that opens, by what stands above it: others may come and go. */
  function names() {
    const seen = {};
    return details.map((d) => {
      const name = (d.closest("article") || d.querySelector("summary")).firstElementChild?.textContent || d.querySelector("summary").textContent;
      seen[name] = (seen[name] || 0) + 1;
      return name + " " + seen[name];
    });
  }
  function reopen() {
    try {
      const open = JSON.parse(sessionStorage.getItem(place) || "[]"), all = names();
      details.forEach((d, i) => { d.open = d.open || open.includes(all[i]); });
      sessionStorage.removeItem(place);
    } catch { /* it is not allowed to remember */ }
  }
  function reload() {
    try {
      const all = names();
      sessionStorage.setItem(place, JSON.stringify(all.filter((_, i) => details[i].open)));
    } catch { /* as above */ }
    location.reload();
  }

  async function look() {
    let wait = 2000;
    try {
      const answer = await fetch("version", { cache: "no-store" }), text = await answer.text();
      note.textContent = answer.ok ? words : "This page stands still: " + text;
      if (answer.ok && text !== note.dataset.version && !isRead()) return reload();
    } catch {
      note.textContent = "report --watch is not reached: this page stands still.";
      wait = 5000;
    }
    setTimeout(look, wait);
  }
  reopen();
  setTimeout(look, 2000);
}

if (typeof document !== "undefined") follow(document.getElementById("follow"));
