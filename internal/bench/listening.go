package bench

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
)

// listening starts a broker that has its own pool and runs, without maintenance, as one in another process would. It returns when
// that hears notifications. stop ends it; whoever uses the broker has to be done by then.
func (b *bench) listening(ctx context.Context) (broker *fastpubsub.Broker, stop func(), err error) {
	pool, err := pgxpool.NewWithConfig(ctx, b.pool.Copy())
	if err != nil {
		return nil, nil, err
	}
	broker, err = fastpubsub.New(pool, fastpubsub.Config{
		Schema: b.schema, Maintenance: fastpubsub.MaintenanceSettings{Off: true}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer pool.Close()
		_ = broker.Run(running) // nil when running ends
	}()
	stop = func() {
		cancel()
		<-done
	}
	for !broker.Listening() {
		if err := sleepFor(ctx, time.Millisecond); err != nil {
			stop()
			return nil, nil, err
		}
	}
	return broker, stop, nil
}

// countActive leaves out what HoldSnapshot and HoldWriter keep open, which is idle in its transaction.
const countActive = `
SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE application_name = $1 AND state = 'active'`

// settleWithin bounds settle.
const settleWithin = 30 * time.Second

// settle returns when those who have begun to wait have found that there is nothing: no session of the phase was at work in
// eight looks one after the other. The phase must have begun with that when settle is called.
func (b *bench) settle(ctx context.Context) error {
	for quiet, start := 0, time.Now(); quiet < 8; quiet++ {
		if time.Since(start) > settleWithin {
			b.report.note("sessions were still at work after %v when waiting was measured", settleWithin)
			return nil
		}
		if err := sleepFor(ctx, 50*time.Millisecond); err != nil {
			return err
		}
		var active int
		if err := b.control.QueryRow(ctx, countActive, b.schema).Scan(&active); err != nil {
			return err
		}
		if active > 0 {
			quiet = -1
		}
	}
	return nil
}

func sleepFor(ctx context.Context, d time.Duration) error { return pause(ctx, time.After(d)) }
