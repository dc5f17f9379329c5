// The todo page: one live Backbone collection, drawn in plain DOM. It must not know how it is kept equal to the server's.

import { element, showList, showStatus, write } from "./static/page.js";

const connection = (Backsync.connection = Backsync.connect("backsync", { persist: "todo" })); // unsent changes outlive the page
const $ = (id) => document.getElementById(id);

const Todos = Backbone.Collection.extend({
  url: "/Todo",
  model: Backbone.Model.extend({ defaults: { title: "", done: false } }),
  comparator: (todo) => todo.get("place") ?? Infinity, // the server gives places; until then a new one is at the end
});
const todos = new Todos();
const lost = new Backbone.Collection(); // words on todos that are not in the list any more
const FILTERS = { all: () => true, active: (todo) => !todo.get("done"), completed: (todo) => todo.get("done") };
let shown = "all";
let loaded = false;

todos.live().then(() => {
  loaded = true;
  drawSurroundings();
});
showStatus(connection, $("status"));

// --- Changing things: all is done at once here, and by the server when it is there.

$("new").addEventListener("submit", (event) => {
  event.preventDefault();
  const title = $("title").value.trim();
  $("title").value = ""; // spaces alone go as well: the question is there again
  if (!title) return;
  if (shown === "completed") location.hash = "#/"; // so that one sees what one wrote
  todos.create({ title });
});

$("toggle-all").addEventListener("click", () => {
  const done = todos.some(FILTERS.active);
  for (const todo of todos.filter((each) => each.get("done") !== done)) change(todo, { done });
});

$("clear").addEventListener("click", () => _.invoke(todos.filter(FILTERS.completed), "destroy"));

/** Only the fields that have changed are sent, so that two people can change different ones of the same todo. */
function change(todo, fields, options) {
  forget(todo);
  todo.save(fields, { patch: true, fields, ...options });
}

/** A title names the version that its writer has seen: if somebody else was quicker, the server says so. */
function rename(todo, title, { title: was, rev } = todo.attributes) {
  if (title !== todo.get("title")) change(todo, rev === undefined ? { title } : { title, rev }, { was });
}

// --- What the server did not take is taken back by itself; here it is said in words, and nobody's words are lost.

todos.on("rollback", (todo, error, { fields, was }) => {
  const title = fields === undefined ? todo.get("title") : fields.title; // undefined: it was not about the title
  const { code, details } = error;
  if (code === "not_found") {
    todos.remove(todo);
    tell(todo, `“${shorten(title ?? todo.get("title"))}” was not changed. ${reason(error)}`, title && "Write it anew", () => writeAnew(title));
  } else if (!todos.has(todo)) {
    tell(todo, `“${shorten(title)}” was not added. ${reason(error)}`, "Write it anew", () => writeAnew(title));
  } else if (title === undefined && (code === "invalid" || code === "conflict")) {
    change(todo, fields); // it shared a message with a title: that is what was refused
  } else if (code !== "conflict") {
    tell(todo, `Not changed. ${reason(error)}`, title && "Edit again", () => beginEdit(todo, title));
  } else if (details.current.title === was) {
    change(todo, { title }); // only something else has changed meanwhile
  } else if (details.current.title !== title) {
    tell(todo, `${reason(error)} You wrote: “${shorten(title)}”`, "Use mine", () => rename(todo, title));
  }
});

todos.on("remove", (todo, collection, { fromServer, rollback }) => {
  const edited = $(todo.cid)?.querySelector(".edit");
  if (!fromServer || rollback || !edited || edited.hidden) return;
  const text = edited.value.trim();
  tell(todo, `“${shorten(todo.get("title"))}” was deleted by somebody else while you edited it.`, text && "Keep my text", () => {
    todos.create({ title: text });
  });
});

connection.on("refused", (error, { data }) => { // a change that this page made before it was loaded anew
  const title = data?.title;
  const words = `${title ? `“${shorten(title)}”` : "A change"} was not saved. ${reason(error)}`;
  lost.add({ words, label: title && "Write it anew", act: () => writeAnew(title) });
});

function reason({ code, message }) {
  return { not_found: "Somebody else has deleted it.", conflict: "Somebody else was quicker." }[code] ?? message;
}

function writeAnew(title) {
  $("title").value = title;
  $("title").focus();
}

/** Says it beside the todo, or above the list if the todo has gone; `label` names what `act` does about it. */
function tell(todo, words, label, act) {
  forget(todo);
  if (todos.has(todo)) redraw(todo, { words, label, act });
  else lost.add({ id: todo.cid, words, label, act });
}

function forget(todo) {
  lost.remove(todo.cid);
  redraw(todo, null);
}

function shorten(text) {
  return text.length > 300 ? `${text.slice(0, 300)}…` : text; // whatever a todo may be is shown whole, or one could not compare
}

// --- Drawing: an item stays the same element for as long as its todo is there, so that nobody loses focus or text.

