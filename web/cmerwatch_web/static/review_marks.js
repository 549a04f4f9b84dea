// Words of the output marked as wrong, each with the kind of its error. Without this file there is a box per sentence.
"use strict";

const $ = (selector) => document.querySelector(selector);
const page = $("[data-item]");
const form = document.getElementById("answer");
document.documentElement.classList.add("has-script");

// A mark is [start, end] or [start, end, kind], in characters as the server counts them: code points, not UTF-16 units.
const output = $("[data-output]");
const marker = $("[data-marker]");
const chips = $("[data-wrong]");
const field = form?.elements.spans;
const marks = [];
const MOST_MARKS = 100;
const made = []; // every mark of this visit as it was made, the last at the end
let chosen = null; // [start, end] of what is selected now

output?.normalize(); // the parser cuts a long text into nodes of 65 536 units
// Every run of characters of the output, in order. A hidden character is shown by its name and is not cut.
const leaves = [...(output?.querySelectorAll("[data-at]") ?? [])].map((element) => {
  const at = Number(element.dataset.at), isHidden = "length" in element.dataset;
  const letters = isHidden ? [element.textContent] : [...element.textContent];
  return { element, at, isHidden, letters, end: at + (isHidden ? Number(element.dataset.length) : letters.length) };
});
const of = (element) => leaves.find((leaf) => leaf.element === element);
const overlap = (one, other) => one[0] < other[1] && other[0] < one[1];
const kindOf = (mark) => marker?.querySelector(`[data-mark="${mark[2] ?? ""}"]`)?.firstChild.data.trim() ?? "wrong";

function words([start, end]) {
  const pieces = leaves.filter((leaf) => overlap([leaf.at, leaf.end], [start, end]));
  const said = pieces.map((leaf) => (leaf.isHidden ? leaf.letters : leaf.letters.slice(Math.max(start - leaf.at, 0), end - leaf.at)).join(""));
  return said.join("");
}

// --- what is selected -----------------------------------------------------------------------------------------------

// Where an end of a selection stands, when it does so within these characters; null when at their edge or beyond.
function within(leaf, node, offset) {
  if (leaf.isHidden || !leaf.element.contains(node)) return null;
  const before = new Range();
  before.setStart(leaf.element, 0);
  before.setEnd(node, offset);
  return leaf.at + [...before.toString()].length;
}

