// Galleries: switches, filters, labels, and a viewer that fills the window.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".gallery").forEach((root) => new Gallery(root));
});

class Gallery {
  constructor(root) {
    this.root = root;
    this.cards = [...root.querySelectorAll(".card")];
    this.list = root.querySelector(".cards");
    this.filters = [...root.querySelectorAll(".gallery-filter select")];
    for (const card of this.cards) card.tags = new Set(JSON.parse(card.dataset.tags));
    root.querySelectorAll(".card .picture").forEach(addHalos);
    this.listen(root);
    this.more = root.querySelector(".gallery-more");
    this.first = this.more ? this.cards.filter((card) => !card.classList.contains("later")).length : Infinity;
    this.more?.addEventListener("click", () => {
      const next = this.visible()[this.first];
      this.showAll();
      next.querySelector(".panes")?.focus();
    });
    this.filters.forEach((filter) => filter.addEventListener("change", () => this.filter()));
    this.list.addEventListener("click", (event) => {
      const card = event.target.closest(".panes")?.closest(".card");
      if (card) Viewer.get().open(this, card);
    });
    this.show();
  }

  // Controls may be those of the gallery or their copies in the viewer.
  listen(controls) {
    controls.addEventListener("click", (event) => {
      const button = event.target.closest(".switch");
      if (button) this.press(button);
    });
    controls.addEventListener("input", (event) => {
      if (event.target.type === "range") this.fade(event.target.value);
    });
  }

  controls() { return [this.root, ...(Viewer.only?.gallery === this ? [Viewer.only.dialog] : [])]; }

  press(button) {
    const pressed = String(button.getAttribute("aria-pressed") !== "true");
    const { group, kind } = button.dataset;
    const name = group !== undefined ? `[data-group="${group}"]` : kind !== undefined ? `[data-kind="${kind}"]` : "[data-side]";
    for (const controls of this.controls()) {
      controls.querySelectorAll(`.switch${name}`).forEach((each) => each.setAttribute("aria-pressed", pressed));
    }
    this.show();
  }

  fade(percent) {
    for (const controls of this.controls()) {
      controls.style.setProperty("--opacity", percent / 100);
      controls.querySelectorAll("input[type=range]").forEach((input) => { input.value = percent; });
    }
  }

  filter() {
    const wanted = this.filters.map((filter) => filter.value).filter(Boolean);
    for (const card of this.cards) card.hidden = !wanted.every((tag) => card.tags.has(tag));
    const count = this.limit();
    const total = `${this.cards.length} image${this.cards.length === 1 ? "" : "s"}`;
    this.root.querySelector(".gallery-count").textContent = wanted.length ? `${count} of ${total}` : total;
    this.root.querySelector(".empty").hidden = count > 0 || !wanted.length;
  }

  // Show only the first of the images that match, until the reader asks for more; return how many match.
  limit() {
    const cards = this.visible();
    cards.forEach((card, i) => card.classList.toggle("later", i >= this.first));
    if (this.more) {
      this.more.hidden = cards.length <= this.first;
      this.more.textContent = `Show ${cards.length - this.first} more`;
    }
    return cards.length;
  }

  showAll() {
    this.first = Infinity;
    this.limit();
  }

  visible() { return this.cards.filter((card) => !card.hidden); }

  pressed(attribute) {
    return [...this.root.querySelectorAll(`.switch[data-${attribute}]`)].filter((each) => each.getAttribute("aria-pressed") === "true");
  }

  show() {
    const shown = this.pressed("group");
    const side = this.pressed("side").length > 0;
    this.list.classList.toggle("wide", side && shown.length > 1);
    this.kinds = new Set(this.pressed("kind").map((each) => each.dataset.kind));
    this.hasKinds = this.root.querySelector("[data-kind]") !== null;
    const groups = shown.map((each) => each.dataset.group);
    for (const controls of this.controls()) {
      controls.querySelectorAll(".gallery-colors").forEach((legend) => {
        legend.hidden = !legend.dataset.groups.split(" ").some((group) => groups.includes(group));
      });
    }
    this.views = side && shown.length > 1 ? shown.map((each) => [each]) : [shown];
    this.root.querySelectorAll(".card .panes").forEach((panes) => this.arrange(panes));
    if (Viewer.only?.gallery === this && Viewer.only.dialog.open) Viewer.only.show();
  }

