package fastpubsub_test

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
)

func TestClients(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	ctx := t.Context()
	var ids []uuid.UUID
	for _, c := range []fastpubsub.NewClient{
		{Name: " My Application\n", Scopes: fastpubsub.Scopes{"topics:read", "*", "topics:read"}},
		{Name: strings.Repeat("é", 256), Scopes: fastpubsub.Scopes{"topics:read"}, Inactive: true},
	} {
		created, secret, err := b.CreateClient(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		if created.ID.Version() != 7 || created.Name != strings.TrimSpace(c.Name) || created.Active == c.Inactive || created.TokenVersion != 1 ||
			created.CreatedAt.Location() != time.UTC || time.Since(created.CreatedAt).Abs() > time.Minute {
			t.Errorf("created %+v", created)
		}
		got, err := b.GetClient(ctx, created.ID)
		if diff := gocmp.Diff(created, got); diff != "" || err != nil {
			t.Errorf("got %v (-created +got):\n%s", err, diff)
		}
		if n := query[int](t, db, `SELECT count(*) FROM {schema}.clients c WHERE c::text LIKE '%' || $1 || '%'`, string(secret)); n != 0 || len(secret) != 32 {
			t.Error("the secret is in the table")
		}
		hash := query[string](t, db, `SELECT secret_hash FROM {schema}.clients WHERE id = $1::text::uuid`, created.ID.String())
		if _, err := fastpubsub.ParseSecretHash(hash); err != nil || !strings.HasPrefix(hash, "$argon2id$v=19$m=65536,t=3,p=4$") {
			t.Errorf("the hash is %s", hash)
		}
		ids = append(ids, created.ID)
	}
	page, err := b.ListClients(ctx, fastpubsub.ListOptions{})
	if err != nil || len(page) != 2 || page[0].ID != ids[0] || page[1].ID != ids[1] || page[0].Scopes.String() != "topics:read *" {
		t.Errorf("list: %+v, %v, want %v in this order", page, err, ids)
	}
	if page, err = b.ListClients(ctx, fastpubsub.ListOptions{Offset: 1, Limit: 1}); err != nil || len(page) != 1 || page[0].ID != ids[1] {
		t.Errorf("second page: %+v, %v", page, err)
	}
	_, err = b.ListClients(ctx, fastpubsub.ListOptions{Offset: -1, Limit: 1001})
	if diff := gocmp.Diff([]string{"offset", "limit"}, invalidFields(err)); diff != "" {
		t.Errorf("list out of range (-want +got):\n%s", diff)
	}

	// An update that says nothing about it leaves a client inactive.
	before := page[0]
	updated, err := b.UpdateClient(ctx, ids[1], fastpubsub.ClientUpdate{Name: "b", Scopes: fastpubsub.Scopes{"clients:read"}})
	want := fastpubsub.Client{ID: ids[1], Name: "b", Scopes: fastpubsub.Scopes{"clients:read"}, TokenVersion: 2, CreatedAt: before.CreatedAt, UpdatedAt: updated.UpdatedAt}
	if diff := gocmp.Diff(want, updated); diff != "" || err != nil || !updated.UpdatedAt.After(before.UpdatedAt) {
		t.Errorf("updated %v, before at %v (-want +got):\n%s", err, before.UpdatedAt, diff)
	}
	for _, active := range []bool{true, false} {
		updated, err = b.UpdateClient(ctx, ids[1], fastpubsub.ClientUpdate{Name: "b", Scopes: fastpubsub.Scopes{"clients:read"}, Active: &active})
		if err != nil || updated.Active != active {
			t.Errorf("updated %+v, %v, want active to be %v", updated, err, active)
		}
	}
	if err := b.DeleteClient(ctx, ids[1]); err != nil {
		t.Error(err)
	}
	_, errGet := b.GetClient(ctx, ids[1])
	_, errUpdate := b.UpdateClient(ctx, ids[1], fastpubsub.ClientUpdate{Name: "b", Scopes: fastpubsub.Scopes{"*"}})
	for _, err := range []error{errGet, errUpdate, b.DeleteClient(ctx, ids[1])} {
		if !errors.Is(err, fastpubsub.ErrNotFound) || !strings.Contains(err.Error(), ids[1].String()) {
			t.Errorf("after it was deleted: %v", err)
		}
	}
}

func TestInvalidClients(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	b.OnHash(func(uint32) { t.Error("a secret was made for a client that cannot be") })
	for _, test := range []struct {
		reason, name string
		scopes       fastpubsub.Scopes
		fields       []string
	}{
		{"all at once", "", nil, []string{"name", "scopes"}},
		{"white space is no name", " \t\n", fastpubsub.Scopes{"*"}, []string{"name"}},
		{"long", strings.Repeat("é", 257), fastpubsub.Scopes{"*"}, []string{"name"}},
		{"not UTF-8", "\xff", fastpubsub.Scopes{"*"}, []string{"name"}},
		{"NUL", "a\x00", fastpubsub.Scopes{"*"}, []string{"name"}},
		{"each scope that is none", "c", fastpubsub.Scopes{"topics", "topics:read", "x"}, []string{"scopes", "scopes"}},
		{"two scopes in one", "c", fastpubsub.Scopes{"topics:read topics:publish"}, []string{"scopes"}},
	} {
		_, _, errCreate := b.CreateClient(t.Context(), fastpubsub.NewClient{Name: test.name, Scopes: test.scopes})
		_, errUpdate := b.UpdateClient(t.Context(), uuid.New(), fastpubsub.ClientUpdate{Name: test.name, Scopes: test.scopes})
		errImport := b.ImportClient(t.Context(), fastpubsub.Client{ID: uuid.New(), Name: test.name, Scopes: test.scopes}, cheapHash)
		for _, err := range []error{errCreate, errUpdate, errImport} {
			if diff := gocmp.Diff(test.fields, invalidFields(err)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.reason, diff)
			}
		}
	}
}

