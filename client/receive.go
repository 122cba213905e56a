package client

import (
	"context"
	"iter"

	"github.com/fastpubsub/fastpubsub"
)

var _ fastpubsub.Source = (*Client)(nil)

// Receive hands the messages of a subscription to a handler until ctx ends, as [fastpubsub.Broker.Receive] does, by the same code:
// messages are taken ahead, up to 100 in a request, acks and nacks are sent many at once, and ack deadlines are extended.
//
// A request waits for messages for a quarter of the ack deadline, up to 20 seconds: with one of less than 4 seconds it asks again
// and again instead. What is said about a ctx that ends while Consume waits holds here, too.
//
// While there is ErrUnavailable it tries again, at longer and longer intervals, and logs that it does. It returns what
// Broker.Receive returns, and ErrCredentials, ErrNoTokens, ErrToken or ErrScope when the client may no longer do that.
func (c *Client) Receive(ctx context.Context, subscriptionID string, handle fastpubsub.Handler, options fastpubsub.ReceiveOptions) error {
	return fastpubsub.ReceiveFrom(ctx, c, subscriptionID, handle, c.logged(options))
}

// Messages is [Client.Receive] for a loop that handles one message at a time, as [fastpubsub.Broker.Messages] is.
func (c *Client) Messages(ctx context.Context, subscriptionID string, options fastpubsub.ReceiveOptions) iter.Seq2[*fastpubsub.Received, error] {
	return fastpubsub.MessagesFrom(ctx, c, subscriptionID, c.logged(options))
}

func (c *Client) logged(options fastpubsub.ReceiveOptions) fastpubsub.ReceiveOptions {
	if options.Logger == nil {
		options.Logger = c.options.Logger
	}
	return options
}
