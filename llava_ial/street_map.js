// Dragging and zooming for every map (svg.street-map) of a page, also for those that are put into it later.
(() => {
  if (window.streetMaps) return;
  window.streetMaps = true;
  const FARTHEST = 3, CLOSEST = 1 / 16, STEP = 1.4;
  const mapOf = (event) => event.target.closest?.("svg.street-map");
  const numbers = (svg, name) => svg.getAttribute(name).split(" ").map(Number);

  function show(svg, [left, top, width, height]) {
    const home = numbers(svg, "data-home");
    const share = Math.min(FARTHEST, Math.max(CLOSEST, width / home[2]));
    const [wide, high] = [home[2] * share, home[3] * share];
    left += (width - wide) / 2;
    top += (height - high) / 2;
    // Nothing is drawn beyond three first views.
    left = Math.min(home[0] + 2 * home[2] - wide, Math.max(home[0] - home[2], left));
    top = Math.min(home[1] + 2 * home[3] - high, Math.max(home[1] - home[3], top));
    svg.setAttribute("viewBox", `${left} ${top} ${wide} ${high}`);
    svg.dataset.unit ??= parseFloat(svg.style.getPropertyValue("--unit"));
    svg.style.setProperty("--unit", `${svg.dataset.unit * Math.max(share, 1 / 16)}px`);
    svg.dataset.level = share <= 1 / 4 ? 4 : share <= 1 / 2 ? 2 : 1;
  }

  function zoom(svg, factor, x = 0.5, y = 0.5) {
    const [left, top, width, height] = numbers(svg, "viewBox");
    const home = numbers(svg, "data-home");
    const share = Math.min(FARTHEST, Math.max(CLOSEST, (width * factor) / home[2]));
    factor = (share * home[2]) / width;
    show(svg, [left + width * x * (1 - factor), top + height * y * (1 - factor), width * factor, height * factor]);
  }

  function move(svg, x, y) {
    const [left, top, width, height] = numbers(svg, "viewBox");
    show(svg, [left + width * x, top + height * y, width, height]);
  }

  const keys = {
    "+": (svg) => zoom(svg, 1 / STEP), "=": (svg) => zoom(svg, 1 / STEP), "-": (svg) => zoom(svg, STEP),
    "0": (svg) => show(svg, numbers(svg, "data-home")),
    ArrowLeft: (svg) => move(svg, -0.15, 0), ArrowRight: (svg) => move(svg, 0.15, 0),
    ArrowUp: (svg) => move(svg, 0, -0.15), ArrowDown: (svg) => move(svg, 0, 0.15),
  };

  document.addEventListener("keydown", (event) => {
    const svg = mapOf(event);
    if (!svg || !keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key](svg);
  });
  // Buttons with data-map-key="+" beside a map, in one element with it, do what the key does.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-map-key]");
    const svg = button?.closest(".map-frame")?.querySelector("svg.street-map");
    if (svg) keys[button.dataset.mapKey]?.(svg);
  });
  document.addEventListener("wheel", (event) => {
    const svg = mapOf(event);
    // Alone the wheel scrolls the page, as it does over any picture; with Ctrl, or once clicked, it zooms.
    if (!svg || !(event.ctrlKey || svg === document.activeElement)) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(svg, Math.exp(Math.sign(event.deltaY) * 0.2), (event.clientX - box.left) / box.width,
      (event.clientY - box.top) / box.height);
  }, { passive: false });

  const fingers = new Map();
  document.addEventListener("pointerdown", (event) => {
    const svg = mapOf(event);
    if (!svg || event.button) return;
    svg.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { svg, x: event.clientX, y: event.clientY });
  });
  document.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    const box = finger.svg.getBoundingClientRect();
    const other = [...fingers].find(([id, f]) => id !== event.pointerId && f.svg === finger.svg)?.[1];
    if (other) {
      const before = Math.hypot(finger.x - other.x, finger.y - other.y);
      const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      if (after > 0) zoom(finger.svg, before / after, (other.x - box.left) / box.width, (other.y - box.top) / box.height);
    } else {
      move(finger.svg, (finger.x - event.clientX) / box.width, (finger.y - event.clientY) / box.height);
    }
    Object.assign(finger, { x: event.clientX, y: event.clientY });
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    document.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  }
})();
