package fastpubsubtest_test

import (
	"testing"

	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
)

// BenchmarkNew is what a test pays for a kit of its own, and for the end of it.
func BenchmarkNew(b *testing.B) {
	fake(b.Name(), func(t testing.TB) { fastpubsubtest.New(t, fastpubsubtest.Options{}) }) // the server
	for b.Loop() {
		if said := fake(b.Name(), func(t testing.TB) { fastpubsubtest.New(t, fastpubsubtest.Options{}) }); said != "" {
			b.Fatal(said)
		}
	}
}