  // Give the picture as many panes as there are views of it, and show in each what belongs to the view.
  arrange(panes) {
    const pictures = [...panes.querySelectorAll(".picture:not(.blank)")];
    pictures.forEach((picture) => resized.unobserve(picture));
    panes.replaceChildren(...this.views.map((buttons, i) => {
      const picture = pictures[i] ?? pictures[0].cloneNode(true);
      const groups = buttons.map((each) => each.dataset.group);
      picture.querySelectorAll("[data-group]").forEach((each) => { each.toggleAttribute("hidden", !groups.includes(each.dataset.group)); });
      picture.querySelectorAll(".shape").forEach((shape) => { shape.toggleAttribute("hidden", this.hasKinds && !this.kinds.has(kindOf(shape))); });
      const pane = make("span", "pane");
      if (this.views.length > 1) pane.append(make("span", "pane-name", buttons[0].textContent));
      pane.append(picture);
      resized.observe(picture);
      return pane;
    }));
  }
}

class Viewer {
  static only = null;
  static get() { return Viewer.only ??= new Viewer(); }

  constructor() {
    this.dialog = make("dialog", "viewer");
    this.dialog.setAttribute("aria-labelledby", "viewer-title");
    this.title = make("h3");
    this.title.id = "viewer-title";
    this.count = make("span", "viewer-count");
    this.count.setAttribute("role", "status");
    this.controls = make("div", "viewer-controls");
    this.panes = make("div", "panes");
    this.panes.tabIndex = 0;
    this.panes.setAttribute("role", "group");
    this.panes.setAttribute("aria-label", "Picture. Arrow keys show the next image, or move an enlarged picture; plus and minus zoom.");
    this.text = make("p");
    this.point = make("p", "viewer-point");
    const foot = make("div", "viewer-foot");
    foot.append(this.text, this.point);
    const head = make("div", "viewer-head");
    const button = (text, label, action) => {
      const made = make("button", "", text);
      made.type = "button";
      made.setAttribute("aria-label", label);
      made.title = label;
      made.addEventListener("click", action);
      return made;
    };
    head.append(
      this.title, this.count,
      button("‹", "Previous image", () => this.step(-1)), button("›", "Next image", () => this.step(1)),
      button("−", "Zoom out", () => this.zoomBy(1 / 1.5)), button("+", "Zoom in", () => this.zoomBy(1.5)),
      button("✕", "Close", () => this.dialog.close()),
    );
    this.dialog.append(head, this.controls, this.panes, foot);
    document.body.append(this.dialog);
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.dialog.addEventListener("close", () => {
      this.clear();
      if (this.card.classList.contains("later")) this.gallery.showAll();
      this.card.querySelector(".panes").focus();
    });
    this.panes.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), event);
    }, { passive: false });
    this.panes.addEventListener("dblclick", (event) => this.zoomBy(this.zoom > 1 ? 1 / this.zoom : 3, event));
    this.panes.addEventListener("pointermove", (event) => { this.point.textContent = this.namesAt(event); });
    this.panes.addEventListener("pointerleave", () => { this.point.textContent = ""; });
    this.panes.addEventListener("pointerdown", (event) => this.drag(event));
    this.panes.addEventListener("scroll", (event) => this.follow(event.target), true);
    new ResizeObserver(() => { if (this.dialog.open) this.fit(); }).observe(this.panes);
  }

  open(gallery, card) {
    if (this.gallery !== gallery) {
      this.gallery = gallery;
      const controls = make("div", "viewer-controls");
      for (const part of gallery.root.querySelectorAll(".gallery-switches, .gallery-legend, .gallery-colors")) controls.append(part.cloneNode(true));
      gallery.listen(controls);
      this.controls.replaceWith(controls);
      this.controls = controls;
      const opacity = gallery.root.querySelector("input[type=range]");
      if (opacity) gallery.fade(opacity.value);
    }
    this.dialog.showModal();
    this.load(card);
    this.panes.focus();
  }

  load(card) {
    this.card = card;
    this.zoom = 1;
    const cards = this.choices();
    this.title.textContent = card.querySelector(".card-title").textContent;
    this.text.textContent = card.querySelector(".card-text").textContent;
    this.count.textContent = `${cards.indexOf(card) + 1} of ${cards.length}`;
    this.point.textContent = "";
    this.clear();
    this.panes.append(card.querySelector(".picture").cloneNode(true));
    this.show();
  }

  clear() {
    this.panes.querySelectorAll(".picture").forEach((picture) => resized.unobserve(picture));
    this.panes.replaceChildren();
  }

  // Arrange the panes for the switches of the gallery, without changing the zoom.
  show() {
    const places = this.scrollers?.[0];
    const [left, top] = places ? [places.scrollLeft, places.scrollTop] : [0, 0];
    this.gallery.arrange(this.panes);
    this.scrollers = [...this.panes.querySelectorAll(".picture")].map((picture) => {
      const scroller = make("div", "scroller");
      picture.replaceWith(scroller);
      scroller.append(picture);
      return scroller;
    });
    this.fit();
    for (const scroller of this.scrollers) scroller.scrollTo(left, top);
  }

  choices() { return this.gallery.visible().filter((card) => card.querySelector(".picture")); }

  step(by) {
    const cards = this.choices();
    this.load(cards[(cards.indexOf(this.card) + by + cards.length) % cards.length]);
  }

  // Place the panes in a row or in a column, whichever makes the pictures larger, and size the pictures.
  fit() {
    const ratio = parseFloat(this.panes.querySelector(".picture").style.getPropertyValue("--ratio"));
    const { clientWidth: width, clientHeight: height } = this.panes;
    const count = this.scrollers.length;
    const gap = 4 * (count - 1);
    const name = this.panes.querySelector(".pane-name")?.offsetHeight ?? 0;
    const inRow = Math.min((width - gap) / count, (height - name) * ratio);
    const inColumn = Math.min(width, ((height - gap) / count - name) * ratio);
    this.panes.classList.toggle("column", inColumn > inRow);
    this.panes.style.setProperty("--width", `${Math.max(inRow, inColumn) * this.zoom}px`);
    for (const scroller of this.scrollers) scroller.classList.toggle("zoomed", this.zoom > 1);
  }

  // Zoom by a factor, and keep the point below the pointer, or the centre, where it is.
  zoomBy(factor, event) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), 20);
    const scroller = event?.target.closest(".scroller") ?? this.scrollers[0];
    const bounds = scroller.getBoundingClientRect();
    const x = event ? event.clientX - bounds.left : bounds.width / 2;
    const y = event ? event.clientY - bounds.top : bounds.height / 2;
    const before = scroller.querySelector(".picture").getBoundingClientRect();
    const share = [(bounds.left + x - before.left) / before.width, (bounds.top + y - before.top) / before.height];
    this.zoom = zoom;
    this.fit();
    const after = scroller.querySelector(".picture").getBoundingClientRect();
    scroller.scrollBy(after.left + share[0] * after.width - bounds.left - x, after.top + share[1] * after.height - bounds.top - y);
    this.follow(scroller);
  }

  // Let all panes show the same part of the picture. A pane that is where it was put does not lead the others.
  follow(scroller) {
    const place = (pane) => `${pane.scrollLeft} ${pane.scrollTop}`;
    if (place(scroller) === scroller.dataset.place) return;
    for (const pane of this.scrollers) {
      if (pane !== scroller) pane.scrollTo(scroller.scrollLeft, scroller.scrollTop);
      pane.dataset.place = place(pane);
    }
  }

  // Return what the maps say at the pointer, such as "Truth: road, Prediction: pavement".
  namesAt(event) {
    const picture = event.target.closest(".picture");
    if (!picture) return "";
    const bounds = picture.getBoundingClientRect();
    const [x, y] = [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height];
    const found = [...picture.querySelectorAll(".layer")].map((layer) => {
      const { group } = layer.dataset;
      const colors = this.controls.querySelector(`.gallery-colors[data-groups~="${group}"]`);
      const color = colorAt(layer, x, y);
      const name = colors?.querySelector(`[data-color="${color}"]`)?.textContent;
      return name && `${this.controls.querySelector(`[data-group="${group}"]`).textContent}: ${name}`;
    });
    return found.filter(Boolean).join(", ");
  }

  // Fingers scroll by themselves.
  drag(event) {
    const scroller = event.target.closest(".scroller");
    if (event.pointerType !== "mouse" || event.button !== 0 || !scroller) return;
    event.preventDefault();
    scroller.setPointerCapture(event.pointerId);
    const move = (moved) => scroller.scrollBy(-moved.movementX, -moved.movementY);
    scroller.addEventListener("pointermove", move);
    scroller.addEventListener("lostpointercapture", () => scroller.removeEventListener("pointermove", move), { once: true });
  }

  key(event) {
    if (event.target.type === "range" || event.ctrlKey || event.metaKey || event.altKey) return;
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (dx || dy) {
      if (this.zoom > 1) this.scrollers[0].scrollBy(80 * dx, 80 * dy);
      else if (dx) this.step(dx);
    } else if (event.key === "+" || event.key === "=") this.zoomBy(1.5);
    else if (event.key === "-") this.zoomBy(1 / 1.5);
    else if (event.key === "0") this.zoomBy(1 / this.zoom);
    else return;
    event.preventDefault();
  }
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

