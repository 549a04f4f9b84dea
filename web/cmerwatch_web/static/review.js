// Keys, the lease and what is typed; the marks are in review_marks.js. Every page works without these files.
"use strict";

// --- keys -----------------------------------------------------------------------------------------------------------

const KEYS_OFF = "review-keys-off"; // single letters disturb dictation and some screen readers
const keysOn = $("[data-keys-on]");
keysOn.checked = localStorage.getItem(KEYS_OFF) === null;
keysOn.addEventListener("change", () => {
  if (keysOn.checked) localStorage.removeItem(KEYS_OFF);
  else localStorage.setItem(KEYS_OFF, "1");
});

const isText = (element) => element.matches("textarea, select, input:not([type=checkbox], [type=radio])");
const open = (kind) => document.querySelector(`${kind}:popover-open`);

function showFull(at) {
  const pictures = [...document.querySelectorAll(".full")];
  if (pictures.length) pictures[(at + pictures.length) % pictures.length].showPopover();
}

function write(id) {
  const field = document.getElementById(id);
  if (!field) return;
  field.closest("details").open = true;
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length); // behind what is filled in
  field.scrollTop = field.scrollHeight;
}

// The element whose shortcut this is: what the page says beside a button is what works. While words are selected, the
// letters are those of the buttons that mark them.
function ofKey(key) {
  const wanted = key.length === 1 ? key.toUpperCase() : key;
  const found = [...document.querySelectorAll(`[aria-keyshortcuts="${CSS.escape(wanted)}"]`)];
  return found.find((element) => element.checkVisibility()) ?? found.find((element) => !element.closest("[hidden]"));
}

function inSheet(sheet, event) {
  const choices = sheet.querySelectorAll("input[type=radio]");
  const choice = choices[Number(event.key) - 1];
  if (choice) {
    choice.checked = true;
    choice.focus();
    event.preventDefault();
  } else if (event.key === "?" && sheet.id === "keys") sheet.hidePopover();
}

function inFull(full, event) {
  const all = [...document.querySelectorAll(".full")];
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (event.key === " ") full.hidePopover();
  else if (step) showFull(all.indexOf(full) + step);
  else return false;
  event.preventDefault();
  return true;
}

function press(event) {
  showChosen(); // the browser tells of a selection only after the keys that follow it at once
  if (event.key === " ") showFull(0);
  else if (!step(event)) {
    const target = ofKey(event.key);
    if (!target) return;
    if (target.matches("textarea")) write(target.id);
    else target.click();
  }
  event.preventDefault();
}

