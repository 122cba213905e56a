package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/fastpubsub/fastpubsub"
)

func (a *API) liveness(w http.ResponseWriter, r *http.Request) error {
	writeText(w, http.StatusOK, []byte(`{"status":"alive"}`))
	return nil
}

func (a *API) readiness(w http.ResponseWriter, r *http.Request) error {
	err := a.check(r.Context())
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

// check joins a check that is running, or starts one.
func (a *API) check(ctx context.Context) error {
	checked := a.checks.DoChan("", func() (any, error) {
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		return nil, a.config.Check(own)
	})
	wait, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	select {
	case c := <-checked:
		return c.Err
	case <-wait.Done():
		return wait.Err()
	}
}
