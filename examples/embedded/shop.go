package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/migrations"
)

// A shop is an application with tables of its own.
type shop struct {
	pool    *pgxpool.Pool
	broker  *fastpubsub.Broker
	schemas []string // of its own tables, and of fastpubsub's
}

// Nothing in emails_sent keeps a mail from being sent twice: if that happens, it shows.
const tables = `
CREATE TABLE stock       (item text PRIMARY KEY, pieces int CONSTRAINT enough_in_stock CHECK (pieces >= 0));
CREATE TABLE orders      (id bigint GENERATED ALWAYS AS IDENTITY, customer text, item text, pieces int);
CREATE TABLE emails_sent (order_id bigint, recipient text);
INSERT INTO stock VALUES ('mug', 5)`

const (
	topic        = "orders"
	subscription = "order-emails"
)

// openShop creates the tables, the topic and the subscription.
func openShop(ctx context.Context, url string) (_ *shop, err error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("the database URL cannot be read") // the error quotes it
	}
	name := "embedded_example_" + strings.ToLower(rand.Text()[:8])
	s := &shop{schemas: []string{name, name + "_pubsub"}}
	config.ConnConfig.RuntimeParams["search_path"] = name
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	// Of several statements in one Exec without arguments all take effect, or none.
	if _, err := s.pool.Exec(ctx, "CREATE SCHEMA "+name+";"+tables); err != nil {
		return nil, err
	}

	// This is all that it takes to embed fastpubsub. Migrating changes nothing where the schema is up to date, so it can
	// be done at each start.
	if err := migrations.Up(ctx, config.ConnConfig, s.schemas[1]); err != nil {
		return nil, err
	}
	if s.broker, err = fastpubsub.New(s.pool, fastpubsub.Config{Schema: s.schemas[1]}); err != nil {
		return nil, err
	}
	if _, err := s.broker.CreateTopic(ctx, topic); err != nil {
		return nil, err
	}
	_, err = s.broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: subscription, TopicID: topic})
	return s, err
}

// close drops everything.
func (s *shop) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var errs []error
	for _, name := range s.schemas {
		_, err := s.pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+name+" CASCADE")
		errs = append(errs, err)
	}
	s.pool.Close()
	return errors.Join(errs...)
}

// An order is a row of the shop's, and the payload of a message.
type order struct {
	ID       int64  `json:"id"`
	Customer string `json:"customer"`
	Item     string `json:"item"`
	Pieces   int    `json:"pieces"`
}

// place takes an order. The rows and the message are written in one transaction, so either all of them exist or none.
func (s *shop) place(ctx context.Context, o order) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		const insert = `INSERT INTO orders (customer, item, pieces) VALUES ($1, $2, $3) RETURNING id`
		if err := tx.QueryRow(ctx, insert, o.Customer, o.Item, o.Pieces).Scan(&o.ID); err != nil {
			return err
		}
		if _, err := s.broker.PublishTx(ctx, tx, topic, fastpubsub.JSON(o)); err != nil {
			return err
		}
		// It is published, and yet not: the constraint of this table still has its say.
		_, err := tx.Exec(ctx, `UPDATE stock SET pieces = pieces - $2 WHERE item = $1`, o.Item, o.Pieces)
		return err
	})
}

// consume takes what the subscription has, for a worker. Each message gets a lease of its own, because each is acked in
// a transaction of its own.
func (s *shop) consume(ctx context.Context, worker string) ([]fastpubsub.Message, error) {
	return s.broker.Consume(ctx, subscription, fastpubsub.ConsumeOptions{Consumer: worker, Single: true})
}

// errNotOurs means that the message was handled before.
var errNotOurs = errors.New("somebody else has handled the message")

// A stage is a place in handle where a test may let something happen.
type stage string

const (
	afterWrite stage = "between the write and the ack"
	afterAck   stage = "between the ack and the commit"
)

// handle mails the customer of an order. The row that it writes and the ack are one transaction: a worker that dies in
// it has done nothing, and one that comes late does nothing. at, unless it is nil, is called at each stage.
func (s *shop) handle(ctx context.Context, msg fastpubsub.Message, at func(stage, pgx.Tx)) error {
	if at == nil {
		at = func(stage, pgx.Tx) {}
	}
	var o order
	if err := json.Unmarshal(msg.Payload, &o); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		const insert = `INSERT INTO emails_sent (order_id, recipient) VALUES ($1, $2)`
		if _, err := tx.Exec(ctx, insert, o.ID, o.Customer); err != nil {
			return err
		}
		at(afterWrite, tx)

		// The count is the fence: a message is acked by one transaction only.
		n, err := s.broker.AckTx(ctx, tx, subscription, []fastpubsub.ID{msg.ID})
		if err != nil {
			return err
		}
		if n != 1 {
			return fmt.Errorf("message of order %d: %w", o.ID, errNotOurs)
		}
		at(afterAck, tx)
		return nil
	})
}