function makeTodo(todo) {
  const { cid } = todo;
  const button = (name, label, act) => {
    const made = element("button", { type: "button", class: name, title: label, "data-testid": name });
    made.addEventListener("click", act);
    return made;
  };
  const check = element("input", { type: "checkbox", class: "check", autocomplete: "off", "data-testid": "toggle" });
  const title = element("span", { class: "title", dir: "auto", "data-testid": "title" });
  const edit = element("input", { class: "edit", dir: "auto", hidden: "", autocomplete: "off", enterkeyhint: "done", "aria-label": "Edit", "data-testid": "edit" });
  const waiting = element("span", { class: "waiting", "data-testid": "waiting" }, "Not sent yet");
  const tools = element("span", { class: "tools" },
    button("begin", "Edit", () => beginEdit(todo)), button("remove", "Delete", () => remove(todo)));
  check.addEventListener("change", () => change(todo, { done: check.checked }));
  title.addEventListener("dblclick", () => beginEdit(todo));
  edit.addEventListener("blur", () => endEdit(todo, true));
  edit.addEventListener("keydown", (event) => {
    if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.preventDefault(); // or the button that gets the focus now is pressed by the same Enter
    endEdit(todo, event.key === "Enter");
    $(cid)?.querySelector(".begin").focus();
  });
  return element("li", { id: cid, class: "todo", "data-testid": "todo" }, check, title, edit, waiting, tools);
}

function drawTodo(todo, item = makeTodo(todo)) {
  const { title, done } = todo.attributes;
  const [check, , edit, waiting] = item.children;
  check.checked = done;
  if (write(item.querySelector(".title"), title)) check.ariaLabel = `Done: ${title}`;
  item.classList.toggle("done", done);
  item.hidden = edit.hidden && !FILTERS[shown](todo);
  waiting.hidden = todo.syncPending() === 0;
  return item;
}

function drawNote({ words, label, act }, dismiss) {
  const note = element("p", { class: "note", role: "alert", "data-testid": "note" }, element("span", {}, words));
  const offer = (text, answer) => {
    const button = element("button", { type: "button", class: "link" }, text);
    button.addEventListener("click", answer);
    note.append(button);
  };
  if (label) offer(label, () => { dismiss(); act(); });
  offer("Dismiss", dismiss);
  return note;
}

function redraw(todo, note) {
  const item = $(todo.cid);
  if (item === null) return;
  drawTodo(todo, item);
  item.querySelector(".note")?.remove();
  if (note) item.append(drawNote(note, () => forget(todo)));
}

function remove(todo) {
  const visible = [...$("todos").children].filter((item) => !item.hidden);
  const next = visible[visible.indexOf($(todo.cid)) + 1] ?? visible.at(-2);
  todo.destroy();
  (next?.querySelector(".remove") ?? $("title")).focus();
}

const began = new WeakMap(); // what a todo was when its editing began, by todo

function beginEdit(todo, text = todo.get("title")) {
  const item = $(todo.cid);
  const [, title, edit] = item.children;
  began.set(todo, { ...todo.attributes });
  forget(todo);
  edit.value = text;
  edit.hidden = false;
  title.hidden = true;
  edit.focus();
}

function endEdit(todo, keep) {
  const [, title, edit] = $(todo.cid)?.children ?? [];
  if (edit === undefined || edit.hidden || !todos.has(todo)) return;
  edit.hidden = true; // which blurs it, and comes here again
  title.hidden = false;
  const text = edit.value.trim();
  if (keep && text) rename(todo, text, began.get(todo));
  else if (keep) todo.destroy();
  drawTodo(todo, $(todo.cid) ?? undefined);
}

function drawSurroundings() {
  const active = todos.filter(FILTERS.active).length;
  const left = shown === "completed" ? todos.length - active : shown === "active" ? active : todos.length;
  $("toggle-all").checked = todos.length > 0 && active === 0;
  $("toggle-all").indeterminate = active > 0 && active < todos.length;
  $("toggle-all").disabled = todos.length === 0;
  $("count").textContent = active === 1 ? "1 todo left" : `${active} todos left`;
  $("clear").disabled = active === todos.length;
  $("foot").hidden = todos.length === 0;
  $("empty").hidden = left > 0;
  $("empty").textContent = loaded ? EMPTY[shown] : "Fetching the list…";
  for (const link of $("foot").querySelectorAll("a")) link.ariaCurrent = String(link.dataset.testid === `show-${shown}`);
}

const EMPTY = { all: "Nothing to do.", active: "All done.", completed: "Nothing is done yet." };

const redrawTodos = showList(todos, $("todos"), drawTodo);

function drawAll() {
  redrawTodos();
  drawSurroundings();
}

let frame = null;

/** Draws everything in the next frame, once, however often it is called before. */
function drawSoon() {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    drawAll();
  });
}

showList(lost, $("lost"), (note) => element("li", {}, drawNote(note.attributes, () => lost.remove(note))));
todos.on("change:place", () => todos.sort());
todos.on("update reset change", drawSurroundings);
connection.on("pending", drawSoon); // each todo shows whether it waits to be sent

// --- One URL for each filter.

const Router = Backbone.Router.extend({
  routes: { "*filter": "show" },
  show(filter) {
    shown = Object.hasOwn(FILTERS, filter ?? "") ? filter : "all";
    drawAll();
  },
});
new Router();
Backbone.history.start();

// --- The switch: this page hangs up, and is told that it has no network, as in a tunnel, until it is switched back.

function pull() {
  if (!$("cut").checked) return;
  dispatchEvent(new Event("offline"));
  connection.reconnect();
}

$("cut").addEventListener("change", () => ($("cut").checked ? pull() : dispatchEvent(new Event("online"))));
connection.on("status", () => queueMicrotask(pull)); // the client tries now and then all the same: in vain
