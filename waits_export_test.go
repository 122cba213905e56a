package fastpubsub

import "time"

// Waiting is how many calls wait for a subscription.
func Waiting(b *Broker, subscriptionID string) int {
	b.waits.mu.Lock()
	defer b.waits.mu.Unlock()
	if s := b.waits.subs[subscriptionID]; s != nil {
		return len(s.queue)
	}
	return 0
}

// WaitForTopic returns once it is known of what topic a subscription is that somebody waits for.
func WaitForTopic(b *Broker, subscriptionID string) {
	for {
		b.waits.mu.Lock()
		s := b.waits.subs[subscriptionID]
		known := s != nil && s.topic != ""
		b.waits.mu.Unlock()
		if known {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// Alone says whether a broker says nothing to others, because nobody else listens.
func Alone(b *Broker) bool {
	b.notifier.mu.Lock()
	defer b.notifier.mu.Unlock()
	return b.notifier.alone()
}
