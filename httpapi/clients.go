package httpapi

import (
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

// wireClient is a client in JSON.
type wireClient struct {
	ID           uuid.UUID `json:"id"`
	Name         string    `json:"name"`
	Scopes       string    `json:"scopes"`
	IsActive     bool      `json:"is_active"`
	TokenVersion int       `json:"token_version"`
	CreatedAt    time.Time `json:"created_at"`
	UpdatedAt    time.Time `json:"updated_at"`
}

func toWireClient(c fastpubsub.Client) wireClient {
	return wireClient{c.ID, c.Name, c.Scopes.String(), c.Active, c.TokenVersion, c.CreatedAt, c.UpdatedAt}
}

// wireNewClient is the only answer that has a client's secret.
type wireNewClient struct {
	ID     uuid.UUID `json:"id"`
	Secret string    `json:"secret"`
}

func (a *API) createClient(w http.ResponseWriter, r *http.Request) error {
	noStore(w)
	update, err := a.readClient(w, r)
	if err != nil {
		return err
	}
	client, secret, err := a.broker.CreateClient(r.Context(), fastpubsub.NewClient{
		Name: update.Name, Scopes: update.Scopes, Inactive: update.Active != nil && !*update.Active,
	})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, wireNewClient{client.ID, string(secret)})
	return nil
}

// readClient reads what a client is to be, from a caller who may grant it.
func (a *API) readClient(w http.ResponseWriter, r *http.Request) (fastpubsub.ClientUpdate, error) {
	body, err := a.readBody(w, r)
	if err != nil {
		return fastpubsub.ClientUpdate{}, err
	}
	f, err := readObject(body)
	if err != nil {
		return fastpubsub.ClientUpdate{}, err
	}
	update := fastpubsub.ClientUpdate{Name: f.name("name"), Scopes: f.scopes("scopes"), Active: f.boolean("is_active")} // in this order
	if err := f.err(); err != nil {
		return update, err
	}
	// Nobody makes a client that may do more than they may themselves.
	if missing := infoOf(r).caller.Scopes.Missing(update.Scopes); len(missing) > 0 {
		return update, insufficientScope(w, textInsufficientScope+" to grant "+missing.String(), missing.String())
	}
	return update, nil
}

// name reads the name of a client, which must be there.
func (f *bodyFields) name(name string) string {
	loc := []any{"body", name}
	before := len(f.problems)
	text := strings.TrimSpace(f.text(name))
	switch n := utf8.RuneCountInString(text); {
	case len(f.problems) > before:
	case n == 0:
		f.add(loc, "string_too_short", "must have at least 1 character")
	case n > maxNameLength:
		f.add(loc, "string_too_long", "must have at most %d characters, not %d", maxNameLength, n)
	}
	return text
}

// scopes reads the scopes of a client, which must be there.
func (f *bodyFields) scopes(name string) fastpubsub.Scopes {
	before := len(f.problems)
	text := f.text(name)
	if len(f.problems) > before {
		return nil
	}
	scopes, err := fastpubsub.ParseScopes(text)
	if invalid := (*fastpubsub.InvalidError)(nil); errors.As(err, &invalid) {
		f.problems = append(f.problems, located(invalid, "body")...)
	}
	return scopes
}

// text reads a string, which must be there.
func (f *bodyFields) text(name string) string {
	loc := []any{"body", name}
	value, ok := f.values[name]
	if !ok {
		f.add(loc, "missing", "must not be missing")
		return ""
	}
	if value[0] != '"' {
		f.add(loc, "string_type", "must be a string")
		return ""
	}
	return string(jsontext.Unquote(nil, value[1:len(value)-1]))
}

// boolean reads true or false; nil if it is missing or null.
func (f *bodyFields) boolean(name string) *bool {
	value, ok := f.values[name]
	if !ok || string(value) == "null" {
		return nil
	}
	b := string(value) == "true"
	if !b && string(value) != "false" {
		f.add([]any{"body", name}, "bool_type", "must be true or false")
		return nil
	}
	return &b
}

// uuid reads a UUID, which must be there.
func (f *bodyFields) uuid(name string) uuid.UUID {
	loc := []any{"body", name}
	value, ok := f.values[name]
	if !ok {
		f.add(loc, "missing", "must not be missing")
		return uuid.UUID{}
	}
	id, err := readID(value)
	switch {
	case err == nil:
	case value[0] == '"':
		f.add(loc, "uuid_parsing", "must be a UUID")
	default:
		f.add(loc, "uuid_type", "must be a string with a UUID")
	}
	return id
}

// pathUUID returns the id in the path of a client.
func pathUUID(r *http.Request) (uuid.UUID, error) {
	id, err := parseUUID(infoOf(r).params.ByName("id"))
	if err != nil {
		return id, problems{{"uuid_parsing", []any{"path", "id"}, "must be a UUID"}}
	}
	return id, nil
}

func (a *API) getClient(w http.ResponseWriter, r *http.Request) error {
	id, err := pathUUID(r)
	if err != nil {
		return err
	}
	client, err := a.broker.GetClient(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, toWireClient(client))
	return nil
}

func (a *API) listClients(w http.ResponseWriter, r *http.Request) error {
	options, err := listOptions(r)
	if err != nil {
		return err
	}
	clients, err := a.broker.ListClients(r.Context(), options)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, listOf(clients, toWireClient))
	return nil
}

func (a *API) updateClient(w http.ResponseWriter, r *http.Request) error {
	id, err := pathUUID(r)
	update, bodyErr := a.readClient(w, r)
	var inPath, inBody problems
	if errors.As(err, &inPath) && errors.As(bodyErr, &inBody) {
		return append(inPath, inBody...)
	}
	if err != nil {
		return err
	}
	if bodyErr != nil {
		return bodyErr
	}
	client, err := a.broker.UpdateClient(r.Context(), id, update)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, toWireClient(client))
	return nil
}

func (a *API) deleteClient(w http.ResponseWriter, r *http.Request) error {
	id, err := pathUUID(r)
	if err != nil {
		return err
	}
	if err := a.broker.DeleteClient(r.Context(), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
