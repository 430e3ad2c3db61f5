// Parts of a page that change are fetched again: <div id="x" data-refresh="2"> every two seconds.
// The server draws the whole page as ever, and the part with the same id is taken out of it.
"use strict";

function refreshed() {
  return [...document.querySelectorAll("[data-refresh][id]")];
}

function busy(part) {
  // Never take away what somebody is typing into, or has opened.
  const focus = document.activeElement;
  return part.contains(focus) && focus.matches("input, textarea, select") || part.querySelector("dialog[open]");
}

function put(part, fresh) {
  if (part.isEqualNode(fresh) || busy(part)) return;
  const opened = new Set([...part.querySelectorAll("details[open][id]")].map((each) => each.id));
  const focus = part.contains(document.activeElement) ? document.activeElement.id : "";
  for (const each of fresh.querySelectorAll("details[id]")) each.open = each.open || opened.has(each.id);
  part.replaceWith(document.adoptNode(fresh));
  if (focus) document.getElementById(focus)?.focus({preventScroll: true});
  document.dispatchEvent(new CustomEvent("refreshed", {detail: fresh}));
}

async function look() {
  const parts = refreshed();
  if (parts.length === 0) return;
  if (!document.hidden) {
    const lost = document.getElementById("lost");
    try {
      const answer = await fetch(location.href, {headers: {accept: "text/html"}, redirect: "error"});
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of parts) {
        const fresh = page.getElementById(part.id);
        if (fresh) put(part, fresh);
      }
      lost?.remove();
    } catch {
      if (!lost) {
        const note = document.createElement("p");
        note.id = "lost";
        note.className = "note warn";
        note.setAttribute("role", "status");
        note.textContent = "This page's program does not answer at the moment. Work that runs goes on.";
        document.querySelector("main").prepend(note);
      }
    }
  }
  again();
}

function again() {
  const seconds = Math.min(...refreshed().map((part) => Number(part.dataset.refresh) || 5));
  if (Number.isFinite(seconds)) setTimeout(look, seconds * 1000);
}

// A form that was sent is not sent twice by an impatient second click.
document.addEventListener("submit", (event) => {
  // The answer to a form with data-download is a file: the page stays, and may send it again.
  if (event.defaultPrevented || "download" in event.target.dataset) return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
  const button = event.submitter;
  if (button) button.setAttribute("aria-busy", "true");
});
window.addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.sent;
  for (const each of document.querySelectorAll("[aria-busy]")) each.removeAttribute("aria-busy");
});

again();
