"use strict";
/* Loads a page of `report --watch` anew when the server says that its files have changed. */

if (typeof document !== "undefined") {
  const note = document.getElementById("follow");
  const look = async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      if ((await answer.text()) !== note.dataset.version) location.reload();
      else setTimeout(look, 2000);
    } catch {
      note.textContent = "report --watch is not reached: this page stands still.";
      setTimeout(look, 5000);
    }
  };
  setTimeout(look, 2000);
}
