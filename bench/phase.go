package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

const (
	holdSnapshot = "snapshot"
	holdWriter   = "writer"
)

// A phase is measured as a whole, in a database of its own.
type phase struct {
	workload string
	title    string
	floor    int // messages of a call of the floor that it is compared with
	once     bool

	batch    int // messages of a call
	groups   int
	backlog  int64         // published before the clock runs, and consumed then
	duration time.Duration // of publishing
	rate     int
	consume  bool
	hold     string
	crash    bool
}

// Names of metrics that are referred to.
const (
	rateMetric    = "messages"
	latencyMetric = "latency p50"
	resumeMetric  = "from ready to consuming again"
)

// principal is the metric by which systems are compared, and whether less of it is better.
func (p *phase) principal() (name string, less bool) {
	switch {
	case p.crash:
		return resumeMetric, true
	case p.rate > 0:
		return latencyMetric, true
	default:
		return rateMetric, false
	}
}

// A sample is a phase of a system in one round.
type sample struct {
	metrics []bench.Metric
	tables  []bench.Table
	series  []int64 // handled in each step
	step    time.Duration
	audit   Audit
}

func (s *sample) value(name string) (float64, bool) {
	for _, m := range s.metrics {
		if m.Name == name {
			return m.Value, true
		}
	}
	return 0, false
}

func (s *sample) add(name, unit string, value float64) {
	s.metrics = append(s.metrics, bench.Metric{Name: name, Unit: unit, Value: value})
}

const (
	warmCalls = 10               // of each client, before a phase of publishing
	warmTime  = 30 * time.Second // for what is published to warm up
	// settleTime bounds how long what was published is waited for after the clock has stopped.
	settleTime = time.Minute
	// drainTime bounds a drain; what is left is then still waited for, but not timed.
	drainTime = 30 * time.Second
)

// A trial is one system's run of a phase.
type trial struct {
	*runner
	system   *system
	phase    *phase
	database *database
	session  session
	got      *received
	jobs     int64 // numbers in use: what was published, or the jobs made of it
	copies   int64
	sample   sample

	base   int64         // deliveries before the clock ran
	others time.Duration // CPU of other processes, then
}

// try runs a phase of a system.
func (r *runner) try(ctx context.Context, sys *system, p *phase) (_ *sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.limit(p))
	defer cancel()
	srv, err := r.server(ctx, sys)
	if err != nil {
		return nil, err
	}
	db, err := srv.create(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()

	t := &trial{runner: r, system: sys, phase: p, database: db, copies: 1}
	groups := p.groups
	if !sys.fanOut {
		t.copies, groups = int64(p.groups), 1
	}
	t.got = newReceived(groups, r.step(p))
	if t.session, err = sys.open(ctx, opening{url: db.url, clients: r.Clients, groups: groups, consume: p.consume, retry: p.crash}); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	open := true
	closeSession := func() error {
		if !open {
			return nil
		}
		open = false
		return t.session.close()
	}
	defer func() { err = errors.Join(err, closeSession()) }()

	meter, err := bench.NewMeter(ctx, db.control)
	if err != nil {
		return nil, err
	}
	r.report.Server = meter.Server()
	if p.consume {
		err = t.flow(ctx, meter)
	} else {
		err = t.publishOnly(ctx, meter)
	}
	if err != nil {
		return nil, err
	}
	if err := closeSession(); err != nil {
		return nil, err
	}
	if t.sample.tables == nil {
		if err := t.readTables(ctx, meter); err != nil {
			return nil, err
		}
	}
	return &t.sample, nil
}

// limit is when a phase has gone wrong.
func (r *runner) limit(p *phase) time.Duration { return 4*time.Minute + p.duration }

// step is how finely rates are told over time.
func (r *runner) step(p *phase) time.Duration { return max(100*time.Millisecond, p.duration/60) }

// published makes what the clients are to publish next.
func (t *trial) publishing(messages int64, duration time.Duration) *publishing {
	return &publishing{
		clients: t.Clients, batch: t.phase.batch, messages: messages, duration: duration, copies: t.copies, first: t.jobs,
		retry: t.phase.crash, latency: bench.NewLatencies(),
	}
}

// publish does it, and notes what there is now.
func (t *trial) publish(ctx context.Context, p *publishing) error {
	err := t.session.publish(ctx, p)
	if err == nil && p.next.Load() != p.done.Load() {
		err = fmt.Errorf("of %d jobs %d were published", p.next.Load(), p.done.Load())
	}
	t.jobs += p.done.Load()
	return err
}

// deliveries is how many there are to be of what was published.
func (t *trial) deliveries() int64 { return t.jobs * int64(len(t.got.groups)) }

