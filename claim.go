package fastpubsub

import (
	"context"
	"time"

	"github.com/fastpubsub/fastpubsub/store"
)

// claimGrace is how long a claim that has begun may go on after its caller's ctx has ended.
const claimGrace = time.Second

// claimWhole runs a claim to its end, or for claimGrace, when ctx ends while it runs: what it took could otherwise only come back
// after the ack deadline. It does not wait for a connection after ctx has ended.
func (b *Broker) claimWhole(ctx context.Context, c store.Claim) ([]store.Claimed, store.Left, error) {
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return nil, store.LeftUnknown, err
	}
	defer conn.Release()
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if sleep(run, claimGrace) == nil {
			cancel()
		}
	})
	defer stop()
	return b.store.Claim(run, conn, c)
}
