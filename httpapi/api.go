// Package httpapi serves a broker as a REST API.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/fastpubsub/fastpubsub"
)

// A Broker is what the API needs of a [fastpubsub.Broker].
type Broker interface {
	CreateTopic(ctx context.Context, id string) (fastpubsub.Topic, error)
	GetTopic(ctx context.Context, id string) (fastpubsub.Topic, error)
	ListTopics(ctx context.Context, options fastpubsub.ListOptions) ([]fastpubsub.Topic, error)
	DeleteTopic(ctx context.Context, id string) error

	CreateSubscription(ctx context.Context, sub fastpubsub.Subscription) (fastpubsub.Subscription, error)
	GetSubscription(ctx context.Context, id string) (fastpubsub.Subscription, error)
	ListSubscriptions(ctx context.Context, options fastpubsub.ListOptions) ([]fastpubsub.Subscription, error)
	DeleteSubscription(ctx context.Context, id string) error

	Publish(ctx context.Context, topicID string, msgs ...fastpubsub.NewMessage) ([]fastpubsub.ID, error)
	Consume(ctx context.Context, subscriptionID string, options fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error)
	Ack(ctx context.Context, subscriptionID string, ids []fastpubsub.ID) (int, error)
	Nack(ctx context.Context, subscriptionID string, deliveries []fastpubsub.Delivery, options fastpubsub.NackOptions) (int, error)
	Extend(ctx context.Context, subscriptionID string, deliveries []fastpubsub.Delivery, ackDeadline time.Duration) (int, error)

	DeadLetters(ctx context.Context, subscriptionID string, options fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error)
	Reprocess(ctx context.Context, subscriptionID string, ids []fastpubsub.ID) (int, error)
	Metrics(ctx context.Context, subscriptionID string) (fastpubsub.Metrics, error)

	CreateClient(ctx context.Context, c fastpubsub.NewClient) (fastpubsub.Client, fastpubsub.Secret, error)
	GetClient(ctx context.Context, id uuid.UUID) (fastpubsub.Client, error)
	ListClients(ctx context.Context, options fastpubsub.ListOptions) ([]fastpubsub.Client, error)
	UpdateClient(ctx context.Context, id uuid.UUID, update fastpubsub.ClientUpdate) (fastpubsub.Client, error)
	DeleteClient(ctx context.Context, id uuid.UUID) error
	IssueToken(ctx context.Context, clientID string, secret fastpubsub.Secret, scopes fastpubsub.Scopes) (fastpubsub.Token, error)
	CheckToken(ctx context.Context, token fastpubsub.Secret) (fastpubsub.Caller, error)

	Check(ctx context.Context) error
}

// Config is the settings of an [API]. The zero Config is a good one.
type Config struct {
	// Logger gets a line for each request: at level Error for an answer of 500, Warn for other answers above it, Debug
	// for the rest. Default slog.Default().
	Logger *slog.Logger

	// MaxBodyBytes is the size of the largest request body. Default 16 MiB.
	MaxBodyBytes int64

	// PublishMaxMessages is how many messages one request may publish. Default 10,000, which is also the most that a
	// broker takes.
	PublishMaxMessages int

	// AnswerTimeout is how long a client may take to read an answer with messages. Default 30 seconds.
	AnswerTimeout time.Duration

	// Check is what readiness asks. Default the broker's Check; one with connections of its own also answers while all of
	// the broker's are in use.
	Check func(context.Context) error
	// Registerer gets the metrics of the API: README.md lists them. New panics if it has such metrics already, those of
	// another API for example; prometheus.WrapRegistererWith tells two apart. Default: a registry for this API alone.
	Registerer prometheus.Registerer

	// Gatherer is what GET /metrics shows. Default: the Registerer, if it is a registry, else prometheus.DefaultGatherer.
	Gatherer prometheus.Gatherer

	// DisableDocs leaves out /openapi.json and the pages that show it, /docs and /redoc.
	DisableDocs bool

	// AckMaxIDs is how many messages one request may ack, nack, extend or reprocess. Default 1,000; a broker takes 10,000.
	AckMaxIDs int

	// Authenticate is whether callers need a token: on all routes but health and POST /oauth/token, which issues them. The broker
	// must have a key for tokens then; with none nobody gets in. Each request with a token reads its client's row. What began
	// before a token expired or was revoked is finished, a wait for messages too.
	Authenticate bool

	// Debug adds the cause to answers of 500. Causes may have ids and parts of statements in them.
	Debug bool
}

// Limits that clients see.
const (
	defaultMaxBodyBytes       = 16 << 20
	defaultPublishMaxMessages = 10_000
	defaultAckMaxIDs          = 1_000

	maxListLimit          = 100
	defaultListLimit      = 10
	maxBatchSize          = 100
	defaultBatchSize      = 10
	maxWaitSeconds        = 30
	maxAckDeadlineSeconds = 12 * 60 * 60
	maxDelaySeconds       = 366 * 24 * 60 * 60
	maxConsumerLength     = 128
	maxNameLength         = 256
	maxTokenBodyBytes     = 16 << 10 // of a request that anybody may send
)

// Limits of time.
const (
	defaultAnswerTimeout = 30 * time.Second
	// requestTimeout is for the body and the database together. It is for a database that hangs: a client that has had
	// enough ends its request sooner.
	requestTimeout = 90 * time.Second
	// giveBackTimeout is for giving messages back that nobody was there to take.
	giveBackTimeout = 5 * time.Second
	// checkTimeout keeps the answer of readiness within 2 seconds.
	checkTimeout = 1500 * time.Millisecond
)

// An API is the handler of all routes. It is safe for concurrent use.
type API struct {
	broker  Broker
	config  Config
	handler http.Handler

	checks singleflight.Group // of readiness: one at a time, however many ask

	waits      context.Context // ended by EndWaits
	endWaits   context.CancelFunc
	requests   *requestMetrics
	exposition http.Handler // of GET /metrics

}

// New returns the API of a broker.
func New(broker Broker, config Config) *API {
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.MaxBodyBytes <= 0 {
		config.MaxBodyBytes = defaultMaxBodyBytes
	}
	if config.PublishMaxMessages <= 0 {
		config.PublishMaxMessages = defaultPublishMaxMessages
	}
	if config.AckMaxIDs <= 0 {
		config.AckMaxIDs = defaultAckMaxIDs
	}
	if config.AnswerTimeout <= 0 {
		config.AnswerTimeout = defaultAnswerTimeout
	}
	if config.Check == nil {
		config.Check = func(ctx context.Context) error { return broker.Check(ctx) }
	}
	a := &API{broker: broker, config: config}
	a.waits, a.endWaits = context.WithCancel(context.Background())
	a.registerMetrics()
	a.handler = a.chain(a.router())
	return a
}

// ServeHTTP implements [http.Handler].
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }

// EndWaits makes consumers that wait for messages go away with an empty answer, now and in future. It is for
// [http.Server.RegisterOnShutdown], since Shutdown waits for them. It may be called more than once.
func (a *API) EndWaits() { a.endWaits() }
