// The chat page: ordinary Backbone collections, drawn in plain DOM. It must not know how they are kept equal to the server's.

import { element, followEnd, kept, showList, showStatus, write } from "./static/page.js";

// It says for this tab who we are, also after a reload, and keeps what we have written until it is sent.
const connection = (Backsync.connection = Backsync.connect("backsync", { persist: "chat" }));
const $ = (id) => document.getElementById(id);

const ofTab = kept("sessionStorage");
const ofBrowser = kept("localStorage");
const me = { id: null, screenName: null, ...JSON.parse(ofTab.get("me") ?? "{}") };

const Users = Backbone.Collection.extend({
  url: "/User",
  comparator: (user) => (user.id === me.id ? "" : user.get("screenName").toLowerCase()), // oneself first, then by name
});
const Messages = Backbone.Collection.extend({
  url: "/ChatMessage",
  comparator: (message) => message.get("time") ?? "~", // the server says when; until then it is at the end
});
const Typing = Backbone.Collection.extend({ url: "/Typing" });

const users = new Users();
const messages = new Messages();
const typing = new Typing();
const refused = new Backbone.Collection(); // what this page wrote and the server did not take
let shownUser = null; // whose messages are shown, by id; null: everybody's

let isLoaded = false;
for (const collection of [users, typing]) collection.live();
messages.live().then(() => {
  isLoaded = true;
  drawSurroundings();
});
showStatus(connection, $("status"), "message", () => messages.syncPending());

// --- Saying who I am: at once, and on each new connection before anything else is sent.

let forget = () => {};

function introduce() {
  forget();
  forget = connection.onOpen(async ({ call }) => {
    try {
      me.id = (await call("User:upsert", { screenName: me.screenName })).id;
      ofTab.set("me", JSON.stringify(me));
      users.sort();
      redraw();
    } catch (error) {
      if (error.code === "invalid") askName(error.message); // anything else: the connection went, and we are asked again
    }
  });
}

function askName(problem = null) {
  const dialog = $("welcome");
  $("name").value = me.screenName ?? ofBrowser.get("name") ?? "";
  const isNew = me.screenName === null;
  $("name-hint").textContent = isNew ? "Leave it empty to stay anonymous." : "What you have said keeps the old one.";
  $("join").textContent = isNew ? "Join" : "Rename";
  $("anonymous").textContent = isNew ? "Stay anonymous" : "Keep my name";
  $("name-problem").textContent = problem ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  $("name").select();
}

$("welcome").addEventListener("close", () => {
  const name = $("welcome").returnValue === "join" ? $("name").value.trim() : "";
  if (name) ofBrowser.set("name", name); // the next tab's suggestion
  me.screenName = name || me.screenName || `Anonymous ${1000 + Math.floor(Math.random() * 9000)}`;
  introduce();
  beginToWrite();
});

/** Where there is no keyboard but one that covers half the page, it waits until somebody wants to write. */
function beginToWrite() {
  if (!matchMedia("(pointer: coarse)").matches) $("text").focus();
}

$("rename").addEventListener("click", () => askName());

// --- Writing: a message shows at once, leaves when there is a connection, and is the server's when that has taken it.

function say(text) {
  messages.create({ text });
}

messages.on("rollback", (message, error) => refused.add({ text: message.get("text"), problem: error.message }));
connection.on("refused", (error, { data }) => data?.text && refused.add({ text: data.text, problem: error.message })); // of before a reload

const tellThatIType = _.throttle(() => {
  if (connection.status === "live") connection.call("Typing:upsert", {}).catch(() => {}); // nobody has to know
}, 2000, { trailing: false });

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  tellThatIType.cancel(); // the next key is told at once
  if (shownUser !== null && shownUser !== me.id) location.hash = ""; // so that one sees what one wrote
  say(text);
});

$("text").addEventListener("input", tellThatIType);

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

let shared = new Set(); // names that several of those who are here have, in small letters

/** Two people may choose one name: then both are marked. */
function findNamesakes() {
  const count = users.countBy((user) => user.get("screenName").toLowerCase());
  const names = new Set(Object.keys(count).filter((name) => count[name] > 1));
  if (names.size === shared.size && [...names].every((name) => shared.has(name))) return;
  shared = names;
  redraw();
}

function drawMark(id, screenName) {
  return shared.has(screenName.toLowerCase()) ? element("span", { class: "mark", "data-testid": "mark" }, `#${id.slice(0, 4)}`) : "";
}

