"use strict";
// The state is the rater's name and the list of choices: choice k answers question k % 2 of trial
// order[k / 2], so that undoing is removing the last one. Order and sides follow from the name.

const study = JSON.parse(document.getElementById("study").textContent);
const QUESTIONS = [
  ["same", "Which picture shows V better: the same subject as in the pictures above?"],
  ["text", "Which picture fits the text better?"],
];
const KEYS = {
  ArrowLeft: "left", 1: "left",
  ArrowRight: "right", 2: "right",
  ArrowDown: "neither", 3: "neither",
  Backspace: "undo", u: "undo", U: "undo",
};
const COARSE = 200; // pixels: smaller pictures are enlarged without blur
const place = "study " + study.study;
const element = (id) => document.getElementById(id);

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(place));
    if (kept && typeof kept.rater === "string" && Array.isArray(kept.choices)) return kept;
  } catch (error) {
    element("storage").textContent = "This browser keeps nothing for this page: answer all in one go.";
  }
  const name = crypto.getRandomValues(new Uint32Array(2));
  return { rater: Array.from(name, (part) => part.toString(16).padStart(8, "0")).join(""), choices: [] };
}

function save() {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch (error) {
    element("storage").textContent = "This browser keeps nothing for this page: answer all in one go.";
  }
}

// Numbers in [0, 1) that follow from a text: FNV-1a gives the seed of a 32-bit xorshift.
function randomOf(text) {
  let bits = 0x811c9dc5;
  for (const letter of text) bits = Math.imul(bits ^ letter.codePointAt(0), 0x01000193);
  bits = bits >>> 0 || 1;
  return () => {
    bits ^= bits << 13;
    bits ^= bits >>> 17;
    bits ^= bits << 5;
    return (bits >>> 0) / 2 ** 32;
  };
}

function shuffled(trials, random) {
  const order = trials.slice();
  for (let last = order.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

const state = load();
const random = randomOf(state.rater + study.study);
const order = shuffled(study.trials, random).map((trial) => {
  const [one, other] = trial.pictures;
  return { ...trial, pictures: random() < 0.5 ? [one, other] : [other, one] };
});
const total = order.length * QUESTIONS.length;
state.choices = state.choices.slice(0, total);
let begun = false;

function picture(image, name) {
  image.onload = () => image.classList.toggle("coarse", image.naturalHeight < COARSE);
  image.src = "pictures/" + name + ".png";
}

function show() {
  const done = state.choices.length, ended = done === total;
  element("start").hidden = begun;
  element("trial").hidden = !begun || ended;
  element("end").hidden = !begun || !ended;
  if (!begun) return;
  if (ended) return end();
  const trial = order[Math.floor(done / QUESTIONS.length)];
  if (element("trial").dataset.trial !== trial.trial) {
    element("trial").dataset.trial = trial.trial;
    element("subject").textContent = trial.subject;
    element("text").textContent = trial.text;
    element("references").replaceChildren(...trial.references.map((name, i) => {
      const image = document.createElement("img");
      image.alt = "Real picture " + (i + 1) + " of V";
      picture(image, name);
      return image;
    }));
    picture(element("left"), trial.pictures[0]);
    picture(element("right"), trial.pictures[1]);
    const next = order[Math.floor(done / QUESTIONS.length) + 1];
    if (next) for (const name of next.pictures) picture(new Image(), name);
  }
  element("question").textContent = QUESTIONS[done % QUESTIONS.length][1];
  element("done").textContent = done + " of " + total;
  element("bar").value = done / total;
  element("undo").disabled = done === 0;
}

function answers() {
  const given = order.map((trial, i) => {
    const entry = { trial: trial.trial, left: trial.pictures[0] };
    QUESTIONS.forEach(([name], q) => {
      const choice = state.choices[QUESTIONS.length * i + q];
      entry[name] = choice === "neither" ? choice : trial.pictures[choice === "left" ? 0 : 1];
    });
    return entry;
  });
  return JSON.stringify({ study: study.study, rater: state.rater, answers: given }, null, 1);
}

function end() {
  element("answers").value = answers();
  element("end-title").focus();
}

function act(what) {
  if (what === "undo") {
    state.choices.pop();
  } else if (state.choices.length < total) {
    state.choices.push(what);
  }
  save();
  show();
}

function begin() {
  begun = true;
  show();
}

element("count").textContent = order.length;
element("begin").addEventListener("click", begin);
element("undo").addEventListener("click", () => act("undo"));
element("back").addEventListener("click", () => act("undo"));
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => act(button.dataset.choice));
}
element("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([element("answers").value], { type: "application/json" }));
  link.download = "answers-" + state.rater + ".json";
  link.click();
  URL.revokeObjectURL(link.href);
});
element("copy").addEventListener("click", () => {
  element("answers").select();
  element("copied").textContent = document.execCommand("copy") ? "Copied." : "Press Ctrl+C to copy the selected text.";
});
document.addEventListener("keydown", (event) => {
  const what = KEYS[event.key];
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!begun || !what || event.target.id === "answers") return;
  if (state.choices.length === total && what !== "undo") return;
  event.preventDefault();
  act(what);
});
save();
if (state.choices.length) begin();
else element("begin").focus();
