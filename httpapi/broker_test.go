package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
)

// A broker is a fake. What is nil panics when called, so a test names all that it expects.
type broker struct {
	createTopic        func(string) (fastpubsub.Topic, error)
	getTopic           func(string) (fastpubsub.Topic, error)
	listTopics         func(fastpubsub.ListOptions) ([]fastpubsub.Topic, error)
	deleteTopic        func(string) error
	createSubscription func(fastpubsub.Subscription) (fastpubsub.Subscription, error)
	getSubscription    func(string) (fastpubsub.Subscription, error)
	listSubscriptions  func(fastpubsub.ListOptions) ([]fastpubsub.Subscription, error)
	deleteSubscription func(string) error
	publish            func(string, []fastpubsub.NewMessage) ([]fastpubsub.ID, error)
	consume            func(context.Context, string, fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error)
	ack                func(string, []fastpubsub.ID) (int, error)
	nack               func(string, []fastpubsub.Delivery, fastpubsub.NackOptions) (int, error)
	extend             func(string, []fastpubsub.Delivery, time.Duration) (int, error)
	deadLetters        func(string, fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error)
	reprocess          func(string, []fastpubsub.ID) (int, error)
	metrics            func(string) (fastpubsub.Metrics, error)
	createClient       func(fastpubsub.NewClient) (fastpubsub.Client, fastpubsub.Secret, error)
	getClient          func(uuid.UUID) (fastpubsub.Client, error)
	listClients        func(fastpubsub.ListOptions) ([]fastpubsub.Client, error)
	updateClient       func(uuid.UUID, fastpubsub.ClientUpdate) (fastpubsub.Client, error)
	deleteClient       func(uuid.UUID) error
	issueToken         func(string, fastpubsub.Secret, fastpubsub.Scopes) (fastpubsub.Token, error)
	checkToken         func(fastpubsub.Secret) (fastpubsub.Caller, error)
	check              func(context.Context) error
}

func (b *broker) CreateTopic(_ context.Context, id string) (fastpubsub.Topic, error) {
	return b.createTopic(id)
}
func (b *broker) GetTopic(_ context.Context, id string) (fastpubsub.Topic, error) {
	return b.getTopic(id)
}
func (b *broker) ListTopics(_ context.Context, o fastpubsub.ListOptions) ([]fastpubsub.Topic, error) {
	return b.listTopics(o)
}
func (b *broker) DeleteTopic(_ context.Context, id string) error { return b.deleteTopic(id) }
func (b *broker) CreateSubscription(_ context.Context, s fastpubsub.Subscription) (fastpubsub.Subscription, error) {
	return b.createSubscription(s)
}
func (b *broker) GetSubscription(_ context.Context, id string) (fastpubsub.Subscription, error) {
	return b.getSubscription(id)
}
func (b *broker) ListSubscriptions(_ context.Context, o fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) {
	return b.listSubscriptions(o)
}
func (b *broker) DeleteSubscription(_ context.Context, id string) error {
	return b.deleteSubscription(id)
}
func (b *broker) Publish(_ context.Context, id string, msgs ...fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
	return b.publish(id, msgs)
}
func (b *broker) Consume(ctx context.Context, id string, o fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
	return b.consume(ctx, id, o)
}
func (b *broker) Ack(_ context.Context, id string, ids []fastpubsub.ID) (int, error) {
	return b.ack(id, ids)
}
func (b *broker) Nack(_ context.Context, id string, ds []fastpubsub.Delivery, o fastpubsub.NackOptions) (int, error) {
	return b.nack(id, ds, o)
}
func (b *broker) Extend(_ context.Context, id string, ds []fastpubsub.Delivery, d time.Duration) (int, error) {
	return b.extend(id, ds, d)
}
func (b *broker) DeadLetters(_ context.Context, id string, o fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error) {
	return b.deadLetters(id, o)
}
func (b *broker) Reprocess(_ context.Context, id string, ids []fastpubsub.ID) (int, error) {
	return b.reprocess(id, ids)
}
func (b *broker) Metrics(_ context.Context, id string) (fastpubsub.Metrics, error) {
	return b.metrics(id)
}
func (b *broker) CreateClient(_ context.Context, c fastpubsub.NewClient) (fastpubsub.Client, fastpubsub.Secret, error) {
	return b.createClient(c)
}
func (b *broker) GetClient(_ context.Context, id uuid.UUID) (fastpubsub.Client, error) {
	return b.getClient(id)
}
func (b *broker) ListClients(_ context.Context, o fastpubsub.ListOptions) ([]fastpubsub.Client, error) {
	return b.listClients(o)
}
func (b *broker) UpdateClient(_ context.Context, id uuid.UUID, u fastpubsub.ClientUpdate) (fastpubsub.Client, error) {
	return b.updateClient(id, u)
}
func (b *broker) DeleteClient(_ context.Context, id uuid.UUID) error { return b.deleteClient(id) }
func (b *broker) IssueToken(_ context.Context, id string, secret fastpubsub.Secret, s fastpubsub.Scopes) (fastpubsub.Token, error) {
	return b.issueToken(id, secret, s)
}
func (b *broker) CheckToken(_ context.Context, token fastpubsub.Secret) (fastpubsub.Caller, error) {
	return b.checkToken(token)
}
func (b *broker) Check(ctx context.Context) error { return b.check(ctx) }

