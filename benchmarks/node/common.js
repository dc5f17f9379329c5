// What the Node servers have in common: the records, and the control over HTTP.

const http = require("node:http");

const RECORD_SIZE = 200; // bytes of a record as compact JSON
const RECORDS = 100; // distinct records

function mark(number) {
  return "@" + String(number % 1000000).padStart(6, "0") + String(process.hrtime.bigint()).padStart(19, "0");
}

const PAD = "x".repeat(RECORD_SIZE - '{"id":"r00000","mark":"","note":null,"pad":""}'.length - mark(0).length);

function record(number) {
  return { id: "r" + String(number % RECORDS).padStart(5, "0"), mark: mark(number), note: null, pad: PAD };
}

function publishPaced(publish, count, burst, interval) {
  let number = 0;
  let at = performance.now();
  const step = () => {
    for (let i = 0; i < burst && number < count; i++, number++) publish(record(number));
    at += interval * 1000;
    if (number < count) setTimeout(step, Math.max(0, at - performance.now()));
  };
  step();
}

// A server on the inherited listening socket that does what the benchmark asks for; `other` gets the other requests.
exports.serve = (publish, other) => {
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, "http://localhost");
    if (url.pathname === "/publish") {
      const asked = (name) => Number(url.searchParams.get(name));
      publishPaced(publish, asked("count"), asked("burst"), asked("interval"));
    } else if (url.pathname === "/quiet") {
      global.gc?.();
    } else if (other) {
      return other(request, response);
    } else {
      response.statusCode = 404;
    }
    response.end("ok\n");
  });
  server.listen({ fd: Number(process.argv[2]) });
  return server;
};

exports.EVENT = "Item:upsert";
