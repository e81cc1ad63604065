// Values of the point of a curve that is nearest to the pointer, or that the arrow keys have reached.
"use strict";
for (const figure of document.querySelectorAll("figure[data-curves]")) {
  const curves = JSON.parse(figure.dataset.curves);
  const plot = figure.querySelector(".plot");
  const svg = plot.querySelector("svg");
  const output = plot.querySelector("output");
  const dot = document.createElementNS(svg.namespaceURI, "circle");
  for (const [name, value] of [["r", 4], ["fill", "none"], ["stroke", "#000"], ["stroke-width", 1.5]]) {
    dot.setAttribute(name, value);
  }
  let curve = 0, point = -1;

  function hide() {
    output.classList.remove("on");
    dot.remove();
  }

  function show() {
    const { n, x, y, p } = curves[curve];
    const [left, top, at, value] = p[point];
    output.textContent = `${n}: ${x || "x"} ${at}, ${y || "y"} ${value}`;
    dot.setAttribute("cx", left);
    dot.setAttribute("cy", top);
    svg.append(dot);
    const place = dot.getBoundingClientRect(), card = plot.getBoundingClientRect();
    const most = Math.max(0, card.width - output.offsetWidth - 8);
    output.style.left = `${plot.scrollLeft + Math.min(most, Math.max(0, place.right - card.left + 6))}px`;
    output.style.top = `${Math.max(0, place.top - card.top - output.offsetHeight - 4)}px`;
    output.classList.add("on");
  }

  plot.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let nearest = 24;
    curves.forEach((each, c) => each.p.forEach(([left, top], i) => {
      const distance = Math.hypot(left - at.x, top - at.y);
      if (distance < nearest) { nearest = distance; curve = c; point = i; }
    }));
    if (nearest < 24) { show(); } else { hide(); }
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const along = { ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0;
    const across = { ArrowDown: 1, ArrowUp: -1 }[event.key] || 0;
    if (event.key === "Escape") { hide(); }
    if (!along && !across) { return; }
    event.preventDefault();
    curve = (curve + across + curves.length) % curves.length;
    point = Math.min(curves[curve].p.length - 1, Math.max(0, point + along));
    show();
  });
}
// A link to what is folded unfolds it.
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") { target.open = true; }
}
addEventListener("hashchange", unfold);
unfold();
