package httpapi_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

// The benchmarks measure what the API adds to a broker: 100 messages of 200 bytes in a request, or 1; no network.
const (
	benchMessages = 100
	benchPayload  = `{"event":"order.created","order_id":"550e8400-e29b-41d4-a716-446655440000","customer":"customer@example.com","total":99.99,"items":[{"sku":"a-1","n":1},{"sku":"b-2","n":2}],"country":"BR","status":"completed"}`
)

func benchmark(b *testing.B, broker *broker, method, target, body string, status, messages int) {
	api := httpapi.New(broker, httpapi.Config{Logger: silent})
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		w := httptest.NewRecorder()
		w.Body = nil
		api.ServeHTTP(w, r)
		if w.Code != status {
			b.Fatalf("status %d", w.Code)
		}
		io.Copy(io.Discard, r.Body)
	}
	b.ReportMetric(float64(b.N*messages)/b.Elapsed().Seconds(), "msgs/s")
}

func BenchmarkPublish(b *testing.B) {
	body := "[" + strings.Repeat(benchPayload+",", benchMessages-1) + benchPayload + "]"
	benchmark(b, working(), "POST", "/topics/t/messages", body, 204, benchMessages)
}

func BenchmarkConsume(b *testing.B) {
	fake := working()
	msgs := make([]fastpubsub.Message, benchMessages)
	for i := range msgs {
		msgs[i] = fastpubsub.Message{Delivery: fastpubsub.Delivery{ID: message1, DeliveryAttempts: 1}, SubscriptionID: "s", Payload: json.RawMessage(benchPayload), CreatedAt: created}
	}
	fake.consume = func(context.Context, string, fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
		return msgs, nil
	}
	benchmark(b, fake, "GET", "/subscriptions/s/messages?consumer_id=w&batch_size=100", "", 200, benchMessages)
}

func BenchmarkAck(b *testing.B) {
	body := "[" + strings.Repeat(anID+",", benchMessages-1) + anID + "]"
	benchmark(b, working(), "POST", "/subscriptions/s/acks", body, 204, benchMessages)
}

func BenchmarkPublishOne(b *testing.B) {
	benchmark(b, working(), "POST", "/topics/t/messages", "["+benchPayload+"]", 204, 1)
}
