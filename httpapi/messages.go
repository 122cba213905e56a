package httpapi

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

// publish takes a list of payloads, or {"messages": [{"payload": ..., "attributes": ...}]}. Payloads stay parts of the
// body, unparsed: the broker checks them.
func (a *API) publish(w http.ResponseWriter, r *http.Request) error {
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	var msgs []fastpubsub.NewMessage
	isObject := body[skipSpace(body, 0)] == '{'
	if isObject {
		msgs, err = a.readMessages(body)
	} else {
		msgs, err = a.readPayloads(body)
	}
	if err != nil {
		return err
	}
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var ids []fastpubsub.ID
	if len(msgs) == 0 {
		_, err = a.broker.GetTopic(r.Context(), id) // the broker publishes nothing less than a message
	} else {
		ids, err = a.broker.Publish(r.Context(), id, msgs...)
	}
	if invalid := (*fastpubsub.InvalidError)(nil); errors.As(err, &invalid) && !isObject {
		// An element that is not JSON makes all of the body something else.
		if err := checkJSON(body); err != nil {
			return err
		}
		return payloadProblems(invalid)
	}
	if err != nil {
		return err
	}
	if !wantsRepresentation(w, r) {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	text := append(make([]byte, 0, len(ids)*39+16), `{"ids":[`...)
	for i, id := range ids {
		if i > 0 {
			text = append(text, ',')
		}
		text = appendID(text, id)
	}
	writeText(w, http.StatusCreated, append(text, "]}"...))
	return nil
}

// readPayloads splits a list of payloads.
func (a *API) readPayloads(body []byte) ([]fastpubsub.NewMessage, error) {
	loc := []any{"body"}
	if err := checkList(body, loc); err != nil {
		return nil, err
	}
	var msgs []fastpubsub.NewMessage
	n, err := elements(body, func(i int, element []byte) {
		if i < a.config.PublishMaxMessages {
			msgs = append(msgs, fastpubsub.NewMessage{Payload: element})
		}
	})
	if err != nil {
		return nil, err
	}
	return msgs, checkLength(loc, n, a.config.PublishMaxMessages)
}

func checkList(body []byte, loc []any) error {
	if body[skipSpace(body, 0)] == '[' {
		return nil
	}
	if err := checkJSON(body); err != nil {
		return err
	}
	return problems{{"list_type", loc, "must be a list"}}
}

func checkLength(loc []any, n, highest int) error {
	if n > highest {
		return tooLong(loc, n, highest)
	}
	return nil
}

func tooLong(loc []any, n, highest int) problems {
	return problems{{"too_long", loc, fmt.Sprintf("must have at most %d items, not %d", highest, n)}}
}

// payloadProblems moves a broker's problems to the list of payloads, which has neither "messages" nor "payload".
func payloadProblems(invalid *fastpubsub.InvalidError) problems {
	all := located(invalid, "body")
	for i, p := range all {
		p.Loc = slices.Delete(p.Loc, 1, 2)
		if len(p.Loc) > 2 {
			p.Loc = p.Loc[:2]
		}
		all[i] = p
	}
	return all
}

// readMessages reads the form that has attributes.
func (a *API) readMessages(body []byte) ([]fastpubsub.NewMessage, error) {
	if err := checkJSON(body); err != nil {
		return nil, err
	}
	loc := []any{"body", "messages"}
	list := member(body, "messages")
	switch {
	case list == nil:
		return nil, problems{{"missing", loc, "must not be missing"}}
	case list[0] != '[':
		return nil, problems{{"list_type", loc, "must be a list"}}
	}
	var p problems
	var msgs []fastpubsub.NewMessage
	n := 0
	for element := range jsontext.Elements(list) {
		if n < a.config.PublishMaxMessages {
			msgs = append(msgs, readMessage(&p, append(slices.Clip(loc), n), element))
		}
		n++
	}
	if err := checkLength(loc, n, a.config.PublishMaxMessages); err != nil {
		return nil, err
	}
	return msgs, p.err()
}

func readMessage(p *problems, loc []any, element []byte) (msg fastpubsub.NewMessage) {
	if element[0] != '{' {
		p.add(loc, "model_attributes_type", "must be an object")
		return msg
	}
	at := func(name string) []any { return append(slices.Clip(loc), name) }
	msg.Payload = member(element, "payload")
	if msg.Payload == nil {
		p.add(at("payload"), "missing", "must not be missing")
	} else {
		checkObject(p, at("payload"), msg.Payload)
	}
	attributes := member(element, "attributes")
	if attributes == nil || string(attributes) == "null" || !checkObject(p, at("attributes"), attributes) {
		return msg
	}
	msg.Attributes = map[string]string{}
	for rawKey, value := range jsontext.Members(attributes) {
		key := string(jsontext.Unquote(nil, rawKey))
		if value[0] != '"' {
			p.add(append(at("attributes"), key), "string_type", "must be a string")
			continue
		}
		msg.Attributes[key] = string(jsontext.Unquote(nil, value[1:len(value)-1]))
	}
	return msg
}

// checkObject checks an object of a message by the rules for payloads.
func checkObject(p *problems, loc []any, text []byte) bool {
	err := jsontext.CheckObject(text)
	if err == nil {
		return true
	}
	kind := "json_invalid"
	if e := (*jsontext.Error)(nil); errors.As(err, &e) && e.Kind == jsontext.NotObject {
		kind = "dict_type"
	}
	p.add(loc, kind, "%v", err)
	return false
}

// member returns the value of a key in an object, the last if there are several, or nil.
func member(object []byte, name string) (last []byte) {
	for key, value := range jsontext.Members(object) {
		if string(jsontext.Unquote(nil, key)) == name {
			last = value
		}
	}
	return last
}

func (a *API) consume(w http.ResponseWriter, r *http.Request) error {
	f := readQuery(r)
	options := fastpubsub.ConsumeOptions{ // parameters are read in this order
		Consumer:    f.text("consumer_id", maxConsumerLength),
		Max:         f.integer("batch_size", defaultBatchSize, 1, maxBatchSize),
		Wait:        time.Duration(f.integer("wait_seconds", 0, 0, maxWaitSeconds)) * time.Second,
		AckDeadline: time.Duration(f.integer("ack_deadline_seconds", 0, 1, maxAckDeadlineSeconds)) * time.Second,
	}
	if err := f.err(); err != nil {
		return err
	}
	id, err := pathID(r)
	if err != nil {
		return err
	}
	ctx := r.Context()
	if options.Wait > 0 {
		var release func()
		ctx, release = a.untilEndWaits(ctx)
		defer release()
	}
	msgs, err := a.broker.Consume(ctx, id, options)
	if err != nil && ctx.Err() != nil && r.Context().Err() == nil {
		msgs, err = nil, nil // the server is stopping
	}
	if err != nil {
		return err
	}
	if err := a.hand(w, r, msgs); err != nil && len(msgs) > 0 {
		a.giveBack(r, id, msgs)
	}
	return nil
}

// hand answers with messages. An error means that the client has not got all of the answer.
func (a *API) hand(w http.ResponseWriter, r *http.Request, msgs []fastpubsub.Message) error {
	if err := r.Context().Err(); err != nil { // it left while they were taken
		w.WriteHeader(statusClientGone)
		return err
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(a.config.AnswerTimeout)) // a ResponseWriter without one has its own ways
	if err := writeText(w, http.StatusOK, appendMessages(nil, msgs)); err != nil {
		return err
	}
	if err := control.Flush(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// giveBack makes messages available at once whose client has gone, and does not count the attempt. Where it fails they come
// back after the ack deadline.
func (a *API) giveBack(r *http.Request, subscriptionID string, msgs []fastpubsub.Message) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), giveBackTimeout)
	defer cancel()
	deliveries := make([]fastpubsub.Delivery, len(msgs))
	for i := range msgs {
		deliveries[i] = msgs[i].Delivery
	}
	n, err := a.broker.Extend(ctx, subscriptionID, deliveries, 0)
	level, attrs := slog.LevelDebug, []slog.Attr{slog.String("request_id", infoOf(r).id), slog.String("subscription", subscriptionID),
		slog.Int("messages", len(msgs)), slog.Int("given_back", n)}
	if err != nil {
		level, attrs = slog.LevelWarn, append(attrs, slog.Any("error", err))
	}
	a.config.Logger.LogAttrs(ctx, level, "client gone before it had its messages", attrs...)
}

