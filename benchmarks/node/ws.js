// ws: a broadcast as its README shows it. Compression is off, as by its default.

const { WebSocketServer, WebSocket } = require("ws");
const { serve, EVENT } = require("./common");

const server = serve((data) => {
  const text = JSON.stringify({ event: EVENT, data });
  for (const client of sockets.clients) if (client.readyState === WebSocket.OPEN) client.send(text);
});
const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("message", (text) => socket.send(JSON.stringify(JSON.parse(text))));
});
