"use strict";
// Blocks, bars and rows are `.pick`s; those with the same `data-block` are one block.
const root = document.documentElement;
const views = [...document.querySelectorAll(".view")];
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let selected = null;

// ---- theme

const theme = document.querySelector(".theme");
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme || (systemIsDark.matches ? "dark" : "light")) === "dark";
function showTheme() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `use the ${theme.textContent.toLowerCase()} theme`);
  theme.setAttribute("aria-pressed", String(isDark()));
}
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
systemIsDark.addEventListener("change", showTheme);
showTheme();

// ---- folding

const unfoldButtons = [...document.querySelectorAll(".unfold")];
const unfoldText = unfoldButtons.length ? unfoldButtons[0].textContent : "";
function fold(isFolded) {
  root.dataset.folded = String(isFolded);
  for (const button of unfoldButtons) {
    button.textContent = isFolded ? unfoldText : "Fold layers that are alike";
    button.setAttribute("aria-expanded", String(!isFolded));
  }
  views.forEach(oneTabStop);
  reveal();
}
for (const button of unfoldButtons) {
  button.addEventListener("click", () => fold(root.dataset.folded === "false"));
}
function open(foldMark) {
  const view = foldMark.closest(".view");
  const first = `${foldMark.dataset.stream}-${foldMark.dataset.from}`;
  fold(false);
  const found = shown(view).filter((pick) => pick.dataset.block === first);
  const same = found.find((pick) => pick.dataset.row === foldMark.dataset.row);
  (same || found[0]).focus();
}

// ---- selecting

function select(block) {
  selected = block;
  for (const marked of document.querySelectorAll(".selected")) mark(marked, false);
  root.classList.toggle("has-selection", block !== null);
  const about = document.querySelector(".about");
  about.hidden = block === null;
  if (block === null) return;
  for (const found of document.querySelectorAll(`[data-block="${block}"]`)) mark(found, true);
  const at = block.lastIndexOf("-"), index = Number(block.slice(at + 1));
  for (const found of document.querySelectorAll(`.fold[data-stream="${block.slice(0, at)}"]`)) {
    if (found.dataset.from <= index && index <= found.dataset.to) found.classList.add("selected");
  }
  about.textContent = document.querySelector(`tr[data-block="${block}"]`).dataset.about;
  reveal();
}
function mark(element, is) {
  element.classList.toggle("selected", is);
  for (const state of ["aria-pressed", "aria-selected"]) {
    if (element.hasAttribute(state)) element.setAttribute(state, String(is));
  }
}
// Each view's scrollers go to what is selected; the page itself stays where it is.
function reveal() {
  for (const found of document.querySelectorAll(".scroller .selected.pick")) {
    const scroller = found.closest(".scroller");
    const box = found.getBoundingClientRect(), frame = scroller.getBoundingClientRect();
    if (!box.width || found.tagName === "TR") continue;
    if (box.left >= frame.left && box.right <= frame.right) continue;
    const left = scroller.scrollLeft + (box.left + box.right - frame.left - frame.right) / 2;
    scroller.scrollTo({ left, behavior: calm.matches ? "auto" : "smooth" });
  }
}

// ---- keyboard and mouse