function drawPerson(user) {
  const { id, screenName } = user.attributes;
  const link = element("a", { href: `#users/${id}`, title: `Only what ${screenName} wrote` },
    drawFace(id, screenName), element("span", { class: "name", dir: "auto" }, screenName), drawMark(id, screenName));
  if (id === me.id) link.append(element("span", { class: "you" }, "you"));
  return element("li", { class: "person", "data-testid": "person", "data-user": id }, link);
}

function drawMessage(message) {
  if (message.isNew()) return drawDraft(message);
  const { userId, screenName, text, time } = message.attributes;
  const own = userId === me.id;
  // Not a stop of the Tab key, which would lead by each message: the same links are in the list of people.
  const author = element("a", { class: "author", dir: "auto", href: `#users/${userId}`, tabindex: -1 }, own ? "You" : screenName);
  const item = element("li", { class: own ? "message own" : "message", "data-testid": "message", "data-user": userId });
  if (!own) item.append(drawFace(userId, screenName));
  item.append(element("header", {}, author, own ? "" : drawMark(userId, screenName), drawTime(time)), element("p", { class: "text", dir: "auto" }, text));
  return item;
}

function drawDraft(message) {
  const { text, problem } = message.attributes;
  const state = problem === undefined ? "waiting" : "refused";
  const item = element("li", { class: `message own draft ${state}`, "data-testid": "draft", "data-state": state, "data-user": me.id },
    element("header", {}, element("span", { class: "state" }, problem === undefined ? "Waiting to be sent" : "Not sent")),
    element("p", { class: "text", dir: "auto" }, text));
  if (problem === undefined) return item;
  const offer = (words, act) => {
    const button = element("button", { type: "button", class: "link" }, words);
    button.addEventListener("click", () => {
      refused.remove(message);
      act();
    });
    return button;
  };
  item.append(element("p", { class: "problem", role: "alert" }, problem, offer("Try again", () => say(text)), offer("Discard", () => {})));
  return item;
}

function drawTyping() {
  const here = connection.status === "live" ? typing.reject({ id: me.id }) : []; // else nobody would tell us that they stopped
  const names = here.map((person) => element("bdi", {}, person.get("screenName")));
  const [first, second] = names;
  const words = [[], [first, " is typing…"], [first, " and ", second, " are typing…"]];
  $("typing").replaceChildren(...(words[names.length] ?? ["Several people are typing…"]));
}

const redrawPeople = showList(users, $("people"), drawPerson);
const redrawMessages = showList(messages, $("messages"), drawMessage);
showList(refused, $("refused"), drawDraft);
const came = followEnd($("scroller"), $("newest"));

// --- What came while nobody looked: counted on the button, said to those who hear the page, and in the title.

const TITLE = document.title;
let unseen = 0; // messages of others since the page was last looked at

function drawTitle() {
  document.title = unseen === 0 ? TITLE : `(${unseen}) ${TITLE}`;
}

messages.on("update", (_, { changes }) => {
  const others = changes.added.filter((message) => !message.isNew() && message.get("userId") !== me.id);
  if (!isLoaded || others.length === 0) return;
  came(others.length);
  write($("came"), $("newest").hidden ? "" : `${others.length === 1 ? "A new message" : `${others.length} new messages`} below`);
  if (!document.hidden) return;
  unseen += others.length;
  drawTitle();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  unseen = 0;
  drawTitle();
});

function drawSurroundings() {
  const shown = messages.filter((message) => shownUser === null || (message.get("userId") ?? me.id) === shownUser);
  // Only attributes change, so that nothing loses its focus or is read aloud again.
  for (const item of $("messages").children) item.hidden = shownUser !== null && item.dataset.user !== shownUser;
  for (const item of $("people").children) item.firstChild.ariaCurrent = String(item.dataset.user === shownUser);
  write($("count"), isLoaded ? String(users.length) : "…");
  $("empty").hidden = shown.length + refused.length > 0;
  write($("empty"), isLoaded ? "Nothing here yet. Say hello." : "Fetching the messages…");
  $("refused").hidden = shownUser !== null && shownUser !== me.id;
  $("filter").hidden = shownUser === null;
  $("filter-name").textContent = users.get(shownUser)?.get("screenName") ?? shown.at(-1)?.get("screenName") ?? "somebody who has left";
}

function redraw() {
  redrawPeople();
  redrawMessages();
  drawSurroundings();
}

messages.on("change:time", () => messages.sort());
typing.on("update reset change", drawTyping);
connection.on("status", drawTyping);
for (const collection of [users, messages, refused]) collection.on("update reset change", drawSurroundings);
users.on("update reset change:screenName", findNamesakes);

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

if (me.screenName === null) {
  askName();
} else {
  introduce();
  beginToWrite();
}
