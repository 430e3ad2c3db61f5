// Files that are chosen or dropped are sent at once; regions are boxes or painted masks.
"use strict";

for (const form of document.querySelectorAll("[data-send-when-chosen]")) {
  const input = form.querySelector("input[type=file]");
  input.addEventListener("change", () => form.requestSubmit());
  if (input.files.length) form.requestSubmit(); // chosen before this script was there
}
for (const drop of document.querySelectorAll(".drop")) {
  const input = drop.querySelector("input[type=file]");
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change"));
  });
}

const canvas = document.getElementById("canvas");
if (canvas) {
  const pen = canvas.getContext("2d"), regions = [], side = canvas.width, colours = ["#3a5bd9", "#e0803a", "#1c8a50", "#b03a8a"];
  const tools = ["box", "brush", "pen"].filter((name) => document.getElementById(`tool-${name}`));
  const lines = []; // of the sketch, each a layer of its own
  let tool = "box", begun = null, at = null, painting = null;
  const what = document.getElementById("region-text"), field = document.getElementById("regions");
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const clamp = (x) => Math.min(1, Math.max(0, x));
    return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
  };
  const boxed = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];

  function show() {
    pen.clearRect(0, 0, side, side);
    const pending = begun && tool === "box" ? [{text: what.value, box: boxed(begun, at)}] : [];
    [...regions, ...pending].forEach((region, i) => {
      pen.globalAlpha = 0.55;
      pen.fillStyle = colours[i % colours.length];
      if (region.box) {
        const [x0, y0, x1, y1] = region.box.map((x) => x * side);
        pen.fillRect(x0, y0, x1 - x0, y1 - y0);
      } else pen.drawImage(region.painted, 0, 0);
    });
    if (painting && tool === "brush") pen.drawImage(painting, 0, 0);
    pen.globalAlpha = 1;
    for (const line of painting && tool === "pen" ? [...lines, painting] : lines) pen.drawImage(line, 0, 0);
  }
  function keep() {
    const sent = regions.map((region) => region.box ? {text: region.text, box: region.box} : {text: region.text, mask: region.mask});
    field.value = sent.length ? JSON.stringify(sent) : "";
    document.getElementById("drawn-sketch").value = lines.length ? onBlack(lines) : "";
    const named = regions.map((region, i) => `${i + 1}: ${region.text} (${region.box ? "box" : "painted"})`);
    if (lines.length) named.push(`a sketch of ${lines.length} line${lines.length > 1 ? "s" : ""}`);
    document.getElementById("region-list").textContent = named.join(", ");
    show();
  }
  function layer() {
    const made = document.createElement("canvas");
    made.width = made.height = side;
    return made;
  }
  function stroke(from, to) {
    const brush = painting.getContext("2d");
    brush.lineWidth = tool === "pen" ? side / 100 : side / 10;
    brush.lineCap = "round";
    brush.strokeStyle = tool === "pen" ? getComputedStyle(canvas).color : "#ffffff";
    brush.beginPath();
    brush.moveTo(from[0] * side, from[1] * side);
    brush.lineTo(to[0] * side, to[1] * side + 0.01);
    brush.stroke();
  }
  function onBlack(layers) {
    // White where a layer was painted, whatever its colour on the page.
    const painted = layer(), white = painted.getContext("2d");
    for (const each of layers) white.drawImage(each, 0, 0);
    white.globalCompositeOperation = "source-in";
    white.fillStyle = "#ffffff";
    white.fillRect(0, 0, side, side);
    const made = layer(), context = made.getContext("2d");
    context.fillStyle = "#000000";
    context.fillRect(0, 0, side, side);
    context.drawImage(painted, 0, 0);
    return made.toDataURL("image/png");
  }
  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    begun = at = place(event);
    if (tool !== "box") { painting = layer(); stroke(begun, at); }
    show();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!begun) return;
    const now = place(event);
    if (painting) stroke(at, now);
    at = now;
    show();
  });
  canvas.addEventListener("pointerup", () => {
    if (!begun) return;
    const text = what.value, box = boxed(begun, at);
    if (tool === "pen") lines.push(painting);
    else if (painting) regions.push({text, mask: onBlack([painting]), painted: painting});
    else if (box[2] - box[0] > 0.03 && box[3] - box[1] > 0.03) regions.push({text, box});
    begun = painting = null;
    keep();
  });
  for (const name of tools) {
    document.getElementById(`tool-${name}`).addEventListener("click", () => {
      tool = name;
      for (const each of tools) document.getElementById(`tool-${each}`).setAttribute("aria-pressed", String(each === name));
    });
  }
  document.getElementById("undo").addEventListener("click", () => {
    (tool === "pen" ? lines : regions).pop();
    keep();
  });
  document.getElementById("drawing").addEventListener("submit", () => {
    // A region says what is in it, and what is around it as everywhere else.
    const around = document.getElementById("text").value.trim();
    if (regions.length && around) {
      const sent = JSON.parse(field.value);
      for (const region of sent) region.text = `${region.text} ${around}`;
      field.value = JSON.stringify(sent);
    }
  });
}
