// Command curl serves the REST API and has consume.sh consume from it, a consumer in a few lines of shell, with jq and without.
//
//	go run ./examples/curl
package main

import (
	"context"
	_ "embed"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

func main() { demo.Main(example) }

//go:embed consume.sh
var script string

func example(ctx context.Context, db demo.DB) error {
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		return err
	}
	if _, err := broker.CreateTopic(ctx, "orders"); err != nil {
		return err
	}
	server := httptest.NewServer(httpapi.New(broker, httpapi.Config{}))
	defer server.Close()

	// Without jq: a PATH that has the other programs only.
	path, err := os.MkdirTemp("", "fastpubsub-curl-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(path)
	for _, name := range []string{"curl", "sed", "tr", "uname"} {
		program, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		if err := os.Symlink(program, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	if err := consume(ctx, broker, server.URL, "without-jq", path); err != nil {
		return err
	}
	if _, err := exec.LookPath("jq"); err != nil {
		fmt.Println("no jq to try it with")
		return nil
	}
	return consume(ctx, broker, server.URL, "with-jq", os.Getenv("PATH"))
}

// consume runs the script for a new subscription.
func consume(ctx context.Context, broker *fastpubsub.Broker, api, subscription, path string) error {
	_, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: subscription, TopicID: "orders",
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 1}})
	if err != nil {
		return err
	}
	for _, payload := range []string{
		`{"item":"mug","id":"a-17"}`,
		`{"item":"cup, broken"}`,
		`{"item":"spoon \\ \"silver\"","delivery_attempts":3}`,
	} {
		msg := fastpubsub.NewMessage{Payload: []byte(payload), Attributes: map[string]string{"delivery_attempts": "many"}}
		if _, err := broker.Publish(ctx, "orders", msg); err != nil {
			return err
		}
	}

	fmt.Printf("consume.sh %s:\n", subscription)
	shell := exec.CommandContext(ctx, "/bin/sh", "-s", subscription, "1")
	shell.Stdin, shell.Stdout, shell.Stderr = strings.NewReader(script), os.Stdout, os.Stderr
	shell.Env = append(os.Environ(), "API="+api, "PATH="+path)
	if err := shell.Run(); err != nil {
		return fmt.Errorf("consume.sh: %w", err)
	}
	m, err := broker.Metrics(ctx, subscription)
	if err != nil {
		return err
	}
	fmt.Printf("acked %d, dead letters %d\n", m.Acked, m.DeadLetters)
	if m != (fastpubsub.Metrics{Acked: 2, DeadLetters: 1}) {
		return fmt.Errorf("the counts are %+v", m)
	}
	return nil
}
