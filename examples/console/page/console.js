// The console page: one live collection of log lines, filtered and drawn here. It must not know where the lines come from.

import { element, followEnd, showList, showStatus, write } from "./static/page.js";

const { connection } = Backsync;
const $ = (id) => document.getElementById(id);

const LogLines = Backbone.Collection.extend({ url: "/LogLine", comparator: "time" });

const lines = new LogLines(); // what the server keeps: its newest thousand
const view = new Backbone.Collection([], { comparator: "time" }); // what is shown: the same, unless paused, cleared or filtered
const cleared = new Set(); // ids of the lines that were there when the reader pressed "Clear"
let frozen = null; // while paused: the lines as they were
let held = 0; // lines that came meanwhile
let isLoaded = false;

lines.live().then(() => {
  isLoaded = true;
  describe();
});
showStatus(connection, $("status"));

function wanted(line) {
  const { id, severity, message, logger, thread, trace } = line.attributes;
  if (cleared.has(id) || severity < Number($("level").value)) return false;
  const text = $("text").value.trim().toLowerCase();
  return [message, logger, thread, trace].some((field) => field?.toLowerCase().includes(text));
}

function refresh() {
  view.set((frozen ?? lines.models).filter(wanted));
  describe();
}

/** Shows what has come, without a look at all that was there. */
function advance({ added, removed }) {
  view.remove(removed);
  view.add(added.filter(wanted));
  describe();
}

function describe() {
  const all = (frozen ?? lines).length;
  const count = `${all} ${all === 1 ? "line" : "lines"}`;
  write($("shown"), !isLoaded ? "" : view.length === all ? count : `${view.length} of ${count}`);
  write($("pause"), frozen === null ? "Pause" : `Resume (${held} held)`);
  $("pause").ariaPressed = String(frozen !== null);
  $("empty").hidden = view.length > 0;
  if (!isLoaded) write($("empty"), "Fetching the lines…");
  else write($("empty"), all > cleared.size ? "No line matches the filter." : "Waiting for the next line…");
}

lines.on("update reset", (collection, { changes }) => {
  if (frozen !== null) held += changes?.added.length ?? 0;
  for (const line of changes?.removed ?? []) cleared.delete(line.id);
  if (frozen !== null) describe();
  else if (changes === undefined || changes.merged.length > 0) refresh();
  else advance(changes);
});

$("pause").addEventListener("click", () => {
  frozen = frozen === null ? [...lines.models] : null;
  held = 0;
  refresh();
});

$("clear").addEventListener("click", () => {
  for (const line of lines.models) cleared.add(line.id);
  if (frozen !== null) frozen = [];
  held = 0;
  refresh();
});

$("level").addEventListener("input", refresh);
$("text").addEventListener("input", refresh);
$("tools").addEventListener("submit", (event) => event.preventDefault());

// --- Drawing

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hour12: false });

function drawLine(line) {
  const { time, level, logger, message, trace } = line.attributes;
  const when = new Date(time * 1000);
  const milliseconds = String(when.getMilliseconds()).padStart(3, "0");
  const summary = element("summary", {},
    element("time", { datetime: when.toISOString() }, `${clock.format(when)}.${milliseconds}`),
    element("span", { class: "level" }, level),
    element("span", { class: "said", dir: "auto" }, message),
    element("span", { class: "source" }, trace === null ? logger : `${logger} · traceback`));
  const details = element("details", {}, summary);
  details.addEventListener("toggle", () => details.append(drawDetails(line.attributes, when)), { once: true });
  return element("li", { class: "line", "data-level": level, "data-testid": "line" }, details);
}

function drawDetails({ logger, thread, task, place, function: name, trace }, when) {
  const facts = { Time: when.toLocaleString(), Logger: logger, Thread: thread, Task: task, Place: `${place}, in ${name}` };
  const list = element("dl");
  for (const [term, fact] of Object.entries(facts)) {
    if (fact !== null) list.append(element("dt", {}, term), element("dd", {}, fact));
  }
  const details = element("div", { class: "details", "data-testid": "details" }, list);
  if (trace !== null) details.append(element("pre", { "data-testid": "trace" }, trace));
  return details;
}

showList(view, $("lines"), drawLine);
const came = followEnd($("scroller"), $("newest"));
view.on("update", (_, { changes }) => came(changes.added.length));
describe();
