// Runs conversations with the real SockJS client in Node: `in_node.cjs URL TRANSPORT` prints what they were like, as JSON.
"use strict";

const SockJS = require("sockjs-client");
require("./conversation.js");

const [base, transport] = process.argv.slice(2);
const { everything, ended } = globalThis.conversations;

async function main() {
  const carried = await everything(SockJS, `${base}/echo`, transport);
  const closed = await ended(SockJS, `${base}/close`, transport);
  return { carried, closed, version: SockJS.version };
}

main().then(
  (result) => {
    process.stdout.write(JSON.stringify(result), () => process.exit(0));
  },
  (error) => {
    process.stderr.write(`${error.stack}\n`, () => process.exit(1));
  },
);
