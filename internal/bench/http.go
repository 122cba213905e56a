package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// HTTPWorkloads are the names of what can be measured over HTTP: requests to a server that is a process of its own, on
// loopback.
var HTTPWorkloads = []string{"http-publish", "http-batch", "http-consume", "http-latency", "http-memory", "http-start"}

// What the workloads over HTTP do.
const (
	httpFewClients    = 8
	httpManyClients   = 32
	httpBatch         = 100 // the most that a request consumes
	httpSubscriptions = 10
	httpRate          = 50 // messages a second, for latencies
	httpWarmClients   = 4
	httpPolls         = 1000
	httpStarts        = 5 // a round
	httpWaitSeconds   = 30
)

// httpPlan says what a workload consists of; nil for one that is not over HTTP.
func (c *Config) httpPlan(workload string) []plannedPhase {
	publish := func(clients, batch, subscriptions int) *httpPublishPhase {
		return &httpPublishPhase{clients: clients, batch: batch, subscriptions: subscriptions}
	}
	floor := func(clients, batch int) *httpFloorPhase { return &httpFloorPhase{clients: clients, batch: batch} }
	switch workload {
	case "http-publish":
		return []plannedPhase{
			{phase: publish(httpFewClients, 1, 1), floor: floor(httpFewClients, 1)},
			{phase: publish(httpManyClients, 1, 1), floor: floor(httpManyClients, 1)},
		}
	case "http-batch":
		alone := publish(httpFewClients, httpBatch, 0)
		return []plannedPhase{
			{phase: alone, floor: floor(httpFewClients, httpBatch)},
			{phase: publish(httpFewClients, httpBatch, httpSubscriptions), floor: floor(httpFewClients, httpBatch), versus: alone},
		}
	case "http-consume":
		return []plannedPhase{{phase: &httpConsumePhase{backlog: c.Messages}, floor: floor(httpFewClients, httpBatch)}}
	case "http-latency":
		return []plannedPhase{{phase: &httpLatencyPhase{}}}
	case "http-memory":
		return []plannedPhase{{phase: &httpMemoryPhase{}}}
	case "http-start":
		return []plannedPhase{{phase: &httpStartPhase{}}}
	}
	return nil
}

