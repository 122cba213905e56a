package fastpubsubtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
)

func TestRequirePublishedTx(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			kit := newKit(t)
			all := fastpubsubtest.Match{}
			for _, commits := range []bool{false, true} {
				tx, err := kit.Pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback(t.Context())
				kit.RequireNotPublishedTx(t, tx, "orders", all)
				ids, err := kit.Broker.PublishTx(t.Context(), tx, "orders", fastpubsub.JSON(map[string]int{"order": 7}))
				if err != nil {
					t.Fatal(err)
				}
				got := kit.RequirePublishedTx(t, tx, "orders", fastpubsubtest.Match{Payload: map[string]int{"order": 7}, Count: 1})
				if got[0].ID != ids[0] || got[0].TopicID != "orders" || string(got[0].Payload) != `{"order":7}` || !got[0].CreatedAt.Equal(kit.Now(t)) {
					t.Errorf("published %+v, want %v", got[0], ids)
				}
				kit.RequireNotPublished(t, "orders", all)
				if commits {
					if err := tx.Commit(t.Context()); err != nil {
						t.Fatal(err)
					}
					kit.RequirePublished(t, "orders", fastpubsubtest.Match{Payload: `{"order":7}`, Count: 1})
					continue
				}
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				kit.RequireNotPublished(t, "orders", all)
			}
		})
	}
}

func TestRequirePublished(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	if _, err := kit.Broker.CreateTopic(t.Context(), "invoices"); err != nil {
		t.Fatal(err)
	}
	_, err := kit.Broker.Publish(t.Context(), "orders",
		fastpubsub.NewMessage{Payload: []byte(`{"id": 1, "who": {"name": "Ann", "age": 40}, "tags": ["new", {"a": 1, "b": 2}], "price": 12.50, "note": null}`)},
		fastpubsub.NewMessage{Payload: []byte(`{"id": 2, "who": {"name": "Bob <b@example.com>"}}`), Attributes: map[string]string{"kind": "gift", "lang": "en"}},
		fastpubsub.NewMessage{Payload: []byte(`{"id": 12345678901234567890}`)})
	if err != nil {
		t.Fatal(err)
	}
	type person struct {
		Name string `json:"name"`
	}
	for _, tc := range []struct {
		reason string
		match  fastpubsubtest.Match
		want   int // matching
		says   []string
	}{
		{"all", fastpubsubtest.Match{}, 3, nil},
		{"a part of it", fastpubsubtest.Match{Payload: map[string]any{"who": person{"Ann"}}}, 1, nil},
		{"text", fastpubsubtest.Match{Payload: `{"id": 2}`}, 1, nil},
		{"bytes", fastpubsubtest.Match{Payload: []byte(`{"id": 2}`)}, 1, nil},
		{"a message's payload", fastpubsubtest.Match{Payload: fastpubsub.JSON(map[string]int{"id": 2})}, 1, nil},
		{"numbers by value", fastpubsubtest.Match{Payload: `{"price": 1.25e1}`}, 1, nil},
		{"large numbers exactly", fastpubsubtest.Match{Payload: `{"id": 12345678901234567891}`}, 0,
			[]string{"id is 12345678901234567890, want 12345678901234567891"}},
		{"null is there", fastpubsubtest.Match{Payload: `{"note": null}`}, 1, []string{"note is missing, want null"}},
		{"objects in arrays", fastpubsubtest.Match{Payload: `{"tags": ["new", {"b": 2}]}`}, 1, nil},
		{"arrays whole", fastpubsubtest.Match{Payload: `{"tags": ["new"]}`}, 0, []string{"tags has 2 elements, want 1"}},
		{"elements", fastpubsubtest.Match{Payload: `{"tags": ["new", {"b": 3}]}`}, 0, []string{"tags[1].b is 2, want 3"}},
		{"types", fastpubsubtest.Match{Payload: `{"id": "1"}`}, 0, []string{`id is 1, want "1"`}},
		{"an object for a string", fastpubsubtest.Match{Payload: `{"who": "Ann"}`}, 0, []string{`who is {"age":40,"name":"Ann"}, want "Ann"`}},
		{"a string for an object", fastpubsubtest.Match{Payload: `{"who": {"name": {}}}`}, 0, []string{`who.name is "Bob <b@example.com>", want {}`}},
		{"attributes", fastpubsubtest.Match{Attributes: map[string]string{"kind": "gift"}}, 1, nil},
		{"another attribute", fastpubsubtest.Match{Attributes: map[string]string{"kind": "sale"}}, 0,
			[]string{`with attributes {"kind":"sale"}`, `attribute "kind" is missing`, `attribute "kind" is "gift", want "sale"`, `attributes {"kind":"gift","lang":"en"}`}},
		{"a function", fastpubsubtest.Match{Func: func(p fastpubsubtest.Published) bool { return p.Attributes["lang"] == "en" }}, 1, []string{"Func returns false"}},
		{"all of it together", fastpubsubtest.Match{Payload: `{"id": 1}`, Attributes: map[string]string{"kind": "gift"}}, 0, nil},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			exactly, none := tc.match, tc.match
			exactly.Count = tc.want + 1
			said := fake(t.Name(), func(t testing.TB) { kit.RequirePublished(t, "orders", exactly) })
			mustSay(t, said, tc.says...)
			mustSay(t, said, `published to "orders": `, ` messages match, want exactly `, "These are in the topic:", `{"id": 12345678901234567890}`,
				`Topic "invoices" has 0.`, "Only what was committed is seen")
			if tc.want == 0 {
				kit.RequireNotPublished(t, "orders", none)
				mustSay(t, fake(t.Name(), func(t testing.TB) { kit.RequirePublished(t, "orders", none) }), `0 messages match, want at least 1`)
				return
			}
			exactly.Count = tc.want
			if got := kit.RequirePublished(t, "orders", exactly); len(got) != tc.want {
				t.Errorf("it returned %d messages", len(got))
			}
			kit.RequirePublished(t, "orders", tc.match)
			mustSay(t, fake(t.Name(), func(t testing.TB) { kit.RequireNotPublished(t, "orders", none) }), ` messages match, want none`, "matches")
		})
	}
}

