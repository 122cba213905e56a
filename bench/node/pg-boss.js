// pg-boss, as its documentation sets it up for many small jobs: batches, several workers, and notifications.
import { PgBoss } from "pg-boss";

const queue = "bench";
const batchSize = 100;
const workers = 4;

export async function open({ url, clients, consumer }) {
  const boss = new PgBoss({ connectionString: url, max: consumer ? workers + 4 : clients + 2, useListenNotify: consumer });
  boss.on("error", () => {}); // it goes on by itself; what does not come is missed by the audit
  await boss.start();
  if (!consumer) await boss.createQueue(queue, { notify: true });
  return {
    send(payloads) {
      if (payloads.length === 1) return boss.send(queue, payloads[0]);
      return boss.insert(queue, payloads.map((data) => ({ data })));
    },
    consume(note) {
      const options = {
        batchSize,
        localConcurrency: workers,
        pollingIntervalSeconds: 0.5,
        notifyPollingIntervalSeconds: 0.5,
        burstWhenBatchFull: true,
      };
      return boss.work(queue, options, async (jobs) => {
        for (const job of jobs) note(job.data);
      });
    },
    stop: () => boss.stop({ graceful: true, timeout: 30_000 }),
  };
}
