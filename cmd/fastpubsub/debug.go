package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/jackc/pgx/v5"
)

// withProfiles serves /debug/pprof beside the API, to this machine alone. A request that a proxy here has passed on is from
// elsewhere.
func withProfiles(api http.Handler) http.Handler {
	profiles := http.NewServeMux()
	profiles.HandleFunc("/debug/pprof/", pprof.Index)
	profiles.HandleFunc("/debug/pprof/cmdline", http.NotFound) // it may have a password in it
	profiles.HandleFunc("/debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	profiles.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/debug/pprof/") && isLocal(r) {
			profiles.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

func isLocal(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback() && r.Header.Get("Forwarded") == "" && r.Header.Get("X-Forwarded-For") == ""
}

// sqlEcho logs the SQL of each statement, and nothing else of it.
type sqlEcho struct{ logger *slog.Logger }

func (e sqlEcho) log(ctx context.Context, sql string) {
	e.logger.LogAttrs(ctx, slog.LevelInfo, "statement", slog.String("sql", strings.Join(strings.Fields(sql), " ")))
}

// TraceQueryStart implements [pgx.QueryTracer].
func (e sqlEcho) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	e.log(ctx, data.SQL)
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (e sqlEcho) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart implements [pgx.BatchTracer].
func (e sqlEcho) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, query := range data.Batch.QueuedQueries {
		e.log(ctx, query.SQL)
	}
	return ctx
}

// TraceBatchQuery implements [pgx.BatchTracer].
func (e sqlEcho) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements [pgx.BatchTracer].
func (e sqlEcho) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}