func TestRequirePublishedRefuses(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	for _, tc := range []struct {
		reason string
		topic  string
		match  fastpubsubtest.Match
		none   bool
		says   []string
	}{
		{"nothing there", "orders", fastpubsubtest.Match{}, false, []string{`0 messages match, want at least 1`, "There are no messages in the topic."}},
		{"no topic", "order", fastpubsubtest.Match{}, false, []string{`There is no topic "order".`, `Topic "orders" has 0.`}},
		{"no topic, and nothing wanted", "order", fastpubsubtest.Match{}, true, []string{`There is no topic "order".`}},
		{"not an object", "orders", fastpubsubtest.Match{Payload: 7}, false, []string{"Match.Payload: "}},
		{"not JSON", "orders", fastpubsubtest.Match{Payload: "{"}, false, []string{"Match.Payload: "}},
		{"no value for JSON", "orders", fastpubsubtest.Match{Payload: func() {}}, false, []string{"Match.Payload: json: unsupported type"}},
		{"a negative count", "orders", fastpubsubtest.Match{Count: -1}, false, []string{"Match.Count must be at least 0, not -1"}},
		{"a count of nothing", "orders", fastpubsubtest.Match{Count: 1}, true, []string{"Match.Count must be 0 where nothing is to be published, not 1"}},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			t.Parallel()
			mustSay(t, fake(t.Name(), func(t testing.TB) {
				if tc.none {
					kit.RequireNotPublished(t, tc.topic, tc.match)
				} else {
					kit.RequirePublished(t, tc.topic, tc.match)
				}
			}), tc.says...)
		})
	}
	t.Run("an aborted transaction", func(t *testing.T) {
		tx, err := kit.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if _, err := tx.Exec(t.Context(), "SELECT 1/0"); err == nil {
			t.Fatal("no error")
		}
		mustSay(t, fake(t.Name(), func(t testing.TB) { kit.RequirePublishedTx(t, tx, "orders", fastpubsubtest.Match{}) }),
			"what was published could not be read", "aborted")
	})
}
