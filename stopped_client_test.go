package fastpubsub_test

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/store"
)

// A stoppingConn sends nothing any more once it has sent a text: its process was stopped, or the network is gone.
type stoppingConn struct {
	net.Conn
	text    []byte
	stopped *atomic.Bool
	over    <-chan struct{}
}

func (c *stoppingConn) Write(p []byte) (int, error) {
	if c.stopped.Load() {
		<-c.over
		return 0, net.ErrClosed
	}
	if bytes.Contains(p, c.text) {
		defer c.stopped.Store(true)
	}
	return c.Conn.Write(p)
}

// TestStoppedClient stops clients when they have just called an engine function that takes locks which others wait for: the
// function's transaction ends all the same, and with it its locks.
func TestStoppedClient(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error{
		"claim": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, _, err := s.Claim(ctx, pool, store.Claim{SubscriptionID: "s", Consumer: "c", Max: 1})
			return err
		},
		"sweep": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, err := s.Sweep(ctx, pool, "s")
			return err
		},
		"rotate": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, _, err := s.Rotate(ctx, pool, store.RingMessages, 0, 0)
			return err
		},
		"truncate_slot": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, _, err := s.TruncateSlot(ctx, pool, store.RingMessages, 1, time.Hour)
			return err
		},
		"vacate": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, _, err := s.Vacate(ctx, pool, "s", store.RingLeases, 1)
			return err
		},
		"spill": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, _, err := s.Spill(ctx, pool, "s")
			return err
		},
		"create_subscription": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, err := s.CreateSubscription(ctx, pool, store.Subscription{ID: "new", TopicID: "t", MaxDeliveryAttempts: 1,
				BackoffMinSeconds: 1, BackoffMaxSeconds: 1, AckDeadlineSeconds: 1}, nil)
			return err
		},
		"repair": func(ctx context.Context, s *store.Store, pool *pgxpool.Pool) error {
			_, _, _, err := s.Repair(ctx, pool)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, db := newBroker(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(1, 10)...)

			config := db.Pool.Config()
			config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // each call has the text of its statement
			config.ConnConfig.RuntimeParams["application_name"] = "stopped " + db.Schema[max(0, len(db.Schema)-10):]
			var stopped atomic.Bool
			over := make(chan struct{})
			config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &stoppingConn{conn, []byte("." + name + "("), &stopped, over}, nil
			}
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- call(ctx, store.New(db.Schema), pool) }()
			defer func() {
				cancel()
				close(over)
				<-ended
				pool.Close()
			}()

			// The call may even return, since all that it has to send was sent.
			var state string
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				if stopped.Load() {
					if state = query[string](t, db, `SELECT coalesce(max(state), 'gone') FROM pg_stat_activity WHERE application_name = $1`,
						config.ConnConfig.RuntimeParams["application_name"]); state != "active" {
						break
					}
				}
				if time.Now().After(deadline) {
					t.Fatalf("the call was not sent, or goes on: %q", state)
				}
			}
			if state != "idle" {
				t.Errorf("the session of the stopped client is %q", state)
			}
		})
	}
}
