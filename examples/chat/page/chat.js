// The chat page: ordinary Backbone collections, drawn in plain DOM. It must not know how they are kept equal to the server's.

import { element, followEnd, showList, showStatus } from "./static/page.js";

const { connection } = Backsync;
const $ = (id) => document.getElementById(id);

// Who I am, kept for this tab, so that a reload stays the same person and a second tab is another one. The secret
// proves that to the server after a reconnect; the server makes the public id from it.

const me = { id: null, screenName: null, secret: randomHex(16), ...JSON.parse(sessionStorage.getItem("me") ?? "{}") };

function randomHex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const Users = Backbone.Collection.extend({
  url: "/User",
  comparator: (user) => (user.id === me.id ? "" : user.get("screenName").toLowerCase()), // oneself first, then by name
});
const Messages = Backbone.Collection.extend({ url: "/ChatMessage", comparator: "time" });

const users = new Users();
const messages = new Messages();
const drafts = new Backbone.Collection(); // what this page wrote and the server has not confirmed yet
let shownUser = null; // whose messages are shown, by id; null: everybody's

users.live();
messages.live();
showStatus(connection, $("status"));

// --- Saying who I am: again on each new connection, which has to be told who is behind it.

async function announce() {
  if (me.screenName === null || connection.status !== "live") return;
  const { screenName, secret } = me;
  try {
    const user = await connection.call("User:upsert", { screenName, secret });
    me.id = user.id;
    users.sort();
    sessionStorage.setItem("me", JSON.stringify(me));
    redraw();
    sendDrafts();
  } catch (error) {
    if (error.code === "invalid") askName(error.message); // anything else: the connection went, and "live" comes again
  }
}

function askName(problem = null) {
  const dialog = $("welcome");
  $("name").value = me.screenName ?? localStorage.getItem("name") ?? "";
  $("anonymous").textContent = me.screenName === null ? "Stay anonymous" : "Keep my name";
  $("name-problem").textContent = problem ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  $("name").select();
}

$("welcome").addEventListener("close", () => {
  const name = $("welcome").returnValue === "join" ? $("name").value.trim() : "";
  if (name) localStorage.setItem("name", name); // the next tab's suggestion
  me.screenName = name || me.screenName || `Anonymous ${1000 + Math.floor(Math.random() * 9000)}`;
  announce();
  $("text").focus();
});

$("rename").addEventListener("click", () => askName());
connection.on("status", announce);

// --- Writing: a message is a draft until the server has taken it. Drafts written while offline leave when we are back.

function sendDrafts() {
  drafts.where({ state: "waiting" }).forEach(send);
}

function send(draft) {
  draft.set({ state: "sending" });
  messages.create({ text: draft.get("text") }, {
    wait: true,
    success: () => drafts.remove(draft),
    error: (model, error) => {
      if (error.code === "unauthorized") {
        // It travelled over a new connection before our name did.
        draft.set({ state: "waiting" });
        announce();
      } else {
        draft.set({ state: "refused", problem: error.message });
      }
    },
  });
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  if (shownUser !== null && shownUser !== me.id) location.hash = ""; // so that one sees what one wrote
  drafts.add({ text, state: "waiting" });
  if (connection.status === "live" && me.id !== null) sendDrafts();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

// --- Drawing

const sameDay = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const otherDay = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function drawTime(iso) {
  const time = new Date(iso);
  const format = time.toDateString() === new Date().toDateString() ? sameDay : otherDay;
  return element("time", { datetime: iso, title: time.toLocaleString() }, format.format(time));
}

function drawFace(userId, name) {
  const hue = parseInt(userId.slice(0, 4), 16) % 360;
  return element("span", { class: "face", style: `--hue: ${hue}`, "aria-hidden": "true" }, [...name][0].toUpperCase());
}

function drawPerson(user) {
  const { id, screenName } = user.attributes;
  const link = element("a", { href: `#users/${id}`, title: `Only what ${screenName} wrote` },
    drawFace(id, screenName), element("span", { class: "name" }, screenName));
  if (id === me.id) link.append(element("span", { class: "you" }, "you"));
  return element("li", { class: "person", "data-testid": "person", "data-user": id }, link);
}

function drawMessage(message) {
  const { userId, screenName, text, time } = message.attributes;
  const own = userId === me.id;
  const author = element("a", { class: "author", href: `#users/${userId}` }, own ? "You" : screenName);
  const item = element("li", { class: own ? "message own" : "message", "data-testid": "message", "data-user": userId });
  if (!own) item.append(drawFace(userId, screenName));
  item.append(element("header", {}, author, drawTime(time)), element("p", { class: "text" }, text));
  return item;
}

const STATES = { waiting: "Waiting to be sent", sending: "Sending…", refused: "Not sent" };

function drawDraft(draft) {
  const { text, state, problem } = draft.attributes;
  const refused = state === "refused";
  const item = element("li", { class: `message own draft ${state}`, "data-testid": "draft", "data-state": state },
    element("header", {}, element("span", { class: "state" }, STATES[state])),
    element("p", { class: "text" }, text));
  if (refused) {
    const again = element("button", { type: "button", class: "link" }, "Try again");
    const discard = element("button", { type: "button", class: "link" }, "Discard");
    again.addEventListener("click", () => {
      draft.set({ state: "waiting" });
      announce();
    });
    discard.addEventListener("click", () => drafts.remove(draft));
    item.append(element("p", { class: "problem", role: "alert" }, problem, again, discard));
  }
  return item;
}

const redrawPeople = showList(users, $("people"), drawPerson);
const redrawMessages = showList(messages, $("messages"), drawMessage);
showList(drafts, $("drafts"), drawDraft);
followEnd($("scroller"), $("newest"));

function drawSurroundings() {
  const shown = shownUser === null ? messages.models : messages.where({ userId: shownUser });
  // Only attributes change, so that nothing loses its focus or is read aloud again.
  for (const item of $("messages").children) item.hidden = shownUser !== null && item.dataset.user !== shownUser;
  for (const item of $("people").children) item.firstChild.ariaCurrent = String(item.dataset.user === shownUser);
  $("count").textContent = users.length;
  $("empty").hidden = shown.length + drafts.length > 0;
  $("drafts").hidden = shownUser !== null && shownUser !== me.id;
  $("filter").hidden = shownUser === null;
  $("filter-name").textContent = users.get(shownUser)?.get("screenName") ?? shown.at(-1)?.get("screenName") ?? "somebody who has left";
}

function redraw() {
  redrawPeople();
  redrawMessages();
  drawSurroundings();
}

for (const collection of [users, messages, drafts]) collection.on("update reset change", drawSurroundings);

// --- One URL for everybody's messages, and one per person.

const Router = Backbone.Router.extend({
  routes: { "users/:id": "show", "*any": "show" },
  show(id) {
    shownUser = location.hash.startsWith("#users/") ? id : null;
    drawSurroundings();
  },
});
new Router();
Backbone.history.start();

if (me.screenName === null) askName();
else $("text").focus();
