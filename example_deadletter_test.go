package fastpubsub_test

import (
	"fmt"

	"github.com/fastpubsub/fastpubsub"
)

func ExampleBroker_DeadLetters() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	killEmails(ctx, broker, "no address")

	letters, err := broker.DeadLetters(ctx, "emails", fastpubsub.ListOptions{Limit: 100})
	if err != nil {
		panic(err)
	}
	for _, letter := range letters {
		fmt.Println(string(letter.Payload), "attempts:", letter.DeliveryAttempts, "error:", letter.LastError)
	}
	// Output: {"order": 1} attempts: 1 error: no address
}

// When the cause is mended, dead letters are delivered once more, and have all their attempts again.
func ExampleBroker_Reprocess() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	killEmails(ctx, broker, "no address")

	letters, err := broker.DeadLetters(ctx, "emails", fastpubsub.ListOptions{})
	if err != nil {
		panic(err)
	}
	n, err := broker.Reprocess(ctx, "emails", []fastpubsub.ID{letters[0].ID})
	if err != nil {
		panic(err)
	}
	fmt.Println("reprocessed", n)
	for _, msg := range consumeEmails(ctx, broker) {
		fmt.Println(string(msg.Payload), "attempt", msg.DeliveryAttempts)
	}
	// Output:
	// reprocessed 1
	// {"order": 1} attempt 1
}

// What nobody wants any more is removed for good.
func ExampleBroker_Purge() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`, `{"order": 2}`)
	killEmails(ctx, broker, "no address")

	letters, err := broker.DeadLetters(ctx, "emails", fastpubsub.ListOptions{})
	if err != nil {
		panic(err)
	}
	n, err := broker.Purge(ctx, "emails", []fastpubsub.ID{letters[0].ID})
	if err != nil {
		panic(err)
	}
	fmt.Println("purged", n)
	letters, err = broker.DeadLetters(ctx, "emails", fastpubsub.ListOptions{})
	if err != nil {
		panic(err)
	}
	for _, letter := range letters {
		fmt.Println("left:", string(letter.Payload))
	}
	// Output:
	// purged 1
	// left: {"order": 2}
}
