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

func sleepFor(ctx context.Context, d time.Duration) error { return pause(ctx, time.After(d)) }
