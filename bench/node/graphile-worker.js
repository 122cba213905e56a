// Graphile Worker, with the settings with which its documentation measures: a local queue, and completion in batches.
import { Logger, makeWorkerUtils, run } from "graphile-worker";

const task = "bench";
const quiet = new Logger(() => () => {});

export async function open({ url, clients, consumer, retry }) {
  if (!consumer) {
    const utils = await makeWorkerUtils({
      preset: { worker: { connectionString: url, maxPoolSize: clients + 1, logger: quiet } },
    });
    await utils.migrate();
    return {
      send(payloads) {
        if (payloads.length === 1) return utils.addJob(task, payloads[0]);
        return utils.addJobs(payloads.map((payload) => ({ identifier: task, payload })));
      },
    };
  }
  const worker = {
    connectionString: url,
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger: quiet,
  };
  let runner;
  let running; // settled when the runner has ended
  let stopping = false;
  return {
    async consume(note) {
      const taskList = { [task]: async (payload) => note(payload) };
      const start = async () => {
        runner = await run({ preset: { worker }, taskList, noHandleSignals: true });
        running = runner.promise.then(again, again);
      };
      // What a supervisor would do about a process that ended because the server went away.
      const again = async (err) => {
        if (stopping) return;
        if (!retry) throw err ?? new Error("the runner has ended by itself");
        await new Promise((done) => setTimeout(done, 100));
        if (!stopping) await start().catch(again);
      };
      await start();
    },
    async stop() {
      stopping = true;
      // It may be about to end by itself.
      await runner.stop().catch((err) => {
        if (!retry) throw err;
      });
      await running;
    },
  };
}