func (t *trial) publishOnly(ctx context.Context, meter *bench.Meter) error {
	warm := t.publishing(int64(warmCalls*t.Clients*t.phase.batch), 0)
	if err := t.publish(ctx, warm); err != nil {
		return err
	}
	if err := t.start(ctx, meter); err != nil {
		return err
	}
	p := t.publishing(0, t.phase.duration)
	start := time.Now()
	if err := t.publish(ctx, p); err != nil {
		return err
	}
	elapsed := time.Since(start)
	n := p.done.Load()
	t.sample.add(rateMetric, bench.PerSecond, float64(n)/elapsed.Seconds())
	t.sample.metrics = append(t.sample.metrics, p.latency.Metrics("call")...)
	if err := t.usage(ctx, meter, n); err != nil {
		return err
	}
	stored, err := t.session.stored(ctx)
	if err != nil {
		return err
	}
	t.sample.audit = Audit{Published: t.jobs, Missing: max(0, t.jobs-stored), Duplicates: max(0, stored-t.jobs)}
	return nil
}

// usage adds what was used for n messages. The client's share is that of this process and of the others.
func (t *trial) usage(ctx context.Context, meter *bench.Meter, n int64) error {
	used, err := meter.Stop(ctx, n)
	if err != nil {
		return err
	}
	others := (t.session.cpu() - t.others).Seconds() / float64(max(n, 1))
	for i := range used {
		if used[i].Name == "client CPU a message" {
			used[i].Value += others
		}
	}
	t.sample.metrics = append(t.sample.metrics, used...)
	return nil
}

func (t *trial) readTables(ctx context.Context, meter *bench.Meter) (err error) {
	if t.sample.tables, err = t.database.tables(ctx, meter); err == nil {
		t.sample.metrics = append(t.sample.metrics, bench.TableMetrics(t.sample.tables, max(t.jobs/t.copies, 1))...)
	}
	return err
}

