/* The page of a preference study. An answer is kept, here and in localStorage, until the server has said that it is stored;
   only then does the page go on. Sending it twice does no harm. */
"use strict";

const $ = (id) => document.getElementById(id);
const SIDES = ["left", "reference", "right"];
const PENDING = "veridical-study-answer";
const MOST_ZOOM = 16;        // screen pixels for one of the image
const TOO_SOON_MS = 350;     // the second half of a double click is not an answer to the next question
const PATIENCE_MS = 15000;

let state = null;            // what the server said last
let shown = null;            // {id, since, spent}: the question on the screen, and how long it has been looked at
let busy = false;            // an answer is on its way
let section = "";

// ---- pages ----

function show(name) {
  section = name;
  for (const main of document.querySelectorAll("main[id]")) main.hidden = main.id !== name;
  document.body.className = name;
  const heading = $(name).querySelector("h1");
  if (name !== "trial" && heading) heading.focus();
  window.scrollTo(0, 0);
}

function trouble(kind) {
  for (const each of ["offline", "kept", "late"]) $(`trouble-${each}`).hidden = each !== kind;
  $("trouble").hidden = !kind;
}

// ---- talking to the server ----

class Refused extends Error {
  constructor(status) { super(`status ${status}`); this.status = status; }
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/* Ask until there is an answer: a server that is away or busy is asked again, ever more slowly. */
async function ask(path, body) {
  for (let tries = 0; ; tries += 1) {
    const patience = new AbortController();
    const timer = setTimeout(() => patience.abort(), PATIENCE_MS);
    try {
      const options = { signal: patience.signal, credentials: "same-origin", cache: "no-store" };
      if (body) Object.assign(options, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
      const response = await fetch(path, options);
      if (response.ok) {
        const found = await response.json();
        if (tries) trouble("");
        return found;
      }
      if (response.status < 500 && response.status !== 429) throw new Refused(response.status);
    } catch (error) {
      if (error instanceof Refused) { if (tries) trouble(""); throw error; }
    } finally {
      clearTimeout(timer);
    }
    trouble("offline");
    await wait(pause(tries));
  }
}

const pause = (tries) => Math.min(8000, 400 * 2 ** tries) * (0.75 + Math.random() / 2);

// localStorage may be switched off: then an answer outlives a lost connection, but not a closed page.
function keep(answer) {
  try {
    if (answer) localStorage.setItem(PENDING, JSON.stringify(answer)); else localStorage.removeItem(PENDING);
  } catch { /* not kept */ }
}

function kept() {
  try { return JSON.parse(localStorage.getItem(PENDING)); } catch { return null; }
}

// ---- images ----

const loaded = new Map();    // trial -> promise of {left, reference, right}: decoded images

function load(trial) {
  if (!loaded.has(trial)) {
    loaded.set(trial, Promise.all(SIDES.map((side) => image(`image/${trial}/${side}`)))
      .then((found) => Object.fromEntries(SIDES.map((side, i) => [side, found[i]]))));
  }
  return loaded.get(trial);
}

async function image(url) {
  for (let tries = 0; ; tries += 1) {
    const made = new Image();
    made.alt = "";
    made.draggable = false;
    made.src = url;
    try {
      await made.decode();
      if (tries) trouble("");
      return made;
    } catch {
      trouble("offline");
      await wait(pause(tries));
    }
  }
}

// ---- the course of a session ----

async function go(found) {
  state = found;
  if (state.closed) { show("closed"); return; }
  if (!state.trials.length) { finish(); return; }
  if (!state.done && !shown && section !== "how") {
    load(state.trials[0]);
    show("how");
    return;
  }
  await present();
}

async function present() {
  const [id, next] = state.trials;
  const images = await load(id);
  for (const known of loaded.keys()) if (!state.trials.includes(known)) loaded.delete(known);
  $("number").textContent = state.done + 1;
  $("total").textContent = state.total;
  $("progress").max = state.total;
  $("progress").value = state.done;
  if (section !== "trial") show("trial");
  for (const stage of stages()) {
    images[stage.dataset.what].setAttribute("alt", { left: "Left image", reference: "Reference image", right: "Right image" }[stage.dataset.what]);
    stage.replaceChildren(images[stage.dataset.what]);
  }
  for (const button of document.querySelectorAll(".choose")) button.classList.remove("chosen");
  document.body.classList.remove("sending");
  reset();
  shown = { id, since: performance.now(), spent: 0 };
  busy = false;
  document.body.dataset.shown = id;
  if (next) load(next);
}

async function choose(choice) {
  if (section !== "trial" || busy || !shown || performance.now() - shown.since < TOO_SOON_MS) return;
  busy = true;
  const answer = { trial: shown.id, choice, seconds: (shown.spent + performance.now() - shown.since) / 1000 };
  $(choice === 1 ? "choose-left" : "choose-right").classList.add("chosen");
  document.body.classList.add("sending");
  trouble("");
  await send(answer);
}

async function send(answer) {
  answer.seconds = Math.min(86400, Math.max(0, answer.seconds));
  keep(answer);
  let found;
  try {
    found = await ask("api/vote", answer);
    keep(null);
  } catch (error) {          // refused: the question is not this rater's, or the server does not know the browser
    keep(null);
    await enter();
    return;
  }
  if (found.outcome === "kept" || found.outcome === "late") trouble(found.outcome);
  await go(found);
}

function finish() {
  $("answers").textContent = state.done;
  $("rater").textContent = state.rater;
  delete document.body.dataset.shown;
  shown = null;
  busy = false;
  show("thanks");
}

function take_a_break() {
  if (section !== "trial" || busy || !shown) return;
  shown.spent += performance.now() - shown.since;
  $("link").value = `${location.origin}${location.pathname}#${state.token}`;
  $("copied").hidden = true;
  show("paused");
}

function go_on() {
  show("trial");
  shown.since = performance.now();
  reset();
}

/* Where this browser, or the link that it followed, left off. */
async function enter() {
  const token = location.hash.slice(1);
  if (token) history.replaceState(null, "", location.pathname);   // so that nobody reads the link off the screen
  try {
    const found = token ? await ask("api/resume", { token }) : await ask("api/state");
    const answer = kept();
    if (!found) show("consent"); else if (answer) await send(answer); else await go(found);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    show("lost");
  }
}

// ---- zoom: one view for all three images ----

const view = { scale: 1, x: 0, y: 0 };    // CSS pixels for one of the image; the point of the image in the middle

const stages = () => document.querySelectorAll(".stage");
const size = () => { const img = document.querySelector(".stage img"); return img ? [img.naturalWidth, img.naturalHeight] : [1, 1]; };

const frames = () => [...stages()].map((stage) => stage.getBoundingClientRect());

/* The largest scale at which the whole image is seen in each stage. An image with room to spare is shown pixel for pixel, or
   grows by whole numbers: anything else would blur it. */
function fit() {
  const [w, h] = size();
  const scale = Math.min(...frames().map((frame) => Math.min(frame.width / w, frame.height / h)));
  const dots = scale * devicePixelRatio;        // pixels of the screen for one of the image
  return dots >= 1 ? Math.floor(dots) / devicePixelRatio : scale;
}

function reset() {
  const [w, h] = size();
  Object.assign(view, { scale: fit(), x: w / 2, y: h / 2 });
  draw();
}

function draw() {
  const [w, h] = size();
  const least = fit();
  view.scale = Math.min(Math.max(view.scale, least), Math.max(MOST_ZOOM, least));
  const narrow = Math.min(...frames().map((frame) => frame.width));
  const low = Math.min(...frames().map((frame) => frame.height));
  view.x = inside(view.x, narrow / 2 / view.scale, w);
  view.y = inside(view.y, low / 2 / view.scale, h);
  for (const stage of stages()) {
    const img = stage.firstElementChild;
    if (!img) continue;
    const frame = stage.getBoundingClientRect();
    const left = onPixel(frame.left + frame.width / 2 - view.x * view.scale) - frame.left;
    const top = onPixel(frame.top + frame.height / 2 - view.y * view.scale) - frame.top;
    img.style.transform = `translate(${left}px, ${top}px) scale(${view.scale})`;
    img.classList.toggle("crisp", view.scale * devicePixelRatio >= 2);
    stage.classList.toggle("zoomed", view.scale > least);
  }
  $("zoom-fit").textContent = `${Math.round(view.scale * devicePixelRatio * 100)} %`;
}

/* To a pixel of the screen: an image that begins between two would be blurred. */
const onPixel = (at) => Math.round(at * devicePixelRatio) / devicePixelRatio;

const inside = (at, half, length) => (2 * half >= length ? length / 2 : Math.min(Math.max(at, half), length - half));

/* Zoom by a factor about a point of a stage, (0, 0) being its middle. */
function zoom(factor, dx = 0, dy = 0) {
  const before = view.scale;
  view.scale = Math.min(Math.max(before * factor, fit()), MOST_ZOOM);
  view.x += dx / before - dx / view.scale;
  view.y += dy / before - dy / view.scale;
  draw();
}

/* To the next of 25 %, 50 %, 100 %, 200 %, ... */
function step(up) {
  const level = Math.log2(view.scale * devicePixelRatio);
  zoom(2 ** ((up ? Math.floor(level + 1.01) : Math.ceil(level - 1.01)) - level));
}

function move(dx, dy) {
  view.x -= dx / view.scale;
  view.y -= dy / view.scale;
  draw();
}

function watch(stage) {
  const down = new Map();
  let tapped = 0;            // when
  let still = false;         // one finger came down, and has not moved since
  const middle = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    down.set(event.pointerId, event);
    still = down.size === 1;
  });
  stage.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return;
    still = still && Math.hypot(event.movementX, event.movementY) < 4;
    const before = [...down.values()];
    const was = down.get(event.pointerId);
    down.set(event.pointerId, event);
    const now = [...down.values()];
    if (now.length === 1) { move(event.clientX - was.clientX, event.clientY - was.clientY); return; }
    const span = (two) => Math.hypot(two[0].clientX - two[1].clientX, two[0].clientY - two[1].clientY);
    const [ax, ay] = middle(now[0]);
    const [bx, by] = middle(now[1]);
    move((event.clientX - was.clientX) / 2, (event.clientY - was.clientY) / 2);
    zoom(span(now) / Math.max(1, span(before)), (ax + bx) / 2, (ay + by) / 2);
  });
  const up = (event) => {
    down.delete(event.pointerId);
    if (!still || event.type === "pointercancel" || event.pointerType === "mouse") { tapped = 0; return; }
    const now = performance.now();
    if (now - tapped < 300) { toggle(...middle(event)); tapped = 0; } else tapped = now;
  };
  stage.addEventListener("pointerup", up);
  stage.addEventListener("pointercancel", up);
  stage.addEventListener("dblclick", (event) => { if (event.pointerType !== "touch") toggle(...middle(event)); });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) / 400), ...middle(event));
  }, { passive: false });
}