// cheapHash is that of "password", a test vector of argon2's authors: m is 256 KiB.
const cheapHash = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"

func TestImportClient(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	ctx := t.Context()
	want := fastpubsub.Client{
		ID: uuid.MustParse("550e8400-e29b-41d4-a716-446655440000"), Name: "older", Scopes: fastpubsub.Scopes{"topics:read"}, Active: true, TokenVersion: 7,
		CreatedAt: time.Date(2025, 12, 29, 15, 30, 0, 0, time.UTC), UpdatedAt: time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC),
	}
	if err := b.ImportClient(ctx, want, cheapHash); err != nil {
		t.Fatal(err)
	}
	got, err := b.GetClient(ctx, want.ID)
	if diff := gocmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := b.ImportClient(ctx, want, cheapHash); !errors.Is(err, fastpubsub.ErrExists) {
		t.Errorf("importing it again returned %v", err)
	}
	plain := fastpubsub.Client{ID: uuid.New(), Name: "c", Scopes: fastpubsub.Scopes{"*"}}
	if err := b.ImportClient(ctx, plain, cheapHash); err != nil {
		t.Fatal(err)
	}
	if got, err := b.GetClient(ctx, plain.ID); err != nil || got.Active || got.TokenVersion != 1 || time.Since(got.CreatedAt).Abs() > time.Minute || got.UpdatedAt.IsZero() {
		t.Errorf("imported %+v, %v", got, err)
	}
	hostile := fastpubsub.Secret(strings.Replace(cheapHash, "m=256", "m=4194304", 1))
	err = b.ImportClient(ctx, fastpubsub.Client{ID: uuid.New(), TokenVersion: -1}, hostile)
	if diff := gocmp.Diff([]string{"name", "scopes", "token_version", "secret_hash"}, invalidFields(err)); diff != "" {
		t.Errorf("all that is wrong (-want +got):\n%s", diff)
	}
	if strings.Contains(err.Error(), "nf65EOgLrQMR") {
		t.Errorf("the error has the hash: %v", err)
	}
}

// Updates at the same time all count.
func TestUpdatesAtOnce(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	id := uuid.New()
	if err := b.ImportClient(t.Context(), fastpubsub.Client{ID: id, Name: "c", Scopes: fastpubsub.Scopes{"*"}}, cheapHash); err != nil {
		t.Fatal(err)
	}
	g, ctx := errgroup.WithContext(t.Context())
	versions := make([]int, 20)
	for i := range versions {
		g.Go(func() error {
			c, err := b.UpdateClient(ctx, id, fastpubsub.ClientUpdate{Name: "c", Scopes: fastpubsub.Scopes{"*"}})
			versions[i] = c.TokenVersion
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(versions, cmp.Compare[int])
	for i, v := range versions {
		if v != i+2 {
			t.Fatalf("the versions are %v, want each from 2 to 21", versions)
		}
	}
}

// All that clients need works in every query mode of pgx.
func TestClientsInQueryModes(t *testing.T) {
	t.Parallel()
	for name, mode := range queryModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, db := newBroker(t, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			b := tokenBroker(t, db, fastpubsub.TokenSettings{Key: tokenKey})
			id := uuid.New()
			if err := b.ImportClient(t.Context(), fastpubsub.Client{ID: id, Name: "c", Scopes: fastpubsub.Scopes{"*"}, CreatedAt: time.Now()}, cheapHash); err != nil {
				t.Fatal(err)
			}
			active := true
			if _, err := b.UpdateClient(t.Context(), id, fastpubsub.ClientUpdate{Name: "c", Scopes: fastpubsub.Scopes{"*"}, Active: &active}); err != nil {
				t.Fatal(err)
			}
			token, err := b.IssueToken(t.Context(), id.String(), "password", nil)
			if err != nil {
				t.Fatal(err)
			}
			if caller, err := b.CheckToken(t.Context(), token.AccessToken); err != nil || caller.ClientID != id {
				t.Errorf("the token is %v's, %v", caller, err)
			}
			if page, err := b.ListClients(t.Context(), fastpubsub.ListOptions{}); err != nil || len(page) != 1 || page[0].TokenVersion != 2 {
				t.Errorf("list: %+v, %v", page, err)
			}
			if c, err := b.GetClient(t.Context(), id); err != nil || !c.Active {
				t.Errorf("got %+v, %v", c, err)
			}
			if err := b.DeleteClient(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}
