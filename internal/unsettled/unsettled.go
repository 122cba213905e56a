// Package unsettled lets fastpubsubtest lose acks.
package unsettled

// Err is what a handler returns to have Receive and ReceiveTx send neither an ack nor a nack, as if the process had died then.
// The root package sets it.
var Err error