const pixel = make("canvas").getContext("2d", { willReadFrequently: true });

// Return the colour "r,g,b" of a picture at a place in 0..1; transparent black is "".
function colorAt(image, x, y) {
  pixel.clearRect(0, 0, 1, 1);
  pixel.imageSmoothingEnabled = false;
  pixel.drawImage(image, Math.floor(x * image.naturalWidth), Math.floor(y * image.naturalHeight), 1, 1, 0, 0, 1, 1);
  const [red, green, blue, alpha] = pixel.getImageData(0, 0, 1, 1).data;
  return alpha ? `${red},${green},${blue}` : "";
}

function kindOf(shape) { return [...shape.classList].find((name) => name.startsWith("kind-")).slice("kind-".length); }

// A dark outline around each line, so that it is seen on every photo.
function addHalos(picture) {
  picture.querySelectorAll(".shape path").forEach((path) => {
    const halo = path.cloneNode();
    halo.classList.add("halo");
    path.before(halo);
  });
}

// Labels are placed anew when a picture is arranged, because an observer reports a new element once, and whenever the
// size of the picture changes.
const resized = new ResizeObserver((entries) => entries.forEach((entry) => placeLabels(entry.target)));

const LABELLED = 0.15; // share of a picture that labels may cover, so that small pictures have few labels

