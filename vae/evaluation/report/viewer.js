// Enlarges a picture without interpolation and switches between the three views of a triple in
// place. Each button has the same action as its key.
(() => {
  const dialog = document.querySelector("dialog");
  const stage = dialog.querySelector(".stage"), image = stage.appendChild(new Image());
  const buttons = [...dialog.querySelectorAll("button")];
  let triple = [], shown = 0, zoom = 1;

  const show = (index) => {
    shown = (index + 3) % 3;
    image.src = triple[shown].querySelector("img").src;
    image.alt = triple[shown].dataset.name;
    buttons.slice(0, 3).forEach((b, i) => b.setAttribute("aria-pressed", String(i === shown)));
  };
  const scale = (next) => {
    next = Math.min(32, Math.max(0.25, next));
    const middle = (start, length) => ((start + length / 2) * next) / zoom - length / 2;
    const place = [middle(stage.scrollLeft, stage.clientWidth),
                   middle(stage.scrollTop, stage.clientHeight)];
    zoom = next;
    image.style.width = `${zoom * triple[0].querySelector("img").getAttribute("width")}px`;
    stage.scrollTo(...place);
    dialog.querySelector("output").textContent = `${Number(zoom.toFixed(2))} ×`;
  };
  const fit = () => {
    const whole = Math.min(...["width", "height"].map((side) =>
      stage.getBoundingClientRect()[side] / triple[0].querySelector("img").getAttribute(side)));
    scale(whole > 1 ? Math.floor(whole) : whole);
  };
  const actions = {
    1: () => show(0), 2: () => show(1), 3: () => show(2), 0: fit,
    ArrowRight: () => show(shown + 1), ArrowLeft: () => show(shown - 1),
    "+": () => scale(2 * zoom), "=": () => scale(2 * zoom), "-": () => scale(zoom / 2),
    Escape: () => dialog.close(),
  };
  const act = (event, key) => { if (actions[key]) { event.preventDefault(); actions[key](); } };
  buttons.forEach((b) => b.addEventListener("click", (event) => act(event, b.dataset.key)));
  dialog.addEventListener("keydown", (event) => act(event, event.key));
  window.addEventListener("resize", () => dialog.open && fit());
  document.querySelectorAll(".view").forEach((view) => view.addEventListener("click", () => {
    triple = [...view.parentElement.querySelectorAll(".view")];
    triple.forEach((each, i) => { buttons[i].textContent = each.dataset.name; });
    dialog.showModal();
    show(triple.indexOf(view));
    fit();
  }));
})();
