package fastpubsub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// NotificationSettings say how [Broker.Run] tells other processes that there are messages, and hears of it from them.
type NotificationSettings struct {
	// Off leaves it to polling: Run then neither listens nor notifies.
	Off bool

	// Listen is where Run opens the one connection that it listens on. Default as the pool does. It must be the same database,
	// and a session of its own: where the pool goes through PgBouncer in transaction mode, an address around that.
	Listen *pgx.ConnConfig
}

const (
	notifySpacing    = 5 * time.Millisecond // between two notifications
	notifyTimeout    = 5 * time.Second
	maxNotification  = 7_900  // bytes; the server's limit is 8,000
	maxWatched       = 10_000 // transactions; polls find the others
	watchPauseFrom   = 2 * time.Millisecond
	watchPauseUpTo   = 200 * time.Millisecond
	connectTimeout   = 10 * time.Second
	probeTimeout     = 5 * time.Second // for a notification to ourselves
	probeInterval    = time.Minute
	peerTimeout      = 3 * probeInterval // a process that is not heard for so long does not listen any more
	helloTimeout     = time.Second       // for those who listen to answer one who begins to
	reconnectFrom    = 250 * time.Millisecond
	reconnectUpTo    = 30 * time.Second
	maxIdentifier    = 63
	notifyTopic      = 't'
	notifySubscriber = 's'
	notifyHello      = 'h'
)

// notifyChannel is where the brokers of one schema meet.
func notifyChannel(schema string) string {
	channel := "fastpubsub:" + schema
	if len(channel) > maxIdentifier {
		sum := sha256.Sum256([]byte(schema))
		channel = "fastpubsub:" + hex.EncodeToString(sum[:16])
	}
	return channel
}

// news is what other processes are to know.
type news struct {
	topics        map[string]int // to how many messages
	subscriptions map[string]struct{}
	hello         bool // the sender begins to listen, and wants to know who else does
	present       bool // an answer to that
}

func (n *news) publish(topicID string, messages int) {
	if n.topics == nil {
		n.topics = map[string]int{}
	}
	n.topics[topicID] += messages
}

func (n *news) change(subscriptionID string) {
	if n.subscriptions == nil {
		n.subscriptions = map[string]struct{}{}
	}
	n.subscriptions[subscriptionID] = struct{}{}
}

func (n *news) empty() bool {
	return len(n.topics) == 0 && len(n.subscriptions) == 0 && !n.hello && !n.present
}

// payloads are the notifications that say it: a line for the sender, then one for each id. Ids have no spaces. That of one who is
// only present has no more than the sender.
func (n *news) payloads(sender string) []string {
	var all []string
	var text strings.Builder
	add := func(line string) {
		if text.Len() > 0 && text.Len()+len(line) > maxNotification {
			all = append(all, text.String())
			text.Reset()
		}
		if text.Len() == 0 {
			text.WriteString(sender)
		}
		text.WriteString(line)
	}
	if n.hello {
		add(fmt.Sprintf("\n%c -", notifyHello))
	}
	for id, messages := range n.topics {
		add(fmt.Sprintf("\n%c%d %s", notifyTopic, messages, id))
	}
	for id := range n.subscriptions {
		add(fmt.Sprintf("\n%c %s", notifySubscriber, id))
	}
	add("")
	return append(all, text.String())
}

// parseNews is the reverse of payloads. What it does not understand, of a newer version perhaps, it leaves out.
func parseNews(payload string) (sender string, n news) {
	sender, lines, _ := strings.Cut(payload, "\n")
	for line := range strings.Lines(lines) {
		head, id, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || head == "" {
			continue
		}
		switch head[0] {
		case notifyTopic:
			if messages, err := strconv.Atoi(head[1:]); err == nil && messages > 0 {
				n.publish(id, messages)
			}
		case notifySubscriber:
			n.change(id)
		case notifyHello:
			n.hello = true
		}
	}
	return sender, n
}

// A notifier tells other processes what happened in this one, while it runs: after the commit, and of much that comes at
// once in one notification. pg_notify in a publishing transaction would have all of those commit one after the other.
//
// While it listens it knows who else does, and says nothing while nobody does: who begins to listen says hello, and is answered;
// later each is heard once a minute. What was committed before somebody was known to listen he finds by the look that
// follows the answer.
type notifier struct {
	sender  string      // this Broker
	running atomic.Bool // by one Run

	mu      sync.Mutex // protects the rest
	news    news
	watched map[int64]*news // transactions of callers, and what they have published
	fresh   bool            // one of these came since they were looked at
	kick    chan struct{}

	peers     map[string]time.Time // who else listens, by sender, and when he was last heard
	aloneFrom time.Time            // from when on nobody else listens if there are no peers; zero while we do not
}

