package httpapi

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
)

const (
	textNoToken           = "An access token is needed"
	textBadToken          = "The access token is invalid, has expired or was revoked"
	textInsufficientScope = "Insufficient scope"
	textBadCredentials    = "Invalid client credentials"
	textNoTokens          = "Authentication is off: there are no access tokens, and none is needed"
)

const authenticateHeader = "WWW-Authenticate"

// authorize finds out who calls, and returns the answer to one who may not call the route. What the request is about need not
// exist, and its id need not be one.
func (a *API) authorize(w http.ResponseWriter, r *http.Request, rt route) error {
	if rt.scope == public {
		return nil
	}
	info := infoOf(r)
	if !a.config.Authenticate {
		info.caller = fastpubsub.Caller{Scopes: fastpubsub.Scopes{"*"}}
		return nil
	}
	token := bearerToken(r)
	if token == "" {
		w.Header().Set(authenticateHeader, "Bearer")
		return &statusError{http.StatusUnauthorized, textNoToken}
	}
	caller, err := a.broker.CheckToken(r.Context(), token)
	switch {
	case errors.Is(err, fastpubsub.ErrToken):
		info.err = err
		w.Header().Set(authenticateHeader, `Bearer error="invalid_token"`)
		return &statusError{http.StatusUnauthorized, textBadToken}
	case err != nil:
		return err
	}
	info.caller = caller
	needed := rt.scope
	if id := infoOf(r).params.ByName("id"); id != "" {
		if u, err := parseUUID(id); err == nil && rt.resource == "client" {
			id = u.String() // as scopes have it
		}
		needed += ":" + id
	}
	if !caller.Scopes.Has(needed) {
		return insufficientScope(w, textInsufficientScope, rt.scope)
	}
	return nil
}

// insufficientScope is the answer to a caller who lacks a scope.
func insufficientScope(w http.ResponseWriter, detail, scope string) error {
	w.Header().Set(authenticateHeader, fmt.Sprintf(`Bearer error="insufficient_scope", scope="%s"`, scope))
	return &statusError{http.StatusForbidden, detail}
}

// bearerToken returns the token that comes with a request; empty if there is none, or more than one.
func bearerToken(r *http.Request) fastpubsub.Secret {
	headers := r.Header["Authorization"]
	if len(headers) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return fastpubsub.Secret(strings.TrimSpace(token))
}

// parseUUID reads a UUID in any of its forms.
func parseUUID(s string) (uuid.UUID, error) {
	if err := uuid.Validate(s); err != nil { // Parse does not look at what is around the digits
		return uuid.UUID{}, err
	}
	return uuid.Parse(s)
}

// noStore keeps an answer with a secret out of caches.
func noStore(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
}

// A tokenRequest asks for a token, for all scopes of the client where scopes is nil.
type tokenRequest struct {
	clientID string
	secret   fastpubsub.Secret
	scopes   fastpubsub.Scopes
}

