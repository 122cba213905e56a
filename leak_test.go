package fastpubsub_test

import (
	"testing"

	"github.com/fastpubsub/fastpubsub/internal/leaktest"
)

// checkLeaks makes the test fail if goroutines of the library go on after it. It is for tests that are not parallel.
func checkLeaks(t *testing.T) {
	t.Helper()
	leaktest.Check(t)
}
