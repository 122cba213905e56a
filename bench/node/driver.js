// Publishes or consumes for the benchmark, which tells what to do: one JSON object a line on standard input, and so are the
// answers on standard output. It ends when standard input does.
import { createInterface } from "node:readline";
import { randomBytes } from "node:crypto";

const flushEvery = 10; // milliseconds
const retryPause = 20;
const retryFor = 120_000;

const tell = (o) => process.stdout.write(JSON.stringify(o) + "\n");
const fail = (err) => tell({ error: String(err?.stack ?? err) });
const now = () => performance.timeOrigin + performance.now(); // milliseconds, with a fraction
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const hex = (n) => n.toString(16).padStart(16, "0");

// payload has the same members and as many bytes as those of the other systems.
function payload(size) {
  const filler = "a customer in the north ordered two of the usual, to be delivered on a working day before noon; ";
  const p = { number: hex(0), sent: hex(0), match: "n", fixed: "", random: "" };
  const room = size - JSON.stringify(p).length;
  const random = Math.min(size / 2, room);
  p.fixed = filler.repeat(1 + (room - random) / filler.length).slice(0, room - random);
  p.random = randomBytes(random).toString("base64url").slice(0, random);
  return p;
}

let system;
let delivered = 0;
let reported = { published: 0, calls: [] };
let got = [];

setInterval(() => {
  if (reported.calls.length > 0) {
    tell(reported);
    reported = { published: 0, calls: [] };
  }
  if (got.length > 0) {
    tell({ got });
    got = [];
  }
}, flushEvery);

async function publish(plan) {
  const size = plan.batch * plan.copies;
  const start = now();
  const end = start + plan.seconds * 1000;
  const interval = plan.rate > 0 ? ((plan.batch * plan.clients) / plan.rate) * 1000 : 0;
  let begun = 0;
  const over = () => plan.messages === 0 && now() >= end;

  // Calls again what failed, with the same messages, where the server is expected to go away.
  async function insist(call) {
    const began = now();
    for (;;) {
      try {
        return await call();
      } catch (err) {
        if (!plan.retry || now() - began > retryFor) throw err;
        await pause(retryPause);
      }
    }
  }

  async function client(i) {
    const supply = Array.from({ length: size }, () => payload(plan.payloadBytes));
    let due = start + (interval * i) / plan.clients; // not all at once
    for (;;) {
      if (interval > 0 && due > now()) await pause(due - now());
      while (plan.window > 0 && begun - delivered >= plan.window && !over()) await pause(0.2);
      if (over()) return;
      const n = plan.messages === 0 ? size : Math.min(size, plan.messages * plan.copies - begun);
      if (n <= 0) return;
      const first = plan.first + begun;
      begun += n;
      const sent = hex(BigInt(Math.round((interval > 0 ? due : now()) * 1000)) * 1000n);
      const payloads = supply.slice(0, n);
      payloads.forEach((p, j) => {
        p.number = hex(first + j);
        p.sent = sent;
      });
      const before = now();
      await insist(() => system.send(payloads));
      reported.published += n;
      reported.calls.push(Math.round((now() - before) * 1000));
      due += interval;
    }
  }
  await Promise.all(Array.from({ length: plan.clients }, (_, i) => client(i)));
  tell(reported);
  reported = { published: 0, calls: [] };
  tell({ ended: true });
}

// note tells of a message: its number, and its age in microseconds.
function note(p) {
  got.push(parseInt(p.number, 16), Math.round(now() * 1000 - parseInt(p.sent, 16) / 1000));
}

async function command(c) {
  switch (c.command) {
    case "open":
      system = await (await import(`./${c.system}.js`)).open(c);
      return tell({ opened: true });
    case "publish":
      delivered = 0;
      return publish(c);
    case "delivered":
      delivered = c.delivered;
      return;
    case "consume":
      await system.consume(note);
      return tell({ consuming: true });
    case "stop":
      await system.stop();
      if (got.length > 0) tell({ got });
      got = [];
      return tell({ stopped: true });
    default:
      throw new Error(`no command ${c.command}`);
  }
}

process.on("unhandledRejection", fail);
createInterface({ input: process.stdin })
  .on("line", (line) => command(JSON.parse(line)).catch(fail))
  .on("close", () => process.exit(0));
