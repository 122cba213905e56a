package fastpubsub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// An explained is a session whose server tells the plan of each statement that it runs, those inside functions too.
type explained struct {
	pool   *pgxpool.Pool // of one connection
	broker *fastpubsub.Broker

	mu    sync.Mutex // protects plans: a notice may come while the pool works
	plans []queryPlan
}

// A queryPlan is how a statement was executed.
type queryPlan struct {
	Where string `json:"-"` // the function that it is in
	Query string `json:"Query Text"`
	Plan  planNode
}

type planNode struct {
	Type      string     `json:"Node Type"`
	Relation  string     `json:"Relation Name"`
	Index     string     `json:"Index Name"`
	Loops     float64    `json:"Actual Loops"`
	Rows      float64    `json:"Actual Rows"` // of a loop
	Filtered  float64    `json:"Rows Removed by Filter"`
	Rechecked float64    `json:"Rows Removed by Index Recheck"`
	Hit       int        `json:"Shared Hit Blocks"`
	Read      int        `json:"Shared Read Blocks"`
	Plans     []planNode `json:"Plans"`
}

func (n *planNode) buffers() int { return n.Hit + n.Read }

// all calls f with the node and those below it.
func (n *planNode) all(f func(n *planNode)) {
	f(n)
	for i := range n.Plans {
		n.Plans[i].all(f)
	}
}

// explain lets a session tell plans. It needs superuser, as the module does.
const explain = `
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_analyze = on;
SET auto_explain.log_timing = off;
SET auto_explain.log_buffers = on;
SET auto_explain.log_format = json;
SET auto_explain.log_level = notice`

// newExplained opens such a session. It skips the test where the server lacks the module.
func newExplained(t testing.TB, db *storetest.DB, settings string) *explained {
	t.Helper()
	e := new(explained)
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 1
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		_, text, found := strings.Cut(n.Message, "plan:\n")
		if !found {
			return
		}
		p := queryPlan{Where: n.Where}
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Errorf("%v: %s", err, n.Message)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.plans = append(e.plans, p)
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, explain+"; "+settings, pgx.QueryExecModeSimpleProtocol)
		return err
	}
	if e.pool, err = pgxpool.NewWithConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.pool.Close)
	err = e.pool.Ping(t.Context())
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "58P01" || pgErr.Code == "42501") { // undefined_file, insufficient_privilege
		t.Skipf("NOT TESTED: %s reads plans from auto_explain: %v", t.Name(), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if e.broker, err = fastpubsub.New(e.pool, fastpubsub.Config{Schema: db.Schema}); err != nil {
		t.Fatal(err)
	}
	if err := e.broker.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e
}

// take returns the plans since the last call.
func (e *explained) take() []queryPlan {
	e.mu.Lock()
	defer e.mu.Unlock()
	plans := e.plans
	e.plans = nil
	return plans
}

// largeTables are those that a plan must never read as a whole. The others have a row for each topic or subscription, or
// few.
var largeTables = regexp.MustCompile(`^(messages|leases|cursors)_\d$|^deliveries$`)

// What a statement may do that handles n messages: each node of its plan may have or throw away so many rows, and all of it
// may touch so many buffers. A level of an index is a buffer, there are four slots, and a row that is written has up to six
// indexes; what is read of the whole table would be 10,000 times that.
func maxRows(n int) int    { return 64 + 4*n }
func maxBuffers(n int) int { return 300 + 60*n }

// badPlans says what is wrong with plans that look into large tables, in statements that handle up to n messages.
func badPlans(plans []queryPlan, n int) []string {
	var bad []string
	for i := range plans {
		if why := plans[i].bad(n); why != "" {
			bad = append(bad, why+" in "+plans[i].String())
		}
	}
	return bad
}

// bad says what is wrong with a plan first, or nothing.
func (p *queryPlan) bad(n int) (why string) {
	large := false
	p.Plan.all(func(node *planNode) { large = large || largeTables.MatchString(node.Relation) })
	if !large {
		return ""
	}
	p.Plan.all(func(node *planNode) {
		if why != "" {
			return
		}
		rows := int(node.Loops * (node.Rows + node.Filtered + node.Rechecked))
		switch {
		case largeTables.MatchString(node.Relation) && !slices.Contains(goodScans, node.Type):
			why = node.Type + " on " + node.Relation
		case rows > maxRows(n):
			why = fmt.Sprintf("%s %s has %d rows, more than %d,", node.Type, node.Index, rows, maxRows(n))
		}
	})
	if b := p.Plan.buffers(); why == "" && b > maxBuffers(n) {
		why = fmt.Sprintf("%d buffers, more than %d,", b, maxBuffers(n))
	}
	return why
}

// goodScans are how a plan may get at rows of a large table.
var goodScans = []string{"Index Scan", "Index Only Scan", "Tid Scan", "ModifyTable"}

func (p *queryPlan) String() string {
	var b strings.Builder
	where, _, _ := strings.Cut(p.Where, "\n")
	fmt.Fprintf(&b, "%s: %s", where, strings.Join(strings.Fields(p.Query), " "))
	var write func(n *planNode, depth int)
	write = func(n *planNode, depth int) {
		fmt.Fprintf(&b, "\n%*s%s %s %s: %g loops of %g rows, %g filtered, %d buffers",
			2*depth+4, "", n.Type, n.Relation, n.Index, n.Loops, n.Rows, n.Filtered+n.Rechecked, n.buffers())
		for i := range n.Plans {
			write(&n.Plans[i], depth+1)
		}
	}
	write(&p.Plan, 0)
	return b.String()
}

// A coverage has, for each of the engine's functions, the statements in it whose plans were looked at.
type coverage map[string][]string

var inFunction = regexp.MustCompile(`(?m)^PL/pgSQL function (?:[^.(]+\.)?(\w+)\(`)

func (c coverage) add(plans []queryPlan) {
	for i := range plans {
		if match := inFunction.FindStringSubmatch(plans[i].Where); match != nil {
			if query := squeeze(plans[i].Query); !slices.Contains(c[match[1]], query) {
				c[match[1]] = append(c[match[1]], query)
			}
		}
	}
}

// into is what PL/pgSQL takes out of a statement before it runs it.
var into = regexp.MustCompile(`\bINTO (\w+, )*\w+( FROM|;|$)`)

// squeeze makes the text of a function comparable with that of a statement in it.
func squeeze(text string) string {
	return strings.Join(strings.Fields(into.ReplaceAllString(text, "$2")), "")
}

// touching finds where a line of a function reads or writes a large table.
var touching = regexp.MustCompile(`(FROM|INTO|UPDATE) "\w+"\.(messages|leases|cursors|deliveries) .*`)

// missing returns the lines that were in no plan, but for those that have one of the texts. Functions in SQL become part of
// the statements that call them.
func (c coverage) missing(schema string, but ...string) []string {
	var missing []string
	for _, f := range migrations.Functions(schema) {
		if !strings.Contains(f.SQL, "LANGUAGE plpgsql") {
			continue
		}
		for line := range strings.Lines(f.SQL) {
			code, _, _ := strings.Cut(line, "--")
			wanted := squeeze(strings.TrimRight(strings.TrimSpace(touching.FindString(code)), ";"))
			if wanted == "" || slices.ContainsFunc(but, func(text string) bool { return strings.Contains(f.Name+": "+line, text) }) {
				continue
			}
			if !slices.ContainsFunc(c[f.Name], func(query string) bool { return strings.Contains(query, wanted) }) {
				missing = append(missing, f.Name+": "+strings.TrimSpace(line))
			}
		}
	}
	return missing
}