var (
	created = time.Date(2025, 12, 29, 15, 30, 0, 0, time.UTC)
	topicT  = fastpubsub.Topic{ID: "t", CreatedAt: created}
	subS    = fastpubsub.Subscription{
		ID: "s", TopicID: "t", CreatedAt: created,
		SubscriptionSettings: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: 5, BackoffMin: 5 * time.Second, BackoffMax: 300 * time.Second, AckDeadline: time.Minute,
		},
	}
	message1 = mustID("550e8400-e29b-81d4-a716-446655440000")
	clientC  = fastpubsub.Client{
		ID: uuid.MustParse(anUUID), Name: "c", Scopes: fastpubsub.Scopes{"topics:read", "clients:read"}, Active: true, TokenVersion: 2,
		CreatedAt: created, UpdatedAt: created.Add(time.Second),
	}
)

const (
	anUUID = "01890a5d-ac96-774b-bcce-b302099a8057"

	wireC = `{"id":"` + anUUID + `","name":"c","scopes":"topics:read clients:read","is_active":true,"token_version":2,"created_at":"2025-12-29T15:30:00Z","updated_at":"2025-12-29T15:30:01Z"}`
	wireT = `{"id":"t","created_at":"2025-12-29T15:30:00Z"}`
	wireS = `{"id":"s","topic_id":"t","filter":null,"max_delivery_attempts":5,"backoff_min_seconds":5,"backoff_max_seconds":300,"ack_deadline_seconds":60,"created_at":"2025-12-29T15:30:00Z"}`
)

func mustID(s string) fastpubsub.ID {
	id, err := fastpubsub.ParseID(s)
	if err != nil {
		panic(err)
	}
	return id
}

