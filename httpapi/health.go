package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// checkTimeout keeps the answer of readiness within 2 seconds.
const checkTimeout = 1500 * time.Millisecond

func (a *API) liveness(w http.ResponseWriter, r *http.Request) error {
	writeText(w, http.StatusOK, []byte(`{"status":"alive"}`))
	return nil
}

func (a *API) readiness(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	err := a.broker.Check(ctx)
	if err == nil {
		writeText(w, http.StatusOK, []byte(`{"status":"ready"}`))
		return nil
	}
	infoOf(r).err = err
	detail := textDatabaseDown
	switch {
	case errors.Is(err, fastpubsub.ErrSchemaOutdated):
		detail = textSchemaOutdated
	case errors.Is(err, fastpubsub.ErrBinaryOutdated):
		detail = textBinaryOutdated
	case errors.Is(err, fastpubsub.ErrRestored):
		detail = textRestored
	}
	writeDetail(w, http.StatusServiceUnavailable, detail)
	return nil
}