// Write labels beside the shapes that are shown, errors and large objects first, where they cover no other label.
function placeLabels(picture) {
  picture.querySelectorAll(".label").forEach((label) => label.remove());
  const svg = picture.querySelector("svg");
  const { clientWidth: width, clientHeight: height } = picture;
  if (!svg || !width) return;
  const scale = width / svg.viewBox.baseVal.width;
  const shapes = [...svg.querySelectorAll("g:not([hidden]) > .shape:not([hidden])")];
  const isError = (shape) => Number(shape.classList.contains("error"));
  const labels = shapes.sort((a, b) => isError(b) - isError(a)).map((shape) => {
    const element = make("span", shape.getAttribute("class").replace("shape", "label"), shape.querySelector("title").textContent);
    return { box: shape.dataset.box.split(" ").map((value) => value * scale), element };
  }).filter(({ element }) => element.textContent);
  picture.append(...labels.map(({ element }) => element));
  for (const label of labels) [label.width, label.height] = [label.element.offsetWidth, label.element.offsetHeight];
  const taken = [];
  let unlabelled = LABELLED * width * height;
  for (const label of labels) {
    const [x1, y1, , y2] = label.box;
    const left = Math.max(0, Math.min(x1, width - label.width));
    const free = [y1 - label.height, y1, y2].find((top) => top >= 0 && top + label.height <= height && taken.every((other) => (
      left + label.width <= other.left || other.left + other.width <= left || top + label.height <= other.top || other.top + other.height <= top
    )));
    if (free === undefined || label.width * label.height > unlabelled) label.element.remove();
    else {
      unlabelled -= label.width * label.height;
      taken.push({ left, top: free, width: label.width, height: label.height });
      label.element.style.transform = `translate(${left}px, ${free}px)`;
    }
  }
}
