// Package leaktest finds goroutines that go on after a test.
package leaktest

import (
	"bytes"
	"runtime"
	"testing"
	"time"
)

// Check makes the test fail if goroutines of the library go on after it. It is for tests that are not parallel: those of
// others would count.
func Check(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for {
			leaked := libraryGoroutines()
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d goroutines of the library go on, the first:\n%s", len(leaked), leaked[0])
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func libraryGoroutines() [][]byte {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var all [][]byte
	for stack := range bytes.SplitSeq(buf, []byte("\n\n")) {
		if bytes.Contains(stack, []byte("testing.tRunner(")) {
			continue // a test of the library's own package, which waits until those that are not parallel have ended
		}
		if bytes.Contains(stack, []byte("github.com/fastpubsub/fastpubsub.")) ||
			bytes.Contains(stack, []byte("github.com/fastpubsub/fastpubsub/fastpubsubtest.")) {
			all = append(all, stack)
		}
	}
	return all
}
