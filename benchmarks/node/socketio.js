// socket.io: `emit` to everybody.

const { Server } = require("socket.io");
const { serve, EVENT } = require("./common");

const server = serve(
  (data) => io.emit(EVENT, data),
  () => {},
);
const io = new Server(server, { serveClient: false });
io.on("connection", (socket) => socket.on("Note:upsert", (data) => socket.emit("Note:upsert", data)));
