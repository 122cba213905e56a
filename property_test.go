package fastpubsub_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestProperty runs random schedules of everything that can happen to messages, on one topic with several subscriptions, and
// compares with a model in memory: transactions that publish, ack and nack at every isolation level, stay open, roll back to
// savepoints and end in any order; consumers that take, ack, nack, extend and give back; a clock that moves, dead letters
// that are reprocessed and purged, subscriptions that are deleted and created again; slots that are left, moved out of and
// truncated. After each step the place of every
// message, and all counts, are what the model says.
func TestProperty(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	clock := db.StopClock(t)
	run, truncated := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &model{t: t, rt: rt, b: b, db: db, clock: clock, topic: fmt.Sprintf("t%d", run), prefix: fmt.Sprintf("s%d-", run),
			subs: map[string]*modelSub{}}
		createTopic(t, b, m.topic)
		defer m.close()
		steps := map[string]func(*rapid.T){
			"begin":      m.begin,
			"publish":    m.publish,
			"publish tx": m.publishTx,
			"savepoint":  m.savepoint,
			"release":    m.release,
			"commit":     m.commit,
			"rollback":   m.rollback,
			"subscribe":  m.subscribe,
			"delete":     m.deleteSubscription,
			"consume":    m.consume,
			"consume 2":  m.consume, // more often than the others
			"ack":        m.ack,
			"nack":       m.nack,
			"extend":     m.extend,
			"ack tx":     m.ackTx,
			"nack tx":    m.nackTx,
			"move clock": m.moveClock,
			"cleanup":    m.cleanup,
			"reprocess":  m.reprocess,
			"purge":      m.purge,
			"rotate":     m.rotate,
			"maintain":   m.maintain,
		}
		for name, step := range steps {
			steps[name] = func(rt *rapid.T) {
				step(rt)
				m.compare()
			}
		}
		rt.Repeat(steps)
		m.finish()
		truncated += m.truncated
	})
	t.Logf("%d slots truncated", truncated)
}