// untilEndWaits returns a context that ends with EndWaits, or when it is released.
func (a *API) untilEndWaits(ctx context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(a.waits, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// appendMessages writes the answer to consume by hand: encoding/json would change payloads, and take its time.
func appendMessages(text []byte, msgs []fastpubsub.Message) []byte {
	size := 16
	for i := range msgs {
		size += messageSize(&msgs[i])
	}
	text = slices.Grow(text, size)
	text = append(text, `{"data":[`...)
	for i := range msgs {
		if i > 0 {
			text = append(text, ',')
		}
		text = appendMessage(text, &msgs[i])
		text = append(text, '}')
	}
	return append(text, "]}"...)
}

// messageSize is about how long a message is in JSON.
func messageSize(msg *fastpubsub.Message) int {
	return len(msg.Payload) + len(msg.SubscriptionID) + 192
}

// appendMessage writes a message as an object that is not closed yet.
func appendMessage(text []byte, msg *fastpubsub.Message) []byte {
	text = append(text, `{"id":`...)
	text = appendID(text, msg.ID)
	text = append(text, `,"subscription_id":`...)
	text = jsontext.AppendQuote(text, msg.SubscriptionID)
	text = append(text, `,"payload":`...)
	text = append(text, msg.Payload...)
	text = append(text, `,"delivery_attempts":`...)
	text = strconv.AppendInt(text, int64(msg.DeliveryAttempts), 10)
	text = append(text, `,"created_at":`...)
	text = appendTime(text, msg.CreatedAt)
	if len(msg.Attributes) > 0 {
		separator := `,"attributes":{`
		for _, key := range slices.Sorted(maps.Keys(msg.Attributes)) {
			text = append(text, separator...)
			text = jsontext.AppendQuote(text, key)
			text = append(text, ':')
			text = jsontext.AppendQuote(text, msg.Attributes[key])
			separator = ","
		}
		text = append(text, '}')
	}
	return text
}

func appendTime(text []byte, t time.Time) []byte {
	text = append(text, '"')
	text = t.AppendFormat(text, time.RFC3339Nano)
	return append(text, '"')
}

// appendID writes an id as a JSON string.
func appendID(text []byte, id fastpubsub.ID) []byte {
	text = append(text, '"')
	text = hex.AppendEncode(text, id[:4])
	for _, part := range [][]byte{id[4:6], id[6:8], id[8:10], id[10:]} {
		text = append(text, '-')
		text = hex.AppendEncode(text, part)
	}
	return append(text, '"')
}

func (a *API) ack(w http.ResponseWriter, r *http.Request) error {
	return change(a, w, r, a.readIDs, a.broker.Ack)
}

func (a *API) reprocess(w http.ResponseWriter, r *http.Request) error {
	return change(a, w, r, a.readIDs, a.broker.Reprocess)
}

// nack takes a list of ids, or an object with "ids" or "deliveries" and options.
func (a *API) nack(w http.ResponseWriter, r *http.Request) error {
	var options fastpubsub.NackOptions
	read := func(body []byte) ([]fastpubsub.Delivery, error) {
		if body[skipSpace(body, 0)] != '{' {
			ids, err := a.readIDs(body)
			return anyDelivery(ids), err
		}
		f, err := readObject(body)
		if err != nil {
			return nil, err
		}
		deliveries := a.deliveries(f)
		if delay, ok := f.optional("delay_seconds", 0, maxDelaySeconds); ok {
			options.Delay = time.Duration(delay) * time.Second
			options.Immediate = delay == 0
		}
		if value, ok := f.values["error"]; ok && string(value) != "null" {
			options.Error = f.text("error")
		}
		deadLetter, uncounted := f.boolean("dead_letter"), f.boolean("uncounted")
		options.DeadLetter = deadLetter != nil && *deadLetter
		options.Uncounted = uncounted != nil && *uncounted
		return deliveries, f.err()
	}
	return change(a, w, r, read, func(ctx context.Context, id string, deliveries []fastpubsub.Delivery) (int, error) {
		return a.broker.Nack(ctx, id, deliveries, options)
	})
}

// extend takes an object with "ids" or "deliveries", and "ack_deadline_seconds".
func (a *API) extend(w http.ResponseWriter, r *http.Request) error {
	var ackDeadline time.Duration
	read := func(body []byte) ([]fastpubsub.Delivery, error) {
		f, err := readObject(body)
		if err != nil {
			return nil, err
		}
		deliveries := a.deliveries(f)
		n, ok := f.optional("ack_deadline_seconds", 0, maxAckDeadlineSeconds)
		if !ok && f.values["ack_deadline_seconds"] == nil {
			f.add([]any{"body", "ack_deadline_seconds"}, "missing", "must not be missing")
		} else if !ok && string(f.values["ack_deadline_seconds"]) == "null" {
			f.add([]any{"body", "ack_deadline_seconds"}, "int_type", "must be an integer")
		}
		ackDeadline = time.Duration(n) * time.Second
		return deliveries, f.err()
	}
	return change(a, w, r, read, func(ctx context.Context, id string, deliveries []fastpubsub.Delivery) (int, error) {
		return a.broker.Extend(ctx, id, deliveries, ackDeadline)
	})
}

// anyDelivery names messages by their ids alone: whichever delivery is the current one is meant.
func anyDelivery(ids []fastpubsub.ID) []fastpubsub.Delivery {
	all := make([]fastpubsub.Delivery, len(ids))
	for i, id := range ids {
		all[i].ID = id
	}
	return all
}

// change does what all operations on messages have in common: it reads which ones, runs the operation, and answers with
// nothing or, if that is preferred, with how many messages it changed.
func change[T any](a *API, w http.ResponseWriter, r *http.Request, read func(body []byte) ([]T, error),
	run func(ctx context.Context, subscriptionID string, which []T) (int, error)) error {
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	which, err := read(body)
	if err != nil {
		return err
	}
	id, err := pathID(r)
	if err != nil {
		return err
	}
	n, err := run(r.Context(), id, which)
	if err != nil {
		return err
	}
	if wantsRepresentation(w, r) {
		writeText(w, http.StatusOK, []byte(`{"count":`+strconv.Itoa(n)+`}`))
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// deliveries reads "deliveries": [{"id": ..., "delivery_attempts": n}, ...], which say which delivery of each message is meant, or
// "ids" for whichever is the current one.
func (a *API) deliveries(f *bodyFields) []fastpubsub.Delivery {
	if value, ok := f.values["deliveries"]; ok && string(value) != "null" {
		if f.values["ids"] != nil {
			f.add([]any{"body", "deliveries"}, "value_error", "must not be there beside ids")
			return nil
		}
		return listField(a, f, "deliveries", appendReadDelivery)
	}
	return anyDelivery(listField(a, f, "ids", appendReadID))
}

// listField reads the list in a member of an object, which is JSON.
func listField[T any](a *API, f *bodyFields, name string, read func(all []T, p *problems, loc []any, element []byte) []T) []T {
	loc := []any{"body", name}
	list := f.values[name]
	switch {
	case list == nil:
		f.add(loc, "missing", "must not be missing")
		return nil
	case list[0] != '[':
		f.add(loc, "list_type", "must be a list")
		return nil
	}
	var p problems
	var all []T
	n := 0
	for element := range jsontext.Elements(list) {
		if n < a.config.AckMaxIDs {
			all = read(all, &p, append(slices.Clip(loc), n), element)
		}
		n++
	}
	if n > a.config.AckMaxIDs {
		p = tooLong(loc, n, a.config.AckMaxIDs)
	}
	f.problems = append(f.problems, p...)
	return all
}

// appendReadDelivery reads an element of a list of deliveries.
func appendReadDelivery(all []fastpubsub.Delivery, p *problems, loc []any, element []byte) []fastpubsub.Delivery {
	if element[0] != '{' {
		p.add(loc, "model_attributes_type", "must be an object")
		return all
	}
	at := func(name string) []any { return append(slices.Clip(loc), name) }
	id, attempts := member(element, "id"), member(element, "delivery_attempts")
	var ids []fastpubsub.ID
	if id == nil {
		p.add(at("id"), "missing", "must not be missing")
	} else {
		ids = appendReadID(nil, p, at("id"), id)
	}
	n, whole := 0, false
	switch {
	case attempts == nil:
		p.add(at("delivery_attempts"), "missing", "must not be missing")
	case attempts[0] != '-' && (attempts[0] < '0' || attempts[0] > '9'):
		p.add(at("delivery_attempts"), "int_type", "must be an integer")
	default:
		if n, whole = parseInteger(attempts); !whole {
			p.add(at("delivery_attempts"), "int_from_float", "must be an integer, without a fraction")
		} else if n < 1 {
			p.add(at("delivery_attempts"), "greater_than_equal", "must be at least 1")
		} else if n > math.MaxInt32 {
			p.add(at("delivery_attempts"), "less_than_equal", "must be at most %d", math.MaxInt32)
		}
	}
	for _, id := range ids {
		all = append(all, fastpubsub.Delivery{ID: id, DeliveryAttempts: n})
	}
	return all
}

// appendReadID reads an element of a list of ids.
func appendReadID(ids []fastpubsub.ID, p *problems, loc []any, element []byte) []fastpubsub.ID {
	id, err := readID(element)
	switch {
	case err == nil:
		return append(ids, fastpubsub.ID(id))
	case element[0] == '"':
		p.add(loc, "uuid_parsing", "must be a UUID")
	default:
		p.add(loc, "uuid_type", "must be a string with a UUID")
	}
	return ids
}

// readIDs reads a list of message ids.
func (a *API) readIDs(body []byte) ([]fastpubsub.ID, error) {
	loc := []any{"body"}
	if err := checkList(body, loc); err != nil {
		return nil, err
	}
	var p problems
	var ids []fastpubsub.ID
	n, err := elements(body, func(i int, element []byte) {
		if i >= a.config.AckMaxIDs {
			return
		}
		ids = appendReadID(ids, &p, []any{"body", i}, element)
	})
	if err != nil {
		return nil, err
	}
	if len(p) > 0 || n > a.config.AckMaxIDs { // not every element was looked at, or was JSON
		if err := checkJSON(body); err != nil {
			return nil, err
		}
	}
	if err := checkLength(loc, n, a.config.AckMaxIDs); err != nil {
		return nil, err
	}
	return ids, p.err()
}

var errNotString = errors.New("not a string")

// readID takes a JSON string that is a UUID in any of its usual forms.
func readID(element []byte) (uuid.UUID, error) {
	if len(element) < 2 || element[0] != '"' || element[len(element)-1] != '"' {
		return uuid.UUID{}, errNotString
	}
	text := element[1 : len(element)-1]
	if bytes.IndexByte(text, '\\') >= 0 {
		if err := checkJSON(element); err != nil {
			return uuid.UUID{}, err
		}
		text = jsontext.Unquote(nil, text)
	}
	if len(text) != 36 { // uuid parses the other forms without a look at what is around the digits
		if err := uuid.Validate(string(text)); err != nil {
			return uuid.UUID{}, err
		}
	}
	return uuid.ParseBytes(text)
}

// AppendMessage appends a message as the JSON object that the API has for it. The payload is as it was published.
func AppendMessage(text []byte, msg *fastpubsub.Message) []byte {
	return append(appendMessage(text, msg), '}')
}