// wireToken is a token in JSON, as RFC 6749 has it.
type wireToken struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`
}

// issueToken takes a client's id and secret in JSON, or as RFC 6749 has it: as a form, with HTTP Basic or without.
func (a *API) issueToken(w http.ResponseWriter, r *http.Request) error {
	noStore(w)
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	isForm := media == "application/x-www-form-urlencoded"
	if !isForm && !isJSON(r.Header.Get("Content-Type")) {
		return &statusError{http.StatusUnsupportedMediaType, "The Content-Type must be application/json or application/x-www-form-urlencoded"}
	}
	body, err := readLimited(w, r, min(maxTokenBodyBytes, a.config.MaxBodyBytes))
	if err != nil {
		return err
	}
	if isForm {
		return a.issueTokenForm(w, r, body)
	}
	request, err := readTokenJSON(body)
	if err != nil {
		return err
	}
	token, err := a.broker.IssueToken(r.Context(), request.clientID, request.secret, request.scopes)
	switch {
	case errors.Is(err, fastpubsub.ErrNoTokens):
		return &statusError{http.StatusNotFound, textNoTokens}
	case errors.Is(err, fastpubsub.ErrCredentials):
		w.Header().Set(authenticateHeader, "Bearer")
		return &statusError{http.StatusUnauthorized, textBadCredentials}
	case err != nil:
		return err
	}
	writeJSON(w, http.StatusCreated, toWireToken(token))
	return nil
}

func toWireToken(t fastpubsub.Token) wireToken {
	return wireToken{string(t.AccessToken), "Bearer", int64(t.Lifetime / time.Second), t.Scopes.String()}
}

func readTokenJSON(body []byte) (tokenRequest, error) {
	if err := checkNotEmpty(body); err != nil {
		return tokenRequest{}, err
	}
	f, err := readObject(body)
	if err != nil {
		return tokenRequest{}, err
	}
	request := tokenRequest{clientID: f.uuid("client_id").String(), secret: fastpubsub.Secret(f.text("client_secret"))}
	return request, f.err()
}

// An oauthError is an answer by status, the code that RFC 6749 gives it, and text.
type oauthError struct {
	status       int
	code, detail string
}

func (e *oauthError) write(w http.ResponseWriter) {
	writeJSON(w, e.status, map[string]string{"error": e.code, "detail": e.detail})
}

// issueTokenForm takes the client credentials grant of RFC 6749.
func (a *API) issueTokenForm(w http.ResponseWriter, r *http.Request, body []byte) error {
	request, refused := readTokenForm(r, string(body))
	if refused != nil {
		refused.write(w)
		return nil
	}
	token, err := a.broker.IssueToken(r.Context(), request.clientID, request.secret, request.scopes)
	switch {
	case errors.Is(err, fastpubsub.ErrNoTokens):
		refused = &oauthError{http.StatusNotFound, "invalid_request", textNoTokens}
	case errors.Is(err, fastpubsub.ErrCredentials):
		challenge := "Bearer"
		if r.Header.Get("Authorization") != "" { // RFC 6749, 5.2: by the scheme that the client used
			challenge = `Basic realm="fastpubsub", charset="UTF-8"`
		}
		w.Header().Set(authenticateHeader, challenge)
		refused = &oauthError{http.StatusUnauthorized, "invalid_client", textBadCredentials}
	case errors.Is(err, fastpubsub.ErrScope):
		refused = &oauthError{http.StatusBadRequest, "invalid_scope", "The client does not have all of these scopes"}
	case err != nil:
		return err
	}
	if refused != nil {
		refused.write(w)
		return nil
	}
	writeJSON(w, http.StatusOK, toWireToken(token))
	return nil
}

// readTokenForm reads a form. Credentials that cannot be read are like those that are wrong, for whoever looks at them next: they
// are empty here.
func readTokenForm(r *http.Request, body string) (tokenRequest, *oauthError) {
	invalid := func(detail string) (tokenRequest, *oauthError) {
		return tokenRequest{}, &oauthError{http.StatusBadRequest, "invalid_request", detail}
	}
	form, err := url.ParseQuery(body)
	if err != nil {
		return invalid("The body must be URL-encoded")
	}
	for _, name := range []string{"grant_type", "client_id", "client_secret", "scope"} {
		if len(form[name]) > 1 {
			return invalid(name + " must not come more than once")
		}
	}
	switch form.Get("grant_type") {
	case "client_credentials":
	case "":
		return invalid("grant_type must not be missing")
	default:
		return tokenRequest{}, &oauthError{http.StatusBadRequest, "unsupported_grant_type", "grant_type must be client_credentials"}
	}
	request := tokenRequest{clientID: form.Get("client_id"), secret: fastpubsub.Secret(form.Get("client_secret"))}
	if scope := form.Get("scope"); scope != "" {
		request.scopes, err = fastpubsub.ParseScopes(scope)
		if err != nil {
			return tokenRequest{}, &oauthError{http.StatusBadRequest, "invalid_scope", err.Error()}
		}
	}
	if r.Header.Get("Authorization") == "" {
		return request, nil
	}
	id, secret := basicCredentials(r)
	if request.secret != "" || request.clientID != "" && request.clientID != id {
		return invalid("The client's id and secret must come either in the body or in the Authorization header")
	}
	request.clientID, request.secret = id, fastpubsub.Secret(secret)
	return request, nil
}

// basicCredentials reads HTTP Basic with both parts form-encoded, as RFC 6749 has it, which changes nothing about ids and secrets
// that were made here. Both are empty if it is something else.
func basicCredentials(r *http.Request) (id, secret string) {
	user, password, ok := r.BasicAuth()
	id, errID := url.QueryUnescape(user)
	secret, errSecret := url.QueryUnescape(password)
	if !ok || errID != nil || errSecret != nil || len(r.Header["Authorization"]) > 1 {
		return "", ""
	}
	return id, secret
}
