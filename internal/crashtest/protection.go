package crashtest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A Protection is a line of an engine function, and what stands in its place when it is taken out.
type Protection struct{ Function, Line, Without string }

// TakeOut installs an engine function without one of its protections.
func (p Protection) TakeOut(ctx context.Context, db *storetest.DB) error {
	functions := migrations.Functions(db.Schema)
	i := slices.IndexFunc(functions, func(f migrations.Function) bool { return f.Name == p.Function })
	if i < 0 {
		return fmt.Errorf("no function %s", p.Function)
	}
	line, without := db.SQL(p.Line), db.SQL(p.Without)
	if n := strings.Count(functions[i].SQL, line); n != 1 {
		return fmt.Errorf("%s has %q %d times", p.Function, line, n)
	}
	_, err := db.Pool.Exec(ctx, strings.Replace(functions[i].SQL, line, without, 1))
	return err
}