func newNotifier() *notifier {
	return &notifier{sender: rand.Text(), watched: map[int64]*news{}, peers: map[string]time.Time{}, kick: make(chan struct{}, 1)}
}

func (n *notifier) add(do func(*news)) {
	if !n.running.Load() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.alone() {
		return
	}
	do(&n.news)
	n.nudge()
}

// alone says whether nobody else listens.
func (n *notifier) alone() bool {
	return len(n.peers) == 0 && !n.aloneFrom.IsZero() && !time.Now().Before(n.aloneFrom)
}

// hears says that we have begun to listen, or do not any more. Others are known from when they have answered.
func (n *notifier) hears(yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.aloneFrom = (time.Time{}); yes {
		n.aloneFrom = time.Now().Add(helloTimeout)
	}
}

// heard notes a peer, and returns whether it is a new one.
func (n *notifier) heard(sender string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, known := n.peers[sender]
	n.peers[sender] = time.Now()
	return !known
}

// forget removes the peers that have not been heard for a time.
func (n *notifier) forget(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.peers, func(_ string, last time.Time) bool { return time.Since(last) >= d })
}

func (n *notifier) nudge() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// watch makes published known what was published in a transaction, when that has ended.
func (n *notifier) watch(xid int64, topicID string, messages int) {
	if !n.running.Load() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watched[xid] == nil {
		if len(n.watched) >= maxWatched {
			return
		}
		n.watched[xid] = &news{}
	}
	n.watched[xid].publish(topicID, messages)
	n.fresh = true
	n.nudge()
}

// published wakes those who wait for messages that have been committed.
func (b *Broker) published(topicID string, messages int) {
	b.waits.published(topicID, messages)
	b.notifier.add(func(n *news) { n.publish(topicID, messages) })
}

// publishedIn is published for when a transaction of the caller's has committed.
func (b *Broker) publishedIn(tx pgx.Tx, topicID string, ids []ID) {
	if announced, ok := tx.(*announcedTx); ok && announced.b == b {
		announced.news.publish(topicID, len(ids))
		return
	}
	if xid, _, ok := ids[0].position(); ok {
		b.notifier.watch(xid, topicID, len(ids))
	}
}

// changed says that messages of a subscription are due now, or become so.
func (b *Broker) changed(subscriptionID string) {
	b.waits.changed(subscriptionID)
	b.notifier.add(func(n *news) { n.change(subscriptionID) })
}

// An announcedTx is a transaction whose end we see.
type announcedTx struct {
	pgx.Tx
	b    *Broker
	news news
}

// InTx runs do in a transaction of the pool, commits if do returns nil, and then wakes consumers at once for what was
// published by PublishTx with this tx. It rolls back if do returns an error, which it returns as it is, or panics.
//
// Any transaction will do for PublishTx; see there how consumers hear of others. When ctx is cancelled during the commit, that
// may have happened all the same.
func (b *Broker) InTx(ctx context.Context, options pgx.TxOptions, do func(tx pgx.Tx) error) error {
	tx, err := b.pool.BeginTx(ctx, options)
	if err != nil {
		return err
	}
	announced := &announcedTx{Tx: tx, b: b}
	defer func() { // after a panic, too
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), notifyTimeout)
		defer cancel()
		_ = tx.Rollback(ctx) // pgx.ErrTxClosed after a commit; what else goes wrong closes the connection
	}()
	if err := do(announced); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	announced.committed()
	return nil
}

func (tx *announcedTx) committed() {
	for id, messages := range tx.news.topics {
		tx.b.published(id, messages)
	}
}

// notify sends what there is to say until ctx ends.
func (b *Broker) notify(ctx context.Context) {
	n := b.notifier
	var lastSent time.Time
	pause := watchPauseFrom
	for {
		n.mu.Lock()
		watching := len(n.watched) > 0
		if n.fresh {
			n.fresh, pause = false, watchPauseFrom
		}
		n.mu.Unlock()
		var look <-chan time.Time
		if watching {
			look = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.kick:
			if sleep(ctx, notifySpacing-time.Since(lastSent)) != nil {
				return
			}
		case <-look:
			pause = min(2*pause, watchPauseUpTo)
			b.lookAtWatched(ctx)
		}
		n.mu.Lock()
		said := n.news
		n.news = news{}
		n.mu.Unlock()
		if said.empty() {
			continue
		}
		lastSent = time.Now()
		if err := b.sendNews(ctx, said.payloads(n.sender)); err != nil && ctx.Err() == nil {
			b.logger.LogAttrs(ctx, slog.LevelDebug, "notification failed, other processes will find out by polling", slog.Any("error", err))
		}
	}
}

