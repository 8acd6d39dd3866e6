"use strict";
// One zoom and pan shared by several stages of the same shape: what is under one pointer is under all.
class View {
  constructor(stages, zoomBar, onSplit) {
    this.stages = stages;
    this.onSplit = onSplit;
    this.scale = 1;
    this.x = 0; // place of the image's left and top edge, in parts of the stage
    this.y = 0;
    this.pointers = new Map();
    for (const stage of stages) this.listen(stage);
    this.buttons = [1, 2, 4, 8].map((scale) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = scale === 1 ? "Fit" : scale + "×";
      button.addEventListener("click", () => this.zoom(scale, 0.5, 0.5));
      zoomBar.append(button);
      return { scale, button };
    });
    zoomBar.hidden = false;
    this.apply();
  }

  zoom(scale, atX, atY) {
    scale = Math.min(32, Math.max(1, scale));
    this.x = atX - ((atX - this.x) * scale) / this.scale;
    this.y = atY - ((atY - this.y) * scale) / this.scale;
    this.scale = scale;
    this.apply();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.apply();
  }

  apply() {
    const most = 1 - this.scale;
    this.x = Math.min(0, Math.max(most, this.x));
    this.y = Math.min(0, Math.max(most, this.y));
    for (const stage of this.stages) {
      stage.classList.toggle("zoomed", this.scale > 1);
      for (const image of stage.querySelectorAll("img")) {
        image.style.transform = `translate(${this.x * 100}%, ${this.y * 100}%) scale(${this.scale})`;
        // Enlarged pixels stay square; a reduced picture is smoothed.
        const shown = (stage.clientWidth * this.scale * devicePixelRatio) / (image.naturalWidth || 1);
        image.classList.toggle("crisp", shown > 0.99);
      }
    }
    for (const { scale, button } of this.buttons) button.setAttribute("aria-pressed", String(scale === this.scale));
  }

  place(stage, event) {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  listen(stage) {
    let splitting = false;
    stage.addEventListener("pointerdown", (event) => {
      const [x, y] = this.place(stage, event);
      this.pointers.set(event.pointerId, [x, y]);
      splitting = Boolean(this.onSplit) && (this.scale === 1 || this.onSplit.near(x * stage.clientWidth));
      if (splitting && this.pointers.size === 1) this.onSplit.move(x);
      if (event.pointerType === "mouse") stage.focus({ preventScroll: true });
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const [x, y] = this.place(stage, event);
      this.pointers.set(event.pointerId, [x, y]);
      if (this.pointers.size === 2) {
        const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
        const length = (a) => Math.hypot((a[0] - other[0]) * stage.clientWidth, (a[1] - other[1]) * stage.clientHeight);
        if (length(before) > 0) this.zoom((this.scale * length([x, y])) / length(before), other[0], other[1]);
      } else if (splitting) {
        this.onSplit.move(x);
      } else {
        this.pan(x - before[0], y - before[1]);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    stage.addEventListener("dblclick", (event) => {
      this.zoom(this.scale > 1 ? 1 : 4, ...this.place(stage, event));
    });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page keeps its own scrolling
      event.preventDefault();
      this.zoom(this.scale * Math.exp(-event.deltaY / 240), ...this.place(stage, event));
    }, { passive: false });
    stage.addEventListener("keydown", (event) => {
      const step = 0.08;
      const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
      if (event.key === "+" || event.key === "=") this.zoom(this.scale * 2, 0.5, 0.5);
      else if (event.key === "-") this.zoom(this.scale / 2, 0.5, 0.5);
      else if (event.key in moves && this.scale > 1) this.pan(...moves[event.key]);
      else return;
      event.preventDefault();
    });
  }
}

const axes = document.getElementById("axes");
if (axes) {
  const selects = [...axes.querySelectorAll("select")];
  const draw = () => {
    for (const plane of document.querySelectorAll(".plane")) {
      plane.hidden = plane.dataset.x !== selects[0].value || plane.dataset.y !== selects[1].value;
    }
  };
  for (const select of selects) select.addEventListener("change", draw);
  axes.hidden = false;
  draw(); // a browser may keep a choice when it loads the page again
}

const gallery = JSON.parse(document.getElementById("gallery").textContent);
if (gallery.images.length) {
  for (const photo of document.querySelectorAll(".photo")) {
    new View([...photo.querySelectorAll(".stage")], photo.querySelector(".zoom"), null);
  }

  const box = document.getElementById("compare");
  const stage = box.querySelector(".compare");
  const range = box.querySelector("input[type=range]");
  const [which, left, right] = ["which", "left", "right"].map((id) => document.getElementById(id));
  const [leftImage, rightImage] = stage.querySelectorAll("img");
  box.hidden = false;

  let split = 0.5;
  const move = (place) => {
    split = Math.min(1, Math.max(0, place));
    stage.style.setProperty("--split", `${split * 100}%`);
    range.value = split * 100;
  };
  const near = (x) => Math.abs(x - split * stage.clientWidth) < 24;
  const view = new View([stage], box.querySelector(".zoom"), { move, near });
  range.addEventListener("input", () => move(range.value / 100));

  const frames = new Map(); // full frames are parsed when first asked for
  const source = (image, folder) => {
    const about = gallery.images[image];
    if (about.frames) {
      if (!frames.has(image)) {
        const scripts = [...document.querySelectorAll("script[data-frames]")];
        frames.set(image, JSON.parse(scripts.find((s) => s.dataset.frames === about.name).textContent));
      }
      if (frames.get(image)[folder]) return frames.get(image)[folder];
    }
    return document.getElementById(`crop-${image}-${about.variants.findIndex((v) => v.folder === folder)}`).src;
  };
  // At "Fit" an image that has room is shown at a whole multiple of its size in the screen's pixels.
  const shape = () => {
    const width = leftImage.naturalWidth, height = leftImage.naturalHeight;
    if (!width) return;
    const room = Math.min(box.clientWidth / width, (0.86 * innerHeight) / height);
    const factor = room >= 1 ? Math.floor(room * devicePixelRatio) / devicePixelRatio : box.clientWidth / width;
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.width = range.style.width = `${Math.min(box.clientWidth, width * factor)}px`;
    view.apply();
  };
  const show = () => {
    const image = Number(which.value);
    for (const [select, picture, tag] of [[left, leftImage, ".tag.l"], [right, rightImage, ".tag.r"]]) {
      picture.src = source(image, select.value);
      const name = select.selectedOptions[0].textContent;
      picture.alt = `${gallery.images[image].name}: ${name}`;
      stage.querySelector(tag).textContent = name;
    }
  };
  const fill = (image) => {
    const variants = gallery.images[image].variants;
    for (const [select, usual] of [[left, "input"], [right, gallery.winner]]) {
      const wanted = select.value || usual;
      select.replaceChildren(...variants.map((v) => new Option(v.name, v.folder)));
      select.value = variants.some((v) => v.folder === wanted) ? wanted : variants.at(-1).folder;
    }
    show();
  };
  which.addEventListener("change", () => { view.zoom(1, 0, 0); fill(Number(which.value)); });
  left.addEventListener("change", show);
  right.addEventListener("change", show);
  for (const image of [leftImage, rightImage]) image.addEventListener("load", shape);
  addEventListener("resize", shape);
  for (const button of document.querySelectorAll("button.who")) {
    button.addEventListener("click", () => {
      which.value = button.dataset.image;
      fill(Number(which.value));
      right.value = button.dataset.folder;
      show();
      box.scrollIntoView({ block: "start" });
    });
  }
  const first = gallery.images.findIndex((image) => image.frames);
  which.value = String(Math.max(0, first));
  fill(Number(which.value));
}