// What is selected, cut to the characters of the output: a selection may begin or end in a number beside a sentence.
function selected() {
  const selection = getSelection();
  if (!output || !selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  if (!range.intersectsNode(output)) return null;
  const touched = leaves.filter((leaf) => range.intersectsNode(leaf.element));
  if (!touched.length) return null;
  const first = touched[0], last = touched.at(-1);
  const start = within(first, range.startContainer, range.startOffset) ?? first.at;
  const end = within(last, range.endContainer, range.endOffset) ?? last.end;
  return start < end ? [start, end] : null;
}

// Node and offset of a place in the output, for a selection that begins or ends there.
function place(at, isEnd) {
  const leaf = leaves.find((one) => (isEnd ? one.at < at && at <= one.end : one.at <= at && at < one.end));
  if (!leaf) return [output, 0];
  let left = leaf.isHidden ? (isEnd ? leaf.letters.join("").length : 0) : leaf.letters.slice(0, at - leaf.at).join("").length;
  const texts = document.createTreeWalker(leaf.element, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    if (left < text.length || (isEnd && left === text.length)) return [text, left];
    left -= text.length;
  }
  return [leaf.element, leaf.element.childNodes.length];
}

function select([start, end]) {
  const from = place(start, false), to = place(end, true);
  getSelection().setBaseAndExtent(...from, ...to);
  from[0].parentElement.scrollIntoView({ block: "nearest" });
  showChosen();
  marker.scrollIntoView({ block: "nearest" }); // on a phone the verdicts stand over it
}

function showChosen() {
  chosen = selected();
  if (marker) marker.hidden = !chosen;
}

// --- by sentence and by word ----------------------------------------------------------------------------------------

const WHOLE = [[0, leaves.at(-1)?.end ?? 0]];
const sentences = [...(output?.querySelectorAll("mark") ?? [])].map((mark) => {
  const inside = leaves.filter((leaf) => mark.contains(leaf.element));
  return [inside[0].at, inside.at(-1).end];
});

let allWords = null; // made when first asked for: an output may have 200 000 characters

function wordsOf() {
  if (allWords) return allWords;
  const whole = leaves.map((leaf) => (leaf.isHidden ? "\ufffc".repeat(leaf.end - leaf.at) : leaf.letters.join(""))).join("");
  let at = 0;
  const found = [];
  for (const { segment, isWordLike } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(whole)) {
    const end = at + [...segment].length;
    if (isWordLike || /\p{Extended_Pictographic}/u.test(segment)) found.push([at, end]);
    at = end;
  }
  return (allWords = found);
}

// The next one after what is selected, or the one before; the first or the last when nothing is.
function beside(all, isNext) {
  if (!chosen) return isNext ? all[0] : all.at(-1);
  return isNext ? all.find((one) => one[0] > chosen[0] || (one[0] === chosen[0] && one[1] > chosen[1])) : all.findLast((one) => one[0] < chosen[0]);
}

function nextWord(isNext) {
  const inside = wordsOf().filter((one) => chosen[0] <= one[0] && one[1] <= chosen[1]);
  if (inside.length > 1) return isNext ? inside[0] : inside.at(-1); // from a sentence to its first or last word
  return beside(wordsOf(), isNext);
}

function widened(isMore) {
  const all = wordsOf();
  if (isMore) return [chosen[0], all.find((one) => one[1] > chosen[1])?.[1] ?? chosen[1]];
  const shorter = all.findLast((one) => one[1] < chosen[1] && one[0] >= chosen[0]);
  return [chosen[0], shorter?.[1] ?? chosen[1]];
}

// A key that moves or clears what is selected; false when it is none.
function step(event) {
  if (!output || !form || !leaves.length) return false;
  const isNext = event.key === "ArrowRight" || event.key === "j" || event.key === "J";
  let found = null;
  if ("jJkK".includes(event.key)) found = beside(sentences.length ? sentences : WHOLE, isNext);
  else if (event.key === "Delete" || event.key === "Backspace") {
    const away = chosen ?? made.findLast((one) => marks.includes(one)) ?? marks.at(-1);
    if (!away) return false;
    unmark(away);
  } else if (!chosen) return false;
  else if (event.key === "ArrowLeft" || event.key === "ArrowRight") found = event.shiftKey ? widened(isNext) : nextWord(isNext);
  else if (event.key === "Escape") getSelection().removeAllRanges();
  else return false;
  if (found) select(found);
  showChosen();
  return true;
}

// --- marks ----------------------------------------------------------------------------------------------------------

// A new mark takes the place of those it meets: of two kinds for the same words, the later was meant.
function mark(kind) {
  if (!chosen || (marks.length >= MOST_MARKS && !marks.some((one) => overlap(one, chosen)))) return;
  const fresh = kind ? [...chosen, kind] : chosen;
  setMarks([...marks.filter((one) => !overlap(one, chosen)), fresh]);
  made.push(fresh);
  const box = kind && form.querySelector(`[name="error_types"][value="${kind}"]`);
  if (box) box.checked = true;
  $("[data-marked]").textContent = `Marked “${words(fresh).slice(0, 60)}”: ${kindOf(fresh)}`;
  getSelection().removeAllRanges();
  changed();
}

function unmark(places) {
  const count = marks.length;
  setMarks(marks.filter((one) => !overlap(one, places)));
  if (marks.length < count) $("[data-marked]").textContent = `Unmarked “${words(places).slice(0, 60)}”`;
  changed();
}

function changed() {
  showChosen();
  showMarks();
  keepDraft();
}

function setMarks(all) {
  marks.splice(0, marks.length, ...all.sort((one, other) => one[0] - other[0]));
}

function showMarks() {
  field.value = JSON.stringify(marks);
  chips.replaceChildren(...marks.map(chip));
  chips.hidden = !marks.length;
  for (const leaf of leaves) tint(leaf, marks.filter((one) => overlap(one, [leaf.at, leaf.end])));
}

// The kind stands behind the last word, as generated content: it is no part of the text that is counted and selected.
function tint(leaf, here) {
  if (leaf.isHidden) return leaf.element.classList.toggle("marked", here.length > 0);
  if (!here.length && !leaf.element.firstElementChild) return;
  const pieces = [];
  let at = leaf.at;
  const text = (end) => leaf.letters.slice(at - leaf.at, (at = end) - leaf.at).join("");
  for (const one of here) {
    pieces.push(text(Math.max(one[0], leaf.at)));
    const piece = document.createElement("span");
    piece.className = "marked";
    if (one[1] <= leaf.end) piece.dataset.kind = kindOf(one).toLowerCase();
    piece.append(text(Math.min(one[1], leaf.end)));
    pieces.push(piece);
  }
  leaf.element.replaceChildren(...pieces, text(leaf.end));
}

function chip(one) {
  const item = document.createElement("li");
  const said = document.createElement("button");
  const away = document.createElement("button");
  const quoted = words(one).length > 60 ? `${words(one).slice(0, 60)}…` : words(one);
  const bdi = document.createElement("bdi"), kind = document.createElement("small");
  bdi.textContent = quoted;
  kind.textContent = ` ${kindOf(one).toLowerCase()}`;
  said.append(bdi, kind);
  said.title = "Select these words again";
  said.addEventListener("click", () => select(one));
  away.textContent = "✕";
  away.setAttribute("aria-label", `Unmark ${quoted}`);
  away.addEventListener("click", () => unmark(one));
  for (const button of [said, away]) {
    button.type = "button";
    button.className = "quiet";
  }
  item.className = "chip";
  item.append(said, away);
  return item;
}

if (form && output && marker) {
  setMarks(JSON.parse(field.dataset.spans));
  document.querySelector(".unscripted")?.remove(); // its boxes would be sent beside the marks
  document.addEventListener("selectionchange", showChosen);
  marker.addEventListener("mousedown", (event) => event.preventDefault()); // or the click would end the selection
  marker.addEventListener("click", (event) => {
    const button = event.target.closest("[data-mark]");
    if (button) mark(button.dataset.mark);
  });
  output.addEventListener("click", (event) => {
    if (!getSelection().isCollapsed) return;
    const leaf = of(event.target.closest("[data-at]"));
    if (!leaf) return;
    const at = within(leaf, ...clickedAt(leaf)) ?? leaf.at;
    const own = marks.find((one) => one[0] <= at && at < one[1]);
    const sentence = sentences.find((one) => one[0] <= leaf.at && leaf.end <= one[1]);
    if (own ?? sentence) select(own ?? sentence);
  });
}

// The caret a click leaves is where it was, so that a click on a mark finds it.
function clickedAt(leaf) {
  const { anchorNode, anchorOffset } = getSelection();
  return leaf.element.contains(anchorNode) ? [anchorNode, anchorOffset] : [leaf.element, 0];
}
