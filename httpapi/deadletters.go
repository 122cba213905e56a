package httpapi

import (
	"net/http"
	"slices"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

func (a *API) listDeadLetters(w http.ResponseWriter, r *http.Request) error {
	options, err := listOptions(r)
	if err != nil {
		return err
	}
	id, err := pathID(r)
	if err != nil {
		return err
	}
	letters, err := a.broker.DeadLetters(r.Context(), id, options)
	if err != nil {
		return err
	}
	size := 16
	for i := range letters {
		size += messageSize(&letters[i].Message) + len(letters[i].LastError) + 64
	}
	text := append(slices.Grow([]byte(nil), size), `{"data":[`...)
	for i := range letters {
		if i > 0 {
			text = append(text, ',')
		}
		text = AppendDeadLetter(text, &letters[i])
	}
	writeText(w, http.StatusOK, append(text, "]}"...))
	return nil
}

// AppendDeadLetter appends a dead letter as the JSON object that the API has for it. The payload is as it was published.
func AppendDeadLetter(text []byte, letter *fastpubsub.DeadLetter) []byte {
	text = appendMessage(text, &letter.Message)
	text = append(text, `,"last_error":`...)
	if letter.LastError == "" {
		text = append(text, "null"...)
	} else {
		text = jsontext.AppendQuote(text, letter.LastError)
	}
	text = append(text, `,"dead_at":`...)
	text = appendTime(text, letter.DeadAt)
	return append(text, '}')
}
