package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ServeFloor is the simplest server that stores what it is sent: a list of JSON objects in a request, an INSERT for each
// request. It serves until ctx ends.
func ServeFloor(ctx context.Context, pool *pgxpool.Pool, schema, address string) error {
	sql := "INSERT INTO " + pgx.Identifier{schema}.Sanitize() + ".floor (payload) SELECT jsonb_array_elements($1::jsonb)"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readiness", func(w http.ResponseWriter, r *http.Request) {
		if err := pool.Ping(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /floor", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = pool.Exec(r.Context(), sql, string(body))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// httpFloorPhase is what workloads over HTTP are compared with.
type httpFloorPhase struct {
	clients, batch int
	load           httpLoad
}

func (p *httpFloorPhase) title() string {
	return fmt.Sprintf("HTTP floor, %d clients, %d a request", p.clients, p.batch)
}

func (p *httpFloorPhase) engine() bool { return false }

func (p *httpFloorPhase) prepare(ctx context.Context, e *env) error {
	server, err := e.startChild(ctx, FloorCommand, "/readiness")
	if err != nil {
		return err
	}
	return p.load.prepare(ctx, e, server, p.clients, p.batch, "/floor", "/floor")
}

func (p *httpFloorPhase) run(ctx context.Context, e *env) (tally, error) { return p.load.run(ctx, e) }

// check counts what was inserted, with what warming up was.
func (p *httpFloorPhase) check(ctx context.Context, e *env) error {
	var n int64
	if err := e.pool.QueryRow(ctx, "SELECT count(*) FROM "+e.quotedSchema()+".floor").Scan(&n); err != nil {
		return err
	}
	if want := e.next.Load() + int64(p.clients*p.batch*warmCalls); n != want {
		return fmt.Errorf("%w: %d rows, not %d", ErrMismatch, n, want)
	}
	return nil
}