// lookAtWatched makes known what has been committed meanwhile.
func (b *Broker) lookAtWatched(ctx context.Context) {
	n := b.notifier
	n.mu.Lock()
	xids := make([]int64, 0, len(n.watched))
	for xid := range n.watched {
		xids = append(xids, xid)
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	finished, err := b.store.FinishedTransactions(ctx, b.pool, xids)
	if err != nil {
		return // the next look comes
	}
	for _, xid := range finished {
		n.mu.Lock()
		what := n.watched[xid]
		delete(n.watched, xid)
		n.mu.Unlock()
		for id, messages := range what.topics {
			b.published(id, messages)
		}
	}
}

func (b *Broker) sendNews(ctx context.Context, payloads []string) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	return b.store.Notify(ctx, b.pool, b.channel, payloads)
}

// Listening says how this Broker's consumers hear of messages from other processes: by notifications, while [Broker.Run] has a
// connection that they arrive on; else by polling.
func (b *Broker) Listening() bool { return b.waits.isListening() }

// listen hears what other processes have to say until ctx ends. Each change of how consumers are woken is logged.
func (b *Broker) listen(ctx context.Context) {
	pause := reconnectFrom
	for first := true; ; first = false {
		err := b.listenOnce(ctx)
		was := b.waits.isListening()
		if was {
			b.waits.setListening(false)
			pause = reconnectFrom
		}
		if ctx.Err() != nil {
			return
		}
		level := slog.LevelDebug
		if was || first {
			level = slog.LevelWarn
		}
		b.logger.LogAttrs(ctx, level, "notifications do not arrive, consumers are woken by polling until they do", slog.Any("error", err))
		if sleep(ctx, pause/2+mathrand.N(pause)) != nil {
			return
		}
		pause = min(2*pause, reconnectUpTo)
	}
}

// errNoNotification means that we do not hear ourselves.
var errNoNotification = errors.New("a notification that was sent did not arrive: listening needs a connection of its own to the " +
	"same database, not that of a pooler in transaction mode")

// listenOnce hears what is said on one connection. A notification to itself, through the pool as the others', proves now and
// then that the connection is alive and leads to where the pool does.
func (b *Broker) listenOnce(ctx context.Context) error {
	conn, err := b.connectToListen(ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{b.channel}.Sanitize(), pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	b.notifier.forget(0)
	defer b.notifier.hears(false)
	said := news{hello: true}
	for probe := time.Now(); ; {
		if !time.Now().Before(probe) {
			if err := b.sendNews(ctx, said.payloads(b.notifier.sender)); err != nil {
				return err
			}
			if err := b.hear(ctx, conn, probeTimeout, true); err != nil {
				return err
			}
			probe = time.Now().Add(probeInterval)
			said = news{present: true}
			b.notifier.forget(peerTimeout)
			if !b.waits.isListening() {
				b.notifier.hears(true)
				b.waits.setListening(true)
				b.logger.LogAttrs(ctx, slog.LevelInfo, "listening for notifications", slog.String("channel", b.channel))
			}
		}
		if err := b.hear(ctx, conn, time.Until(probe), false); err != nil {
			return err
		}
	}
}

// hear passes on what is said for a time, or until a message of our own comes. That is an error if it must and does not.
func (b *Broker) hear(ctx context.Context, conn *pgx.Conn, d time.Duration, ourselves bool) error {
	during, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		notification, err := conn.WaitForNotification(during)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && during.Err() != nil && pgconn.Timeout(err) && !conn.IsClosed():
			if ourselves {
				return errNoNotification
			}
			return nil
		case err != nil:
			return err
		}
		sender, said := parseNews(notification.Payload)
		if sender == b.notifier.sender {
			if ourselves {
				return nil
			}
			continue
		}
		if b.notifier.heard(sender) {
			b.waits.lookAtAll() // he may have published before he knew that we listen
		}
		if said.hello {
			b.notifier.add(func(n *news) { n.present = true })
		}
		for id, messages := range said.topics {
			b.waits.published(id, messages)
		}
		for id := range said.subscriptions {
			b.waits.changed(id)
		}
	}
}

func (b *Broker) connectToListen(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if b.notifications.Listen != nil {
		return pgx.ConnectConfig(ctx, b.notifications.Listen.Copy())
	}
	poolConfig := b.pool.Config()
	config := poolConfig.ConnConfig.Copy()
	if poolConfig.BeforeConnect != nil { // passwords that change, for example
		if err := poolConfig.BeforeConnect(ctx, config); err != nil {
			return nil, err
		}
	}
	return pgx.ConnectConfig(ctx, config)
}