// working is a broker with topic t, subscription s and one message.
func working() *broker {
	knows := func(id, known string) error {
		if id != known {
			return fmt.Errorf("%q: %w", id, fastpubsub.ErrNotFound)
		}
		return nil
	}
	return &broker{
		createTopic: func(id string) (fastpubsub.Topic, error) {
			if id == "taken" {
				return fastpubsub.Topic{}, fmt.Errorf("create: %w", fastpubsub.ErrExists)
			}
			return fastpubsub.Topic{ID: id, CreatedAt: created}, nil
		},
		getTopic:    func(id string) (fastpubsub.Topic, error) { return topicT, knows(id, "t") },
		listTopics:  func(fastpubsub.ListOptions) ([]fastpubsub.Topic, error) { return []fastpubsub.Topic{topicT}, nil },
		deleteTopic: func(id string) error { return knows(id, "t") },
		createSubscription: func(s fastpubsub.Subscription) (fastpubsub.Subscription, error) {
			if s.ID == "taken" {
				return s, fmt.Errorf("create: %w", fastpubsub.ErrExists)
			}
			full := subS
			full.ID, full.Filter = s.ID, s.Filter
			return full, knows(s.TopicID, "t")
		},
		getSubscription: func(id string) (fastpubsub.Subscription, error) { return subS, knows(id, "s") },
		listSubscriptions: func(fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) {
			return nil, nil
		},
		deleteSubscription: func(id string) error { return knows(id, "s") },
		publish: func(id string, msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
			return []fastpubsub.ID{message1}, knows(id, "t")
		},
		consume: func(_ context.Context, id string, _ fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
			return []fastpubsub.Message{{
				Delivery: fastpubsub.Delivery{ID: message1, DeliveryAttempts: 1}, SubscriptionID: "s", Payload: json.RawMessage(`{"a" : 1.0}`), CreatedAt: created,
			}}, knows(id, "s")
		},
		ack: func(id string, ids []fastpubsub.ID) (int, error) { return len(ids), knows(id, "s") },
		nack: func(id string, ds []fastpubsub.Delivery, _ fastpubsub.NackOptions) (int, error) {
			return len(ds), knows(id, "s")
		},
		extend: func(id string, ds []fastpubsub.Delivery, _ time.Duration) (int, error) {
			return len(ds), knows(id, "s")
		},
		deadLetters: func(id string, _ fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error) {
			m := fastpubsub.Message{Delivery: fastpubsub.Delivery{ID: message1, DeliveryAttempts: 5}, SubscriptionID: "s",
				Payload: json.RawMessage(`{"a" : 1.0}`), CreatedAt: created}
			explained := m
			explained.Attributes = map[string]string{"k": "v"}
			return []fastpubsub.DeadLetter{{Message: m, DeadAt: created}, {Message: explained, DeadAt: created, LastError: "a \"<b>\""}}, knows(id, "s")
		},
		reprocess: func(id string, ids []fastpubsub.ID) (int, error) { return len(ids), knows(id, "s") },
		metrics: func(id string) (fastpubsub.Metrics, error) {
			return fastpubsub.Metrics{Available: 150, Delayed: 3, Delivered: 25, Acked: 1000, DeadLetters: 5,
				OldestUnackedAge: 1500 * time.Millisecond}, knows(id, "s")
		},
		createClient: func(c fastpubsub.NewClient) (fastpubsub.Client, fastpubsub.Secret, error) {
			return fastpubsub.Client{ID: clientC.ID, Name: c.Name, Scopes: c.Scopes, Active: !c.Inactive}, "a1b2", nil
		},
		getClient: func(id uuid.UUID) (fastpubsub.Client, error) { return clientC, knows(id.String(), anUUID) },
		listClients: func(fastpubsub.ListOptions) ([]fastpubsub.Client, error) {
			return []fastpubsub.Client{clientC}, nil
		},
		updateClient: func(id uuid.UUID, u fastpubsub.ClientUpdate) (fastpubsub.Client, error) {
			c := clientC
			c.Name, c.Scopes = u.Name, u.Scopes
			if u.Active != nil {
				c.Active = *u.Active
			}
			return c, knows(id.String(), anUUID)
		},
		deleteClient: func(id uuid.UUID) error { return knows(id.String(), anUUID) },
		issueToken: func(id string, secret fastpubsub.Secret, scopes fastpubsub.Scopes) (fastpubsub.Token, error) {
			if id != anUUID || secret != "a1b2" {
				return fastpubsub.Token{}, fmt.Errorf("issue: %w", fastpubsub.ErrCredentials)
			}
			granted := clientC.Scopes
			if len(granted.Missing(scopes)) > 0 {
				return fastpubsub.Token{}, fmt.Errorf("issue: %w", fastpubsub.ErrScope)
			}
			if scopes != nil {
				granted = scopes
			}
			return fastpubsub.Token{AccessToken: "h.c.s", Lifetime: 30 * time.Minute, Scopes: granted}, nil
		},
		check: func(context.Context) error { return nil },
	}
}

// waiting is a broker whose Consume waits for ctx, and says when it does.
func waiting() (b *broker, started chan struct{}) {
	started = make(chan struct{}, 1)
	return &broker{consume: func(ctx context.Context, _ string, _ fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
		started <- struct{}{}
		<-ctx.Done()
		return nil, fmt.Errorf("consume: %w", ctx.Err())
	}}, started
}
