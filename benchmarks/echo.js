// The echo as one writes it in Node: what comes in goes out, and a slow reader holds up its sender.
const net = require("net");

net.createServer({ noDelay: true }, (socket) => {
  socket.on("error", () => socket.destroy());
  socket.pipe(socket);
}).listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 1024 });