// Words typed under Skip are a reason of their own.
const skip = document.getElementById("skip")?.elements;
if (skip) {
  const choices = [...skip.choice];
  for (const choice of choices) choice.required = true;
  skip.reason.addEventListener("input", () => {
    if (!choices.some((choice) => choice.checked)) choices.at(-1).checked = true;
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  // The focus stays for a moment in a sheet that was just closed.
  const at = event.target.checkVisibility() ? event.target : document.body;
  if (event.key === "Escape" && isText(at)) at.blur();
  if (event.key === "Enter" && at.matches("#answer input")) event.preventDefault(); // it would send the form
  if (isText(at) || !keysOn.checked) return;
  const sheet = open(".sheet");
  if (sheet) return inSheet(sheet, event);
  const full = open(".full");
  if (full && inFull(full, event)) return;
  // A focused button, link or box keeps the keys that work it.
  if ((event.key === " " || event.key === "Enter") && at.closest("button, a, summary, input, [tabindex='0']")) return;
  if (event.key !== "Enter") press(event);
});

// --- the lease ------------------------------------------------------------------------------------------------------

const EVERY_MS = 60_000; // of a lease of five minutes: four may fail
const LOOKED_AWAY_MS = 10 * 60_000; // a tab left open must not keep an item, or a session, for ever
const lease = $("[data-lease]");
const lost = $("[data-lost]");
let until = lease ? performance.now() + 1000 * Number(lease.dataset.seconds) : 0;
let seen = performance.now();
for (const kind of ["pointermove", "keydown", "scroll", "focusin"]) {
  document.addEventListener(kind, () => (seen = performance.now()), { passive: true, capture: true });
}

function tell(message) {
  lost.textContent = message;
  lost.hidden = false;
}

function showTime() {
  const seconds = Math.round((until - performance.now()) / 1000);
  if (seconds > 60) lease.textContent = `yours for ${Math.ceil(seconds / 60)} min`;
  else lease.textContent = seconds > 0 ? `yours for ${seconds} s` : "your time is over";
  lease.classList.toggle("short", seconds <= 60);
}

async function renew() {
  if (document.hidden || performance.now() - seen > LOOKED_AWAY_MS) return;
  const body = new URLSearchParams({ lease_token: form.elements.lease_token.value });
  let answer;
  try {
    answer = await fetch(lease.dataset.renew, { method: "POST", body });
  } catch {
    return; // the server is restarting or the network is gone: the next turn tries again
  }
  if (answer.ok && !answer.redirected) {
    until = performance.now() + 1000 * (await answer.json()).seconds;
    lost.hidden = true;
  } else if (answer.status === 409) {
    until = performance.now();
    tell(`${(await answer.json()).lost} What you typed stays here; a verdict offers to take the item again.`);
  } else if (answer.redirected || answer.status === 401) {
    tell("Your session has ended. What you typed stays here: give your verdict, sign in, and it comes back.");
  }
}

if (lease) {
  showTime();
  setInterval(showTime, 5000);
  setInterval(renew, EVERY_MS);
  document.addEventListener("visibilitychange", () => document.hidden || renew());
}

// --- what is typed --------------------------------------------------------------------------------------------------

// Kept in this tab until the item is answered: a session that ends, a reload or a stray click costs no words. The
// server's own draft, after a refusal or an undo, is newer and wins.
const DRAFT = "review-draft:";

function keepDraft() {
  if (!form || !page) return;
  const fields = [...new FormData(form)].filter(([name]) => name !== "lease_token");
  sessionStorage.setItem(DRAFT + page.dataset.item, JSON.stringify(fields));
}

function restoreDraft() {
  const kept = sessionStorage.getItem(DRAFT + page.dataset.item);
  if (!kept || "filled" in page.dataset) return;
  const fields = new FormData();
  for (const [name, value] of JSON.parse(kept)) fields.append(name, value);
  for (const box of form.elements.error_types) box.checked = fields.getAll("error_types").includes(box.value);
  for (const name of ["correction", "note"]) {
    const area = form.elements[name];
    const value = (fields.get(name) ?? "").replaceAll("\r\n", "\n");
    if (area.value === value) continue;
    area.value = value;
    area.closest("details").open = true;
  }
  setMarks(JSON.parse(fields.get("spans") || "[]"));
}

function dropDrafts(but) {
  for (const name of Object.keys(sessionStorage)) {
    if (name.startsWith(DRAFT) && name !== DRAFT + but) sessionStorage.removeItem(name);
  }
}

if (page && form) {
  restoreDraft();
  showMarks();
  form.addEventListener("input", keepDraft);
}
dropDrafts(page?.dataset.item);
$("form[action='/sign-out']")?.addEventListener("submit", () => dropDrafts());

// A second press while the first is on its way would come back as a lost lease.
let isSent = false;
addEventListener("pageshow", () => (isSent = false));
document.addEventListener("submit", (event) => {
  if (isSent) event.preventDefault();
  isSent = true;
});

// --- the next pictures ----------------------------------------------------------------------------------------------

addEventListener("load", () => {
  for (const address of ($("[data-ahead]")?.dataset.ahead ?? "").split(" ").filter(Boolean)) {
    const picture = new Image();
    picture.fetchPriority = "low";
    picture.src = address;
  }
});