// dialAll connects so many clients.
func dialAll(ctx context.Context, address string, n int) ([]*httpClient, error) {
	all := make([]*httpClient, n)
	for i := range all {
		var err error
		if all[i], err = dialHTTP(ctx, address); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// An httpLoad is clients that publish lists of messages at full speed.
type httpLoad struct {
	server  *child
	batch   int
	path    string
	clients []*httpClient
	supply  []*batches
}

// prepare connects, and warms up on another path.
func (l *httpLoad) prepare(ctx context.Context, e *env, server *child, clients, batch int, warmPath, path string) (err error) {
	l.server, l.batch, l.path = server, batch, warmPath
	if l.clients, err = dialAll(ctx, server.address, clients); err != nil {
		return err
	}
	l.supply = e.supplies(clients, batch)
	err = workers(ctx, clients, func(_ context.Context, i int) error {
		for range warmCalls {
			if err := l.publish(i, 0, 0); err != nil {
				return err
			}
		}
		return nil
	})
	l.path = path
	return err
}

// publish makes one request, of messages numbered from first on.
func (l *httpLoad) publish(i int, first, sentNanos int64) error {
	msgs := l.supply[i].take(first, l.batch, 0, sentNanos)
	parts := make([][]byte, 0, 2*len(msgs)+1)
	separator := []byte("[")
	for _, msg := range msgs {
		parts = append(parts, separator, msg.Payload)
		separator = []byte(",")
	}
	_, err := l.clients[i].do(http.StatusNoContent, http.MethodPost, l.path, append(parts, []byte("]"))...)
	return err
}

func (l *httpLoad) run(ctx context.Context, e *env) (tally, error) {
	return l.server.withCPU(func() (tally, error) {
		return e.atFullSpeed(ctx, len(l.clients), l.batch, func(_ context.Context, i int) error {
			return l.publish(i, e.next.Add(int64(l.batch))-int64(l.batch), 0)
		})
	})
}

func messagesPath(topic string) string { return "/topics/" + topic + "/messages" }

func consumePath(subscription string, batch, waitSeconds int) string {
	return "/subscriptions/" + subscription + "/messages?consumer_id=bench&batch_size=" + strconv.Itoa(batch) +
		"&wait_seconds=" + strconv.Itoa(waitSeconds)
}

// httpPublishPhase is clients that publish at full speed.
type httpPublishPhase struct {
	clients, batch, subscriptions int
	load                          httpLoad
}

func (p *httpPublishPhase) title() string {
	return fmt.Sprintf("HTTP publish, %d clients, %d a request, %d subscription%s", p.clients, p.batch, p.subscriptions, plural(p.subscriptions))
}

func (p *httpPublishPhase) engine() bool { return true }

func (p *httpPublishPhase) prepare(ctx context.Context, e *env) error {
	server, err := e.startWithTopics(ctx, p.subscriptions)
	if err != nil {
		return err
	}
	return p.load.prepare(ctx, e, server, p.clients, p.batch, messagesPath(warmTopic), messagesPath(topic))
}

// startWithTopics makes topics and subscriptions, and starts the server.
func (e *env) startWithTopics(ctx context.Context, subscriptions int) (*child, error) {
	if err := e.createTopics(ctx, subscriptions, fastpubsub.Filter{}); err != nil {
		return nil, err
	}
	return e.startChild(ctx, ServerCommand, "/readiness")
}

func (p *httpPublishPhase) run(ctx context.Context, e *env) (tally, error) { return p.load.run(ctx, e) }

// check counts what the log has, and consumes all of it from the first subscription.
func (p *httpPublishPhase) check(ctx context.Context, e *env) error {
	if err := e.checkLog(ctx); err != nil {
		return err
	}
	if p.subscriptions == 0 {
		return nil
	}
	all := make(consumers, e.config.Consumers)
	for i := range all {
		all[i] = newConsumer(e, i, subscription(0))
	}
	if err := all.rest(ctx); err != nil {
		return err
	}
	return verify(all.records(), e.next.Load(), everyNumber)
}

// An httpConsumer takes messages over HTTP, acks them, and notes what it got.
type httpConsumer struct {
	client       *httpClient
	subscription string
	size         int // of payloads
	got          record
	ids          []byte // the body of an ack
	consume, ack latencies
	age          latencies
}

func newHTTPConsumer(client *httpClient, subscription string, size int) *httpConsumer {
	return &httpConsumer{client: client, subscription: subscription, size: size,
		consume: newLatencies(), ack: newLatencies(), age: newLatencies()}
}

const (
	idKey      = `{"id":"`
	payloadKey = `,"payload":`
	idLength   = 36
)

// take consumes once and acks what came. It returns how many messages that were.
func (c *httpConsumer) take(waitSeconds int) (int, error) {
	start := time.Now()
	body, err := c.client.do(http.StatusOK, http.MethodGet, consumePath(c.subscription, httpBatch, waitSeconds))
	if err != nil {
		return 0, err
	}
	consumed := time.Now()
	n, err := c.read(body, consumed.UnixNano())
	if n == 0 || err != nil {
		return 0, err
	}
	c.consume.record(consumed.Sub(start), 1)
	before := time.Now()
	if _, err = c.client.do(http.StatusNoContent, http.MethodPost, "/subscriptions/"+c.subscription+"/acks", c.ids); err != nil {
		return 0, err
	}
	c.ack.record(time.Since(before), 1)
	return n, nil
}

// read notes the messages of an answer. It knows how the server writes them, which costs much less than encoding/json.
func (c *httpConsumer) read(body []byte, at int64) (n int, err error) {
	ids := append(c.ids[:0], '[')
	for {
		i := bytes.Index(body, []byte(idKey))
		if i < 0 {
			break
		}
		if body = body[i+len(idKey):]; len(body) < idLength {
			return n, fmt.Errorf("%w: an id is cut off", ErrMismatch)
		}
		if n > 0 {
			ids = append(ids, ',')
		}
		ids = append(append(append(ids, '"'), body[:idLength]...), '"')
		if i = bytes.Index(body, []byte(payloadKey)); i < 0 || len(body) < i+len(payloadKey)+c.size+1 || body[i+len(payloadKey)+c.size] != ',' {
			return n, fmt.Errorf("%w: a payload has another size", ErrMismatch)
		}
		payload := body[i+len(payloadKey):][:c.size]
		if err := checkPayload(payload, c.size); err != nil {
			return n, err
		}
		c.got.add(number(payload), at)
		if s := sent(payload); s != 0 {
			c.age.record(time.Duration(at-s), 1)
		}
		body = body[i+len(payloadKey)+c.size:]
		n++
	}
	c.ids = append(ids, ']')
	return n, nil
}

// httpConsumePhase is clients that consume and ack a backlog.
type httpConsumePhase struct {
	backlog   int
	server    *child
	consumers []*httpConsumer
}

func (p *httpConsumePhase) title() string {
	return fmt.Sprintf("HTTP consume and ack, %d clients, %d a request", httpFewClients, httpBatch)
}

func (p *httpConsumePhase) engine() bool { return true }

func (p *httpConsumePhase) prepare(ctx context.Context, e *env) (err error) {
	if p.server, err = e.startWithTopics(ctx, 1); err != nil {
		return err
	}
	clients, err := dialAll(ctx, p.server.address, httpFewClients)
	if err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	warm := newBatches(seed, 0, 1, httpBatch, e.config.PayloadBytes)
	p.consumers = nil
	for _, client := range clients {
		if _, err := e.broker.Publish(ctx, warmTopic, warm.take(0, httpBatch, 0, 0)...); err != nil {
			return err
		}
		if _, err := newHTTPConsumer(client, warmTopic, e.config.PayloadBytes).take(0); err != nil {
			return err
		}
		p.consumers = append(p.consumers, newHTTPConsumer(client, subscription(0), e.config.PayloadBytes))
	}
	return e.fill(ctx, p.backlog, e.config.PublishBatch, 0)
}

func (p *httpConsumePhase) run(ctx context.Context, e *env) (tally, error) {
	return p.server.withCPU(func() (tally, error) {
		var got atomic.Int64
		start := time.Now()
		err := workers(ctx, len(p.consumers), func(ctx context.Context, i int) error {
			for empty := 0; got.Load() < int64(p.backlog) && empty < patience; {
				n, err := p.consumers[i].take(0)
				if err != nil {
					return err
				}
				if got.Add(int64(n)); n == 0 {
					empty++
				}
			}
			return nil
		})
		consume, ack := newLatencies(), newLatencies()
		for _, c := range p.consumers {
			consume.merge(c.consume)
			ack.merge(c.ack)
		}
		return tally{got.Load(), time.Since(start), append(consume.metrics("consume"), ack.metrics("ack")...)}, err
	})
}

func (p *httpConsumePhase) check(context.Context, *env) error {
	records := make([]*record, len(p.consumers))
	for i, c := range p.consumers {
		records[i] = &c.got
	}
	return verify(records, int64(p.backlog), everyNumber)
}

// httpLatencyPhase is one client that publishes at a rate, and one that waits for messages and acks them.
type httpLatencyPhase struct {
	server    *child
	publisher httpLoad
	consumer  *httpConsumer
}

func (p *httpLatencyPhase) title() string {
	return fmt.Sprintf("HTTP end to end, a consumer that waits, %d a second", httpRate)
}

func (p *httpLatencyPhase) engine() bool { return true }

func (p *httpLatencyPhase) prepare(ctx context.Context, e *env) (err error) {
	if p.server, err = e.startWithTopics(ctx, 1); err != nil {
		return err
	}
	client, err := dialHTTP(ctx, p.server.address)
	if err != nil {
		return err
	}
	p.consumer = newHTTPConsumer(client, subscription(0), e.config.PayloadBytes)
	if err := p.publisher.prepare(ctx, e, p.server, 1, 1, messagesPath(warmTopic), messagesPath(topic)); err != nil {
		return err
	}
	// Several at once, since the server's calls are not all made on one connection to the database.
	clients, err := dialAll(ctx, p.server.address, httpWarmClients)
	if err != nil {
		return err
	}
	return workers(ctx, len(clients), func(_ context.Context, i int) error {
		for range warmCalls {
			if _, err := newHTTPConsumer(clients[i], warmTopic, e.config.PayloadBytes).take(0); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *httpLatencyPhase) run(ctx context.Context, e *env) (tally, error) {
	total := max(int64(e.config.Duration.Seconds()*httpRate), 1)
	publish := newLatencies()
	start := time.Now()
	return p.server.withCPU(func() (tally, error) {
		err := workers(ctx, 2, func(ctx context.Context, i int) error {
			if i == 0 {
				return p.publish(ctx, e, start, total, publish)
			}
			for got, empty := int64(0), 0; got < total && empty < 2; {
				n, err := p.consumer.take(httpWaitSeconds)
				if err != nil {
					return err
				}
				if got += int64(n); n == 0 {
					empty++
				}
			}
			return nil
		})
		metrics := append(p.consumer.age.metrics("from send to consumed"), publish.metrics("publish")...)
		return tally{total, time.Since(start), append(metrics, p.consumer.ack.metrics("ack")...)}, err
	})
}

// publish sends each message when it is due, which is its sent time: a server that is late is seen to be.
func (p *httpLatencyPhase) publish(ctx context.Context, e *env, start time.Time, total int64, latency latencies) error {
	for n := range total {
		due := start.Add(time.Duration(n) * time.Second / httpRate)
		if wait := time.Until(due); wait > 0 {
			if err := pause(ctx, time.After(wait)); err != nil {
				return err
			}
		}
		before := time.Now()
		if err := p.publisher.publish(0, n, due.UnixNano()); err != nil {
			return err
		}
		latency.record(time.Since(before), 1)
		e.next.Add(1)
	}
	return nil
}

func (p *httpLatencyPhase) check(_ context.Context, e *env) error {
	return verify([]*record{&p.consumer.got}, e.next.Load(), everyNumber)
}

// httpMemoryPhase is a server that nobody has asked for anything, and then clients that wait.
type httpMemoryPhase struct {
	server *child
	got    []*record
}

func (p *httpMemoryPhase) title() string {
	return fmt.Sprintf("HTTP memory, %d consumers that wait", httpPolls)
}

func (p *httpMemoryPhase) engine() bool { return true }

func (p *httpMemoryPhase) prepare(ctx context.Context, e *env) (err error) {
	p.server, err = e.startWithTopics(ctx, 1)
	return err
}

const readTransactions = `
SELECT xact_commit + xact_rollback FROM pg_catalog.pg_stat_database WHERE datname = pg_catalog.current_database()`

// run has clients wait, for the duration but no longer than they may.
func (p *httpMemoryPhase) run(ctx context.Context, e *env) (t tally, err error) {
	idle := p.server.resident()
	waits := min(e.config.Duration, httpWaitSeconds*time.Second/2)
	waiting, err := dialAll(ctx, p.server.address, httpPolls)
	if err != nil {
		return tally{}, err
	}
	for _, c := range waiting {
		if err := c.send(http.MethodGet, consumePath(subscription(0), 1, httpWaitSeconds)); err != nil {
			return tally{}, err
		}
	}
	var other httpLoad
	if err := other.prepare(ctx, e, p.server, 1, 1, messagesPath(warmTopic), messagesPath(warmTopic)); err != nil {
		return tally{}, err
	}
	var before, after int64
	if err := e.control.QueryRow(ctx, readTransactions).Scan(&before); err != nil {
		return tally{}, err
	}
	publish, start, highest, cpu := newLatencies(), time.Now(), int64(0), p.server.cpu()
	for time.Since(start) < waits {
		now := time.Now()
		if err := other.publish(0, 0, 0); err != nil {
			return tally{}, err
		}
		publish.record(time.Since(now), 1)
		highest = max(highest, p.server.resident())
		if err := pause(ctx, time.After(50*time.Millisecond)); err != nil {
			return tally{}, err
		}
	}
	elapsed := time.Since(start)
	if err := e.control.QueryRow(ctx, readTransactions).Scan(&after); err != nil {
		return tally{}, err
	}
	metrics := append(publish.metrics("publish meanwhile"),
		Metric{"transactions of the database", perSecond, float64(after-before) / elapsed.Seconds()},
		Metric{"HTTP server CPU a second", seconds, (p.server.cpu() - cpu).Seconds() / elapsed.Seconds()})
	if idle > 0 {
		metrics = append(metrics, Metric{"resident, idle", bytesUnit, float64(idle)}, Metric{"resident, waited on", bytesUnit, float64(highest)})
	}
	return tally{httpPolls, elapsed, metrics}, p.release(ctx, e, waiting)
}

// release publishes a message for each of those that wait, who must all be there still.
func (p *httpMemoryPhase) release(ctx context.Context, e *env, waiting []*httpClient) error {
	supply := newBatches(seed, 0, 1, httpBatch, e.config.PayloadBytes)
	for range httpPolls / httpBatch {
		first := e.next.Add(httpBatch) - httpBatch
		if _, err := e.broker.Publish(ctx, topic, supply.take(first, httpBatch, 0, 0)...); err != nil {
			return err
		}
	}
	p.got = nil
	for _, client := range waiting {
		body, err := client.receive(http.StatusOK)
		if err != nil {
			return err
		}
		c := newHTTPConsumer(client, subscription(0), e.config.PayloadBytes)
		if _, err := c.read(body, 0); err != nil {
			return err
		}
		p.got = append(p.got, &c.got)
		client.close()
	}
	return nil
}

func (p *httpMemoryPhase) check(_ context.Context, e *env) error {
	return verify(p.got, e.next.Load(), everyNumber)
}

// httpStartPhase starts servers, one after the other, on a database that is migrated.
type httpStartPhase struct{}

func (p *httpStartPhase) title() string { return "HTTP start" }

func (p *httpStartPhase) engine() bool { return true }

func (p *httpStartPhase) prepare(context.Context, *env) error { return nil }

func (p *httpStartPhase) run(ctx context.Context, e *env) (tally, error) {
	ready := newLatencies()
	start := time.Now()
	for range httpStarts {
		before := time.Now()
		server, err := e.startChild(ctx, ServerCommand, "/readiness")
		if err != nil {
			return tally{}, err
		}
		ready.record(time.Since(before), 1)
		if err := server.stop(); err != nil {
			return tally{}, err
		}
	}
	return tally{httpStarts, time.Since(start), ready.metrics("start to ready")}, nil
}

func (p *httpStartPhase) check(context.Context, *env) error { return nil }
