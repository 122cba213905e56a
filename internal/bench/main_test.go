package bench

import (
	"testing"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }
