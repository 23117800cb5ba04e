// What a page of reconstructions does beyond being read: models that turn, a slider over steps, sorting, filtering.
"use strict";
(() => {
  const MOST_MODELS = 12; // at once; beyond that, those out of sight go back to being pictures
  const SECONDS_IN_SIGHT = 0.15; // before a model is asked for: what is only scrolled past needs none
  const cards = [...document.querySelectorAll(".card")];
  const main = document.getElementById("cards");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.documentElement.classList.add("scripted");

  // ---- Steps of the search ----

  for (const search of document.querySelectorAll(".search")) {
    const steps = [...search.querySelectorAll("li")];
    const label = search.querySelector(".slider");
    const input = label.querySelector("input");
    const output = label.querySelector("output");
    const show = () => {
      steps.forEach((step, place) => { step.hidden = place !== Number(input.value); });
      output.textContent = steps[Number(input.value)].dataset.said;
      input.setAttribute("aria-valuetext", output.textContent);
    };
    label.hidden = steps.length < 2;
    input.addEventListener("input", show);
    show();
  }

  // ---- Models ----

  const canDraw = (() => {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  })();
  const spin = document.getElementById("spin");
  let spinning = !still;

  const scriptFrom = (source, deliver) => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.deliver = deliver ? resolve : undefined;
    script.onload = () => { if (!deliver) resolve(); script.remove(); };
    script.onerror = () => { script.remove(); reject(new Error(`cannot read ${source}`)); };
    script.src = source;
    document.head.append(script);
  });

  let library = null;
  const withLibrary = () => {
    if (customElements.get("model-viewer")) return Promise.resolve();
    library = library || scriptFrom(document.body.dataset.library, false);
    return library;
  };

  const contentOf = async (stage) => {
    const inlined = document.getElementById(stage.dataset.key);
    const text = inlined ? inlined.textContent.trim() : await scriptFrom(stage.dataset.script, true);
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  };

  // Light from all around, more from above, as a tiny Radiance picture. model-viewer's own takes seconds without a GPU.
  const light = (() => {
    const [width, height] = [64, 32]; // of a smaller one nothing is seen
    const pixels = new Uint8Array(4 * width * height);
    for (let row = 0; row < height; row++) {
      const up = Math.cos(Math.PI * (row + 0.5) / height);
      const value = 1.2 + 0.5 * up; // below 2, as the exponent says
      for (let column = 0; column < width; column++) {
        pixels.set([127 * value, 127 * value, 127 * value, 129], 4 * (row * width + column));
      }
    }
    const header = `#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y ${height} +X ${width}\n`;
    return `${URL.createObjectURL(new Blob([header, pixels]))}#.hdr`;
  })();

  const live = new Set(); // stages with a model, the one seen longest ago first
  const inSight = new Set();

  const putBack = (stage) => {
    const viewer = stage.querySelector("model-viewer");
    if (viewer) {
      URL.revokeObjectURL(viewer.src);
      viewer.remove();
      stage.querySelector(".hint").remove();
    }
    stage.classList.remove("live");
    live.delete(stage);
  };

  const bring = async (stage) => {
    if (live.has(stage)) { live.delete(stage); live.add(stage); return; }
    live.add(stage);
    try {
      const [content] = await Promise.all([contentOf(stage), withLibrary()]);
      if (!live.has(stage) || stage.querySelector("model-viewer")) return;
      if (!inSight.has(stage)) { live.delete(stage); return; }
      const viewer = document.createElement("model-viewer");
      viewer.src = URL.createObjectURL(new Blob([content], { type: "model/gltf-binary" }));
      viewer.alt = stage.dataset.alt;
      viewer.setAttribute("loading", "eager");
      viewer.setAttribute("camera-controls", "");
      viewer.setAttribute("touch-action", "pan-y");
      viewer.setAttribute("interaction-prompt", "none");
      viewer.setAttribute("auto-rotate-delay", "1500");
      viewer.setAttribute("camera-orbit", stage.dataset.orbit);
      viewer.setAttribute("min-camera-orbit", "auto 0deg auto");
      viewer.setAttribute("max-camera-orbit", "auto 180deg auto");
      viewer.setAttribute("field-of-view", "20deg");
      viewer.setAttribute("environment-image", light);
      viewer.setAttribute("shadow-intensity", "0");
      viewer.setAttribute("tone-mapping", "neutral");
      viewer.toggleAttribute("auto-rotate", spinning);
      const hint = document.createElement("span");
      hint.className = "hint";
      hint.textContent = "3D: drag to turn";
      hint.setAttribute("aria-hidden", "true");
      viewer.addEventListener("load", () => stage.classList.add("live"));
      viewer.addEventListener("error", () => putBack(stage));
      stage.append(viewer, hint);
      for (const old of [...live]) {
        if (live.size <= MOST_MODELS) break;
        if (!inSight.has(old)) putBack(old);
      }
    } catch (error) {
      live.delete(stage);
      console.error(error.message); // the picture stays
    }
  };

  const stages = [...document.querySelectorAll(".stage[data-script]")];
  if (canDraw && stages.length) {
    const watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) { inSight.delete(target); continue; }
        inSight.add(target);
        setTimeout(() => inSight.has(target) && bring(target), SECONDS_IN_SIGHT * 1000);
      }
    }, { rootMargin: "100px" });
    stages.forEach((stage) => watch.observe(stage));
    const pressed = () => {
      spin.setAttribute("aria-pressed", String(spinning));
      document.querySelectorAll("model-viewer").forEach((viewer) => viewer.toggleAttribute("auto-rotate", spinning));
    };
    spin.hidden = false;
    spin.addEventListener("click", () => { spinning = !spinning; pressed(); });
    pressed();
  }

  // ---- Sorting and filtering ----

  const toolbar = document.querySelector(".toolbar");
  const at = (name) => document.getElementById(name);
  const chosen = (name) => (at(name) ? at(name).value : "");
  const number = (section, key) => (key in section.dataset ? Number(section.dataset[key]) : null);

  const shownResults = (card) => {
    const method = chosen("method"), status = chosen("status"), most = Number(at("iou").value);
    return [...card.querySelectorAll(".result")].filter((section) => {
      const iou = number(section, "iou");
      return (!method || section.dataset.method === method) && (!status || section.dataset.status === status)
        && (iou === null ? most >= 1 : iou <= most);
    });
  };

  const least = (values) => (values.length ? Math.min(...values) : null);
  const order = { // the smallest comes first
    "": (card) => Number(card.dataset.place),
    worst: (_, of) => least(of("iou")),
    best: (_, of) => least(of("iou").map((value) => -value)),
    gain: (_, of) => least(of("gain")),
  };

  const apply = () => {
    const words = at("search").value.trim().toLowerCase(), label = chosen("class"), by = chosen("sort");
    const keys = new Map();
    let count = 0;
    for (const card of cards) {
      const fits = card.dataset.name.toLowerCase().includes(words) && (!label || card.dataset.class === label);
      const shown = fits ? shownResults(card) : [];
      card.querySelectorAll(".result").forEach((section) => { section.hidden = !shown.includes(section); });
      card.hidden = !shown.length;
      count += shown.length > 0;
      const of = (key) => shown.map((section) => number(section, key)).filter((value) => value !== null);
      keys.set(card, by in order ? order[by](card, of) : null);
    }
    const sorted = [...cards].sort((a, b) => {
      if (by === "name") return a.dataset.name.localeCompare(b.dataset.name);
      const [x, y] = [keys.get(a), keys.get(b)];
      return (x === null) - (y === null) || x - y || a.dataset.place - b.dataset.place; // without a number come last
    });
    if (sorted.some((card, place) => main.children[place] !== card)) main.append(...sorted);
    at("iou-shown").textContent = Number(at("iou").value).toFixed(2);
    at("count").textContent = `${count} of ${cards.length} photographs`;
  };

  toolbar.hidden = false;
  toolbar.addEventListener("submit", (event) => event.preventDefault());
  toolbar.addEventListener("input", apply);
  apply();
})();
