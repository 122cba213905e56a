package fastpubsub_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
)

// TestGuarantees holds docs/guarantees.md against the tests: each promise names some that would catch its breach, or says why there is
// none, and all that are named exist.
func TestGuarantees(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	_, promises, _ := strings.Cut(string(text), "\n## ")
	reference := regexp.MustCompile("`([a-z_/]+_test\\.go): ([^`]+)`")
	files := map[string]string{}
	for _, promise := range strings.Split(promises, "\n- ")[1:] {
		promise, _, _ = strings.Cut(promise, "\n#")
		title, _, _ := strings.Cut(promise, "\n")
		_, named, tested := strings.Cut(promise, "\n  Tests: ")
		_, reason, untested := strings.Cut(promise, "\n  Not tested: ")
		all := reference.FindAllStringSubmatch(named, -1)
		if tested == untested || tested && (len(all) == 0 || len(all) != strings.Count(named, "`")/2) || untested && strings.TrimSpace(reason) == "" {
			t.Errorf("no tests, or no reason, or what is no reference: %s", title)
		}
		for _, ref := range all {
			file, name := ref[1], ref[2]
			if files[file] == "" {
				source, err := os.ReadFile(file)
				if err != nil {
					t.Errorf("%s: %v", title, err)
					continue
				}
				files[file] = string(source)
			}
			if !strings.Contains(files[file], "\nfunc "+name+"(") && !strings.Contains(files[file], `"`+name+`"`) {
				t.Errorf("%s: %s has no test %q", title, file, name)
			}
		}
	}
	if len(files) < 10 {
		t.Errorf("only %d files are named", len(files))
	}
}

// TestNoDeduplication publishes the same twice.
func TestNoDeduplication(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	ids := slices.Concat(publish(t, b, "t", numbered(1, 1)...), publish(t, b, "t", numbered(1, 1)...))
	if ids[0] == ids[1] {
		t.Error("two messages have one id")
	}
	if err := wantDelivered(t, b, "s", 10, ids...); err != nil {
		t.Error(err)
	}
}

// TestNothingFromBefore creates a subscription when messages have been committed, and others are about to be.
func TestNothingFromBefore(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createTopic(t, b, "other")
	createSubscription(t, b, "first", "t", noFilter)
	before := publish(t, b, "t", numbered(1, 3)...)
	tx := begin(t, db, pgx.TxOptions{})
	meanwhile := publishTx(t, b, tx, "t", numbered(4, 1)...)
	createSubscription(t, b, "second", "t", noFilter)
	commit(t, tx)
	publish(t, b, "other", numbered(5, 1)...)
	after := publish(t, b, "t", numbered(6, 2)...)
	if err := wantDelivered(t, b, "second", 10, slices.Concat(meanwhile, after)...); err != nil {
		t.Error(err)
	}
	if err := wantDelivered(t, b, "first", 10, slices.Concat(before, meanwhile, after)...); err != nil {
		t.Error(err)
	}
}

// TestVisibleAfterCommit consumes after each of many commits, beside a transaction that stays open: what was committed comes at once.
func TestVisibleAfterCommit(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	open := begin(t, db, pgx.TxOptions{})
	late := publishTx(t, b, open, "t", numbered(0, 1)...)
	for n := range 20 {
		var want []fastpubsub.ID
		if n%2 == 0 {
			want = publish(t, b, "t", numbered(1+n, 1)...)
		} else {
			tx := begin(t, db, pgx.TxOptions{IsoLevel: pgx.Serializable})
			want = publishTx(t, b, tx, "t", numbered(1+n, 1)...)
			if got := consume(t, b, "s", 10); len(got) > 0 {
				t.Fatalf("%v comes before its commit", idsOf(got))
			}
			commit(t, tx)
		}
		if diff := cmp.Diff(want, idsOf(consume(t, b, "s", 10))); diff != "" {
			t.Fatalf("after commit %d (-want +got):\n%s", n, diff)
		}
	}
	commit(t, open)
	if diff := cmp.Diff(late, idsOf(consume(t, b, "s", 10))); diff != "" {
		t.Errorf("after the last commit (-want +got):\n%s", diff)
	}
}

// TestOrder takes what was published by one call after the other in portions of all sizes: it comes in the order of the log, and
// so do ids. What failed before comes first.
func TestOrder(t *testing.T) {
	t.Parallel()
	for _, portion := range []int{1, 7, 100, 1000} {
		t.Run(fmt.Sprint(portion), func(t *testing.T) {
			t.Parallel()
			b, db := newBroker(t)
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			var want []fastpubsub.ID
			for n := range 60 {
				want = append(want, publish(t, b, "t", numbered(n, 1+n%30)...)...)
			}
			if !slices.IsSortedFunc(want, func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) }) {
				t.Error("ids are not in the order in which they were given out")
			}
			waitForOpen(t, db)
			var got []fastpubsub.ID
			first := consume(t, b, "s", 10)
			for len(got) < len(want)-10 {
				msgs := consume(t, b, "s", portion)
				if len(msgs) == 0 {
					break
				}
				got = append(got, idsOf(msgs)...)
			}
			if diff := cmp.Diff(want, slices.Concat(idsOf(first), got)); diff != "" {
				t.Fatalf("delivered (-want +got):\n%s", diff)
			}
			again := []fastpubsub.Delivery{first[7].Delivery, first[2].Delivery}
			if n, err := b.Nack(t.Context(), "s", again, fastpubsub.NackOptions{Immediate: true}); n != 2 || err != nil {
				t.Fatalf("nacked %d, %v", n, err)
			}
			last := publish(t, b, "t", numbered(100, 2)...)
			move(100 * time.Millisecond) // between looks for what is due
			waitForOpen(t, db)
			if diff := cmp.Diff([]fastpubsub.ID{want[2], want[7], last[0], last[1]}, idsOf(consume(t, b, "s", 10))); diff != "" {
				t.Errorf("after two have failed (-want +got):\n%s", diff)
			}
		})
	}
}
