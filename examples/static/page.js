// What the example pages share: small pieces of plain DOM around a live Backbone collection. It must not know any one page.

const STATUS = { connecting: "Connecting…", live: "Live", behind: "Catching up…", offline: "Offline", closed: "Closed by the server" };

/** Says in `element` how the connection is, and keeps saying it; without one also how many `things` wait for it. */
export function showStatus(connection, element, things = "change", count = () => connection.pending) {
  const show = () => {
    const { status } = connection;
    const waiting = status === "offline" ? count() : 0;
    element.dataset.status = status;
    element.textContent = STATUS[status] + (waiting > 0 ? `: ${waiting} ${things}${waiting > 1 ? "s" : ""} waiting` : "");
  };
  connection.on("status", show);
  connection.on("pending", show);
  show();
}

/**
 * Keeps the children of `list` equal to the models of `collection`, in its order, each drawn by `render(model, before)`.
 * What did not change keeps its element, and with it focus and selection; so does what did, if `render` returns `before`,
 * the element that it had. Returns a function that draws all of them anew.
 */
export function showList(collection, list, render) {
  let items = new Map();
  const arrange = () => {
    const before = items;
    items = new Map(collection.map((model) => [model.cid, before.get(model.cid) ?? render(model)]));
    for (const [cid, item] of before) if (!items.has(cid)) item.remove();
    let next = null;
    for (const item of [...items.values()].reverse()) {
      if (item.parentNode !== list || item.nextSibling !== next) list.insertBefore(item, next);
      next = item;
    }
  };
  /** Only what has come and gone is touched: a long list in which little happens costs little. */
  const advance = (_, { changes }) => {
    if (changes === undefined || changes.merged.length > 0 || changes.added.length > collection.length / 2) {
      arrange();
      return;
    }
    for (const { cid } of changes.removed) {
      items.get(cid)?.remove();
      items.delete(cid);
    }
    const places = changes.added.map((model) => collection.indexOf(model)).filter((place) => place >= 0);
    for (const place of places.sort((one, other) => other - one)) { // from the end: what follows is in its place already
      const model = collection.at(place);
      const item = items.get(model.cid) ?? render(model);
      items.set(model.cid, item);
      list.insertBefore(item, items.get(collection.at(place + 1)?.cid) ?? null);
    }
  };
  const redraw = (model) => {
    const item = items.get(model.cid);
    if (item === undefined) return;
    items.set(model.cid, render(model, item));
    if (items.get(model.cid) !== item) item.replaceWith(items.get(model.cid));
  };
  collection.on("update", advance);
  collection.on("reset", arrange);
  collection.on("sort", (_, { add } = {}) => add === undefined && arrange()); // else `update` follows
  collection.on("change", redraw);
  arrange();
  return () => collection.forEach(redraw);
}

/**
 * Keeps `scroller` at its end while the reader is there, and leaves it alone when they have scrolled away:
 * then `button` appears, which leads back. Returns a function that counts on it what has come meanwhile.
 */
export function followEnd(scroller, button) {
  let following = true;
  let missed = 0; // what has come since the reader left the end
  let opened = false; // the next scroll is ours, and says nothing of where the reader wants to be
  let top = 0; // where it was last
  const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 32;
  const follow = () => {
    if (following) scroller.scrollTop = scroller.scrollHeight;
    top = scroller.scrollTop;
    const isThere = following || isAtEnd();
    if (button.hidden !== isThere) button.hidden = isThere;
    if (isThere) missed = 0;
    write(button, missed === 0 ? "Newest ↓" : `${missed} new ↓`);
  };
  const look = () => {
    // Only who has gone up has left the end: the event of a scroll of ours may come once the window has become smaller.
    following = isAtEnd() || (following && scroller.scrollTop >= top);
    follow();
  };
  scroller.addEventListener("scroll", () => (opened ? (opened = false) : look()), { passive: true });
  scroller.addEventListener("toggle", ({ target }) => { // somebody opens a <details> to read it: it comes into view, and stays
    following = false;
    requestAnimationFrame(() => {
      if (!target.open) return look();
      const before = scroller.scrollTop;
      target.scrollIntoView({ block: "nearest" });
      opened = scroller.scrollTop !== before;
      follow();
    });
  }, true);
  button.addEventListener("click", () => {
    following = true;
    follow();
  });
  new ResizeObserver(follow).observe(scroller); // the keyboard of a phone, a turned screen
  new MutationObserver(follow).observe(scroller, { childList: true, subtree: true, attributeFilter: ["hidden"] });
  return (count) => {
    if (button.hidden && following) return;
    missed += count;
    follow();
  };
}

/** Sets the text of an element if it differs, since even the same text costs a layout. Returns whether it did. */
export function write(element, text) {
  if (element.textContent === text) return false;
  element.textContent = text;
  return true;
}

/** What this browser keeps for the page; nothing where it is told to keep nothing, such as by blocking cookies. */
export function kept(storage) {
  return {
    get(name) {
      try {
        return globalThis[storage].getItem(name);
      } catch {
        return null;
      }
    },
    set(name, text) {
      try {
        globalThis[storage].setItem(name, text);
      } catch {
        // Then it is forgotten with the page.
      }
    },
  };
}

/** Makes an element: its text is always text, never HTML; attributes that are null or undefined are left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
