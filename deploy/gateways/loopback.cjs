// Portkey's gateway has no setting for the address that it listens on, and takes all. Loaded before it, this lets it
// listen on the loopback only: who is on the same network has no business with a benchmark.
const { Server } = require('node:net');
const { listen } = Server.prototype;
Server.prototype.listen = function (port, ...rest) {
  if (typeof port !== 'number') return listen.call(this, port, ...rest);
  return listen.call(this, port, '127.0.0.1', ...rest.filter((a) => typeof a === 'function'));
};
