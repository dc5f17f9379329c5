// sockjs-node: its connections have no broadcast of their own, each is written to.

const sockjs = require("sockjs");
const { serve, EVENT } = require("./common");

const connections = new Set();
const echo = sockjs.createServer({ log: () => {} });
echo.on("connection", (connection) => {
  connections.add(connection);
  connection.on("data", (text) => connection.write(JSON.stringify(JSON.parse(text))));
  connection.on("close", () => connections.delete(connection));
});
const server = serve(
  (data) => {
    const text = JSON.stringify({ event: EVENT, data });
    for (const connection of connections) connection.write(text);
  },
  () => {}, // its own requests are answered by its own listener
);
echo.installHandlers(server, { prefix: "/sockjs" });
