// Command soak lets everything happen at once for a chosen time, at random, and accounts for every message in the end.
//
//	go run ./soak --duration 1h
//
// Publishers commit, roll back, and stall with transactions open. Consumers ack, nack, extend, give back, forget and bury
// messages, in transactions of their own and by Receive and ReceiveTx. Subscriptions and topics are deleted and made again,
// under the same names. Dead letters are reprocessed and purged. Slots are left every two seconds, and emptied by each of several
// processes. Meanwhile PostgreSQL is killed and started again, connections are cut, processes are killed and stopped, and the
// engine's clock jumps.
//
// What callers were told is in a ledger: a file, apart from the database. In the end all that waits is taken and acked, and an
// auditor holds the ledger against what came out. A line a minute says how it goes. The exit code is 1 if a promise was broken;
// then the messages are listed with all that the ledger has about them.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/crashtest"
)

func main() {
	if text, ok := os.LookupEnv(childEnv); ok {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal kills
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// config is what can be chosen.
type config struct {
	duration   time.Duration
	seed       uint64
	publishers int
	consumers  int
	processes  int
	rate       int
	ledger     string
	broken     string
}

// protections are what can be taken out of the engine, to see that it is noticed.
var protections = map[string]crashtest.Protection{
	"late":       {Function: "claim", Line: "IF new_xid > ANY (taken.open_xids) THEN", Without: "IF false THEN"},
	"acked-once": {Function: "ack_one", Line: "    IF FOUND THEN\n        RETURN 1;\n    END IF;\n", Without: "    RETURN 1;\n"},
	"needed":     {Function: "truncate_slot", Line: "IF needed THEN", Without: "IF false THEN"},
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c config
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&c.duration, "duration", 3*time.Minute, "how long, before the messages are accounted for")
	flags.Uint64Var(&c.seed, "seed", 0, "of all that is random; 0 is a random one. Threads and processes race all the same")
	flags.IntVar(&c.publishers, "publishers", 4, "publishers in this process; the others have one")
	flags.IntVar(&c.consumers, "consumers", 2, "consumers of each subscription in this process; the others have one")
	flags.IntVar(&c.processes, "processes", 3, "processes beside this one, to be killed and stopped")
	flags.IntVar(&c.rate, "rate", 500, "messages that are published a second, in about, as long as consumers keep up")
	flags.StringVar(&c.ledger, "ledger", "", "the file of the ledger, some 4 KB a message. Default: a temporary one, which is kept if a promise was broken")
	flags.StringVar(&c.broken, "break", "", "take a protection out of the engine, to see that it is noticed: "+strings.Join(protectionNames(), ", "))
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := c.check(flags.Args()); err != nil {
		fmt.Fprintln(stderr, "soak:", err)
		return 2
	}
	if c.seed == 0 {
		c.seed = 1 + rand.Uint64N(1_000_000)
	}
	report, err := soak(ctx, c, stdout)
	if err != nil {
		fmt.Fprintf(stdout, "NO VERDICT: seed %d: %v\n", c.seed, err)
		return 1
	}
	report.print(stdout)
	if report.violated() {
		return 1
	}
	return 0
}

func protectionNames() []string {
	var names []string
	for name := range protections {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (c *config) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q", rest[0])
	}
	if _, ok := protections[c.broken]; c.broken != "" && !ok {
		return fmt.Errorf("--break is one of %s, not %q", strings.Join(protectionNames(), ", "), c.broken)
	}
	if c.duration <= 0 {
		return fmt.Errorf("--duration must be more than 0, not %v", c.duration)
	}
	for _, limit := range []struct {
		name            string
		value, low, top int
	}{{"publishers", c.publishers, 1, 20}, {"consumers", c.consumers, 1, 10}, {"processes", c.processes, 0, 10}, {"rate", c.rate, 1, 100_000}} {
		if limit.value < limit.low || limit.value > limit.top {
			return fmt.Errorf("--%s must be %d to %d, not %d", limit.name, limit.low, limit.top, limit.value)
		}
	}
	return nil
}
