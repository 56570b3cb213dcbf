// The least a Node.js service can do.
require('node:http').createServer((request, response) => response.end('ok')).listen(process.env.PORT || 8080);