const isShown = (element) => element.getClientRects().length > 0;
const shown = (view) => [...view.querySelectorAll(".pick")].filter(isShown);
function oneTabStop(view) {
  const picks = shown(view);
  const current = picks.find((pick) => pick.tabIndex === 0) || picks[0];
  for (const pick of view.querySelectorAll(".pick")) pick.tabIndex = -1;
  if (current) current.tabIndex = 0;
}
function rowsOf(view) {
  const rows = new Map();
  for (const pick of shown(view)) {
    if (!rows.has(pick.dataset.row)) rows.set(pick.dataset.row, []);
    rows.get(pick.dataset.row).push(pick);
  }
  return [...rows.values()];
}
const left = (pick) => pick.getBoundingClientRect().left;
function neighbour(view, pick, key) {
  const rows = rowsOf(view);
  const at = rows.findIndex((row) => row.includes(pick));
  const isTable = pick.tagName === "TR";
  const row = isTable ? rows[at] : [...rows[at]].sort((a, b) => left(a) - left(b));
  const step = { ArrowRight: 1, ArrowLeft: -1 }[key] || (isTable && { ArrowDown: 1, ArrowUp: -1 }[key]);
  if (step) return row[row.indexOf(pick) + step] || (isTable && (rows[at + step] || []).at(step > 0 ? 0 : -1));
  if (key === "Home") return row[0];
  if (key === "End") return row.at(-1);
  const other = rows[at + { ArrowDown: 1, ArrowUp: -1 }[key]];
  if (!other) return null;
  const same = other.find((found) => found.dataset.block && found.dataset.block === pick.dataset.block);
  const distance = (found) => Math.abs(left(found) - left(pick));
  return same || other.reduce((a, b) => (distance(b) < distance(a) ? b : a));
}
const MOVES = ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"];
function act(pick) {
  if (pick.classList.contains("fold")) open(pick);
  else if (pick.dataset.block) select(pick.dataset.block === selected ? null : pick.dataset.block);
}
for (const view of views) {
  view.addEventListener("keydown", (event) => {
    const pick = event.target.closest(".pick");
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (view.classList.contains("time") && zoomBy(event.key)) return event.preventDefault();
    if (!pick) return;
    if (event.key === "Enter" || event.key === " ") act(pick);
    else if (MOVES.includes(event.key)) (neighbour(view, pick, event.key) || pick).focus();
    else return;
    event.preventDefault();
  });
  view.addEventListener("focusin", (event) => {
    if (!event.target.classList.contains("pick")) return;
    for (const pick of view.querySelectorAll('.pick[tabindex="0"]')) pick.tabIndex = -1;
    event.target.tabIndex = 0;
    event.target.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  view.addEventListener("click", (event) => {
    const pick = event.target.closest(".pick");
    if (!pick) return;
    pick.focus({ preventScroll: true });
    act(pick);
  });
  oneTabStop(view);
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") select(null);
});

// ---- zooming the timeline

const scroller = document.querySelector(".time .scroller");
const MAX_ZOOM = 200;
const THIN = 6; // pixels, as in lanes.py
let zoom = 1;
function setZoom(wanted, pointer) {
  const frame = scroller.getBoundingClientRect();
  const x = pointer === undefined ? frame.width / 2 : pointer - frame.left;
  const place = (scroller.scrollLeft + x) / zoom;
  zoom = Math.min(Math.max(wanted, 1), MAX_ZOOM);
  scroller.style.setProperty("--zoom", zoom);
  scroller.dataset.finest = zoom < 4 ? 0 : zoom < 20 ? 1 : 2;
  scroller.scrollLeft = place * zoom - x;
  showLabels();
}
function showLabels() {
  const width = scroller.clientWidth * zoom;
  for (const label of scroller.querySelectorAll("[data-needs]")) {
    const pixels = label.parentNode.dataset.part * width;
    label.setAttribute("visibility", pixels >= label.dataset.needs ? "visible" : "hidden");
    const bar = label.parentNode.querySelector(".bar");
    bar.classList.toggle("thin", pixels < THIN);
    bar.setAttribute("rx", pixels < THIN ? 0.5 : 3);
  }
}
function zoomBy(key) {
  const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 1 / zoom }[key];
  if (!scroller || !factor) return false;
  const focus = scroller.querySelector(".pick:focus");
  const box = focus && focus.getBoundingClientRect();
  setZoom(zoom * factor, box ? (box.left + box.right) / 2 : undefined);
  return true;
}
if (scroller) {
  const keys = { in: "+", out: "-", fit: "0" };
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoomBy(keys[button.dataset.zoom]));
  }
  scroller.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    setZoom(zoom * Math.exp(-event.deltaY / 300), event.clientX);
  }, { passive: false });
  addEventListener("resize", showLabels);
  showLabels();
}
