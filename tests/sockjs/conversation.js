// Conversations through the real SockJS client, in a page and in Node alike; what the server should answer is not known here.
"use strict";

const SURROGATES = [0xd800, 0xdfff];
const PATIENCE = 20_000; // milliseconds for anything that is awaited here, on a busy machine

/** Texts that some transport, parser or script context could change: each is one message. */
function difficult() {
  const texts = ["", " ", " leading", "trailing ", "\0", "\r", "\n", " \r\n ", "a\r\n\r\nb", "\t", '"', "\\", "\\u0041"];
  texts.push("</script><script>fail()</script>", "<!-- <script>", "]]>", "%", "%25 %0A %00 %ZZ", "+ & = ; ?a=b", "{}", "[]");
  texts.push('a["x"]', 'c[3000,"Go away!"]', "o", "h", "data: x\n\nevent: y", "__proto__", "\ufeffBOM", "\ufffd", "\uffff\ufffe");
  texts.push("עברית \u202eRTL\u202c", "e\u0301\u0323 Å ﬁ", "👩‍👩‍👧‍👦🏳️‍🌈", "\u{1f4a9}\u{10ffff}\u{1fffe}\u{2f877}", "\u2028\u2029\u200d\u2066");
  let block = "";
  for (let code = 0; code <= 0x10000; code += 1) {
    if (code < SURROGATES[0] || code > SURROGATES[1]) block += String.fromCodePoint(code);
    if (code % 0x1000 === 0xfff || code === 0x10000) {
      texts.push(block);
      block = "";
    }
  }
  return texts;
}

/** 1 MiB in messages of just less than 64 KiB, each unlike the others. */
function megabyte() {
  return Array.from({ length: 17 }, (_, number) => `${number}:`.padEnd(61_681, "0123456789abcdef"));
}

/** A promise that fails with what was waited for, rather than never. */
function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${PATIENCE} ms`)), PATIENCE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

class Conversation {
  constructor(SockJS, url, transport) {
    // The client gives a transport 0.3 s to open, which a busy machine may exceed.
    this.socket = new SockJS(url, null, { transports: [transport], timeout: PATIENCE });
    this.transport = null;
    this._arrived = [];
    this._waiting = [];
    this.closed = new Promise((resolve) => {
      this.socket.onclose = ({ code, reason, wasClean }) => resolve({ code, reason, wasClean });
    });
    this.opened = new Promise((resolve) => {
      this.socket.onopen = () => {
        this.transport = this.socket.transport;
        resolve(this);
      };
    });
    this.socket.onmessage = ({ data }) => {
      const waiting = this._waiting.shift();
      if (waiting) waiting(data);
      else this._arrived.push(data);
    };
  }

  /** The open conversation; an error if it closes instead. */
  static open(SockJS, url, transport) {
    const conversation = new Conversation(SockJS, url, transport);
    const refused = conversation.closed.then((end) => {
      throw new Error(`closed before it was open: ${JSON.stringify(end)}`);
    });
    return within(Promise.race([conversation.opened, refused]), "open frame");
  }

  receive() {
    const next = this._arrived.length
      ? Promise.resolve(this._arrived.shift())
      : new Promise((resolve) => this._waiting.push(resolve));
    const ended = this.closed.then((end) => {
      throw new Error(`closed instead of a message: ${JSON.stringify(end)}`);
    });
    return within(Promise.race([next, ended]), "message");
  }

  /** Send each text and wait for its echo. Returns the first that came back as another one, or null. */
  async pingPong(texts) {
    for (const [index, text] of texts.entries()) {
      this.socket.send(text);
      const answer = await this.receive();
      if (answer !== text) return { index, sent: text.slice(0, 200), received: answer.slice(0, 200) };
    }
    return null;
  }

  /** Send all texts at once, then read their echoes: the first that is not what was sent at its place, or null. */
  async burst(texts) {
    for (const text of texts) this.socket.send(text);
    for (const [index, text] of texts.entries()) {
      const answer = await this.receive();
      if (answer !== text) return { index, sent: text.slice(0, 200), received: answer.slice(0, 200) };
    }
    return null;
  }

  async close(code, reason) {
    this.socket.close(code, reason);
    return within(this.closed, "close event");
  }
}

/** What every transport must carry, over one connection. `wrong` is what came back changed. */
async function everything(SockJS, url, transport) {
  const conversation = await Conversation.open(SockJS, url, transport);
  const count = Array.from({ length: 300 }, (_, number) => `message ${number}`);
  const wrong = {
    difficult: await conversation.pingPong(difficult()),
    order: await conversation.burst(count),
    megabyte: await conversation.pingPong(megabyte()),
  };
  conversation.socket.send("\ud800 alone \udfff");
  const surrogates = await conversation.receive();
  const used = conversation.transport;
  return { used, wrong, surrogates, end: await conversation.close(3001, "Done") };
}

/** A few words, where no more is to be known than that they are carried. */
async function words(SockJS, url, transport) {
  const conversation = await Conversation.open(SockJS, url, transport);
  const wrong = await conversation.pingPong(["one", "zwölf \u2028 </script>"]);
  const used = conversation.transport;
  return { used, wrong, end: await conversation.close(3001, "Done") };
}

/** How the server ends a conversation that it opens. */
async function ended(SockJS, url, transport) {
  const conversation = await Conversation.open(SockJS, url, transport);
  return { used: conversation.transport, end: await within(conversation.closed, "close event") };
}

/** How a connection ends that is not to be opened at all. */
async function refused(SockJS, url, transport) {
  const conversation = new Conversation(SockJS, url, transport);
  const first = await within(Promise.race([conversation.opened.then(() => "open"), conversation.closed]), "refusal");
  return first;
}

globalThis.conversations = { Conversation, within, everything, words, ended, refused };
