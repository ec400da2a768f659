// Reads lines {"decode": BASE64} or {"encode": PAYLOAD}, answers each with one line. The codec is Eclipse Tahu's.
"use strict";
const { get } = require("sparkplug-payload");
const codec = get("spBv1.0");

function plain(key, value) {
  const raw = this[key];
  if (raw instanceof Date) return raw.getTime();
  if (raw && typeof raw === "object" && typeof raw.toNumber === "function") return raw.toNumber();
  if (raw && typeof raw === "object" && "low" in raw && "high" in raw) return raw.high * 2 ** 32 + (raw.low >>> 0);
  if (typeof raw === "number" && !Number.isFinite(raw)) return String(raw);
  return value;
}

require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  let answer;
  try {
    const asked = JSON.parse(line);
    answer = "decode" in asked
      ? { payload: codec.decodePayload(Buffer.from(asked.decode, "base64")) }
      : { bytes: Buffer.from(codec.encodePayload(asked.encode)).toString("base64") };
  } catch (error) {
    answer = { problem: String(error) };
  }
  process.stdout.write(JSON.stringify(answer, plain) + "\n");
});
