
// Enlarges a picture pixel by pixel and switches between a triple's three views in place.
(() => {
  const views = [...document.querySelectorAll(".view")];
  if (!views.length || !window.HTMLDialogElement) return;
  const make = (tag, parent, properties = {}) =>
    parent.appendChild(Object.assign(document.createElement(tag), properties));

  const dialog = make("dialog", document.body, { ariaLabel: "Picture, enlarged" });
  const tools = make("div", dialog, { className: "tools" });
  const stage = make("div", dialog, { className: "stage" });
  const image = make("img", stage, { draggable: false });
  let triple = [], shown = 0, zoom = 1, x = 0, y = 0;

  const place = () => {
    image.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
    scale.textContent = `${zoom >= 1 ? zoom.toFixed(zoom % 1 ? 1 : 0) : zoom.toFixed(2)} ×`;
  };
  const zoomAt = (factor, px = stage.clientWidth / 2, py = stage.clientHeight / 2) => {
    const next = Math.min(32, Math.max(0.25, zoom * factor));
    x = px - ((px - x) * next) / zoom;
    y = py - ((py - y) * next) / zoom;
    zoom = next;
    place();
  };
  const show = (index) => {
    shown = (index + triple.length) % triple.length;
    image.src = triple[shown].querySelector("img").src;
    image.alt = triple[shown].dataset.name;
    switches.forEach((button, i) => button.setAttribute("aria-pressed", String(i === shown)));
  };
  const fit = () => {
    const [w, h] = ["width", "height"].map((side) =>
      Number(triple[0].querySelector("img").getAttribute(side)));
    zoom = Math.min(stage.clientWidth / w, stage.clientHeight / h);
    zoom = zoom > 1 ? Math.floor(zoom) : zoom;
    x = (stage.clientWidth - zoom * w) / 2;
    y = (stage.clientHeight - zoom * h) / 2;
    place();
  };
  const button = (text, action) => {
    const made = make("button", tools, { type: "button", textContent: text });
    made.addEventListener("click", action);
    return made;
  };

  const switches = [0, 1, 2].map((i) => button("", () => show(i)));
  button("+", () => zoomAt(2));
  button("−", () => zoomAt(0.5));
  button("fit", fit);
  const scale = make("output", tools);
  button("close", () => dialog.close());

  views.forEach((view) => view.addEventListener("click", () => {
    triple = [...view.parentElement.querySelectorAll(".view")];
    switches.forEach((each, i) => { each.textContent = triple[i].dataset.name; });
    dialog.showModal();
    fit();
    show(triple.indexOf(view));
  }));
  dialog.addEventListener("keydown", (event) => {
    const action = {
      1: () => show(0), 2: () => show(1), 3: () => show(2), 0: fit,
      ArrowRight: () => show(shown + 1), ArrowLeft: () => show(shown - 1),
      "+": () => zoomAt(2), "=": () => zoomAt(2), "-": () => zoomAt(0.5),
    }[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  window.addEventListener("resize", () => dialog.open && fit());
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoomAt(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    x += event.movementX;
    y += event.movementY;
    place();
  });
})();
