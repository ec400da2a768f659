// Runs a flow in Node-RED without its editor. Prints JSON lines: {"started": [node types that are missing]}, then
// what debug nodes show. usage: node flow.js USER_DIR FLOW_FILE HTTP_PORT
const express = require("express");
const http = require("http");
const path = require("path");
const runtime = require("@node-red/runtime");

const [userDir, flowFile, port] = process.argv.slice(2);
const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const app = express();
const server = http.createServer(app);
const settings = {
  userDir,
  flowFile,
  credentialSecret: "a test",
  coreNodesDir: path.dirname(require.resolve("@node-red/nodes/package.json")),
  httpAdminRoot: false,
  httpNodeRoot: "/",
  externalModules: { autoInstall: false, palette: { allowInstall: false } },
  diagnostics: { enabled: false },
  telemetry: { enabled: false },
  logging: { console: { level: "warn", metrics: false, audit: false } },
};
require("@node-red/util").init(settings);
runtime.init(settings, server, undefined);
app.use("/", runtime.httpNode);
runtime.events.on("comms", ({ topic, data }) => {
  if (topic === "debug") say({ node: data.name, format: data.format, msg: data.msg });
});
runtime.events.on("flows:started", () => {
  server.listen(Number(port), "127.0.0.1", () => say({ started: [] }));
});
runtime.events.on("runtime-event", ({ id, payload }) => {
  if (id === "runtime-state" && payload && payload.type === "warning") say({ problem: payload });
});
runtime.start().catch((error) => {
  say({ problem: String(error) });
  process.exit(1);
});
process.on("SIGTERM", () => runtime.stop().then(() => process.exit(0)));