// flow is every phase in which messages are consumed: those of a backlog, or while they are published.
func (t *trial) flow(ctx context.Context, meter *bench.Meter) error {
	if t.phase.backlog > 0 {
		if err := t.publish(ctx, t.publishing(t.phase.backlog, 0)); err != nil {
			return fmt.Errorf("backlog: %w", err)
		}
		// As it would be where a backlog has grown by and by; else plans go by statistics of empty tables.
		if _, err := t.database.control.Exec(ctx, "VACUUM ANALYZE"); err != nil {
			return err
		}
		if err := t.start(ctx, meter); err != nil {
			return err
		}
	}

	consuming, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	stopWithGroup := context.AfterFunc(gctx, stop) // a publisher's error ends the consumers
	defer stopWithGroup()
	g.Go(func() error {
		if err := t.session.consume(consuming, t.got); err != nil {
			return fmt.Errorf("consume: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		defer stop()
		return t.drive(gctx, meter)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if t.got.err != nil {
		return t.got.err
	}
	if !t.phase.crash {
		return t.usage(ctx, meter, t.got.distinct.Load()-t.base)
	}
	return nil
}

// start begins to measure. What came before does not count.
func (t *trial) start(ctx context.Context, meter *bench.Meter) error {
	if err := meter.Start(ctx); err != nil {
		return err
	}
	t.others = t.session.cpu()
	t.base = t.got.distinct.Load()
	t.got.begin()
	return nil
}

// drive publishes, waits for what is to come, and fills the sample.
func (t *trial) drive(ctx context.Context, meter *bench.Meter) error {
	if t.phase.backlog > 0 {
		start := time.Now()
		t.got.expect(t.deliveries())
		t.settle(ctx, drainTime)
		elapsed := t.got.lastAt().Sub(start)
		handled := t.got.distinct.Load()
		t.sample.add(rateMetric, bench.PerSecond, perSecond(handled, elapsed))
		t.sample.add("until the first", bench.Seconds, t.got.firstAt().Sub(start).Seconds())
		t.settle(ctx, settleTime)
		t.finishSample()
		return ctx.Err()
	}

	if err := t.warmUp(ctx); err != nil {
		return err
	}
	held, err := t.database.hold(ctx, t.phase.hold)
	if err != nil {
		return err
	}
	defer func() {
		if held != nil {
			_ = held.Close(context.WithoutCancel(ctx)) // after an error
		}
	}()
	if err := t.start(ctx, meter); err != nil {
		return err
	}
	start := time.Now()
	p := t.publishing(0, t.phase.duration)
	p.rate = t.phase.rate
	p.window = int64(t.Window)
	p.groups = int64(len(t.got.groups))
	p.delivered = func() int64 { return t.got.distinct.Load() - t.base }
	var outage outage
	var crashed errgroup.Group
	if t.phase.crash {
		crashed.Go(func() error { return t.crash(ctx, meter, &outage) })
	}
	if err := errors.Join(t.publish(ctx, p), crashed.Wait()); err != nil {
		return err
	}
	elapsed := time.Since(start)
	handled := t.got.distinct.Load() - t.base
	if t.phase.hold != "" {
		if err := t.readTables(ctx, meter); err != nil {
			return err
		}
	}
	err = release(ctx, held)
	held = nil
	if err != nil {
		return fmt.Errorf("the transaction that was held open: %w", err)
	}
	t.got.expect(t.deliveries())
	t.settle(ctx, settleTime)

	t.sample.add(rateMetric, bench.PerSecond, perSecond(handled, elapsed))
	if t.phase.groups > 1 {
		t.sample.add("messages published", bench.PerSecond, perSecond(p.done.Load()/t.copies, elapsed))
	}
	t.got.mu.Lock()
	t.sample.metrics = append(t.sample.metrics, t.got.latency.Metrics("latency")...)
	quiet := t.got.quiet
	t.got.mu.Unlock()
	t.sample.metrics = append(t.sample.metrics, p.latency.Metrics("publish call")...)
	if t.phase.hold != "" || t.phase.crash {
		t.sample.add("longest time without a message", bench.Seconds, quiet.Seconds())
	}
	if t.phase.hold != "" {
		first, last := t.quarters()
		t.sample.add("messages in the 1st quarter", bench.PerSecond, first)
		t.sample.add("messages in the 4th quarter", bench.PerSecond, last)
		if first > 0 {
			t.sample.add("4th quarter to 1st", bench.Ratio, last/first)
		}
	}
	if t.phase.crash {
		t.sample.add("server away", bench.Seconds, outage.away.Seconds())
		t.sample.add(resumeMetric, bench.Seconds, t.resumed(outage).Seconds())
	}
	t.finishSample()
	return ctx.Err()
}

// warmUp publishes a call of each client, and waits for it, so that consumers are at work when the clock starts.
func (t *trial) warmUp(ctx context.Context) error {
	if err := t.publish(ctx, t.publishing(int64(t.Clients*t.phase.batch), 0)); err != nil {
		return err
	}
	t.got.expect(t.deliveries())
	t.settle(ctx, warmTime)
	if got, want := t.got.distinct.Load(), t.deliveries(); got != want {
		return errors.Join(ctx.Err(), fmt.Errorf("of %d deliveries to warm up %d came within %v", want, got, warmTime))
	}
	t.got.forget()
	return nil
}

func (t *trial) finishSample() {
	t.sample.audit = t.got.audit(t.jobs)
	t.got.mu.Lock()
	defer t.got.mu.Unlock()
	t.sample.series, t.sample.step = t.got.series, t.got.span
}

// settle waits until everything has come, or for d.
func (t *trial) settle(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.got.all():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// quarters returns the rates in the first and the last quarter of publishing.
func (t *trial) quarters() (first, last float64) {
	t.got.mu.Lock()
	defer t.got.mu.Unlock()
	steps := int(t.phase.duration / t.got.span)
	quarter := max(1, steps/4)
	sum := func(from, to int) float64 {
		var n int64
		for i := max(from, 0); i < min(to, len(t.got.series)); i++ {
			n += t.got.series[i]
		}
		return perSecond(n, t.got.span*time.Duration(quarter))
	}
	return sum(0, quarter), sum(steps-quarter, steps)
}

type outage struct {
	away  time.Duration
	ready time.Time
}

// crash kills the server in the middle of publishing.
func (t *trial) crash(ctx context.Context, meter *bench.Meter, o *outage) error {
	if err := pause(ctx, t.phase.duration/3); err != nil {
		return err
	}
	start := time.Now()
	if err := t.database.server.crash(ctx); err != nil {
		return err
	}
	o.ready = time.Now()
	o.away = o.ready.Sub(start)
	t.got.watch()
	if err := t.database.reconnect(ctx); err != nil {
		return err
	}
	m, err := bench.NewMeter(ctx, t.database.control)
	if err == nil {
		*meter = *m
	}
	return err
}

// resumed is how long it took from the server's being ready to the first message; all of the time that was left if none came.
func (t *trial) resumed(o outage) time.Duration {
	t.got.mu.Lock()
	defer t.got.mu.Unlock()
	if t.got.resumed.IsZero() {
		return time.Since(o.ready)
	}
	return t.got.resumed.Sub(o.ready)
}

func (r *received) lastAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *received) firstAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first.IsZero() {
		return r.last
	}
	return r.first
}

func perSecond(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}
