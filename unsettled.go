package fastpubsub

import "github.com/fastpubsub/fastpubsub/internal/unsettled"

// Package fastpubsubtest plays consumers that die before their ack.
func init() { unsettled.Err = errNotOurs }