function toggle(dx, dy) {
  if (view.scale > fit() * 1.01) reset(); else zoom(Math.max(1, 3 * fit()) / fit(), dx, dy);
}

// ---- what people press ----

const KEYS = {
  ArrowLeft: () => choose(1), 1: () => choose(1), ArrowRight: () => choose(2), 2: () => choose(2),
  "+": () => step(true), "=": () => step(true), "-": () => step(false), 0: reset, p: take_a_break, P: take_a_break,
};
const MOVES = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };

document.addEventListener("keydown", (event) => {
  if (section !== "trial" || event.ctrlKey || event.metaKey || event.altKey) return;
  const shift = event.shiftKey && MOVES[event.key];
  const does = shift ? () => move(...shift) : KEYS[event.key];
  if (!does) return;
  event.preventDefault();
  if (shift || !event.repeat) does();       // a key held down is one answer
});

$("agree").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy) return;
  busy = true;
  try {
    await ask("api/begin", { consent: true });
    const found = await ask("api/state");       // asked for by itself, to see whether the cookie was kept
    $("no-cookie").hidden = Boolean(found);
    if (found) await go(found);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("full").hidden = false;
  } finally {
    busy = false;
  }
});
$("start").addEventListener("click", present);
$("choose-left").addEventListener("click", () => choose(1));
$("choose-right").addEventListener("click", () => choose(2));
$("zoom-in").addEventListener("click", () => step(true));
$("zoom-out").addEventListener("click", () => step(false));
$("zoom-fit").addEventListener("click", reset);
$("pause").addEventListener("click", take_a_break);
$("go-on").addEventListener("click", go_on);
$("anew").addEventListener("click", () => show("consent"));
$("link").addEventListener("focus", () => $("link").select());
$("copy").addEventListener("click", async () => {
  $("link").select();
  try { await navigator.clipboard.writeText($("link").value); } catch { document.execCommand("copy"); }
  $("copied").hidden = false;
});
$("more").addEventListener("click", async () => {
  try {
    await go(await ask("api/more", {}));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("more").hidden = true;
    $("nothing-more").hidden = false;
  }
});
window.addEventListener("resize", () => { if (section === "trial" && shown) draw(); });
window.addEventListener("hashchange", enter);
stages().forEach(watch);
show("loading");
enter();
