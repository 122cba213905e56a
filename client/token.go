package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

const tokenPath = "/oauth/token"

// A token is refreshed some time before it expires, by the share of its lifetime, or less.
const (
	refreshShare = 5
	refreshUpTo  = time.Minute
)

// A token is what the server knows the client by, for a while.
type token struct {
	text    fastpubsub.Secret // empty for none
	refresh time.Time
	expires time.Time
}

// token returns an access token, for a Client that has credentials. However many ask, one request fetches it; who does not
// want to wait for that any longer leaves it to the others.
func (c *Client) token(ctx context.Context) (fastpubsub.Secret, error) {
	if c.options.ClientID == "" {
		return "", nil
	}
	held := c.heldToken()
	if held.text != "" && time.Now().Before(held.refresh) {
		return held.text, nil
	}
	fetched := c.fetching.DoChan("", func() (any, error) {
		if again := c.heldToken(); again.text != "" && time.Now().Before(again.refresh) { // somebody was faster
			return again, nil
		}
		return c.fetchToken(context.WithoutCancel(ctx))
	})
	select {
	case result := <-fetched:
		if result.Err == nil {
			return result.Val.(token).text, nil
		}
		refused := errors.Is(result.Err, fastpubsub.ErrCredentials) || errors.Is(result.Err, fastpubsub.ErrNoTokens)
		if held.text != "" && !refused && time.Now().Before(held.expires) {
			return held.text, nil // it is still good
		}
		return "", result.Err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (c *Client) heldToken() token {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held
}

// forget makes sure that a token which was refused is not used again.
func (c *Client) forget(refused fastpubsub.Secret) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held.text == refused {
		c.held = token{}
	}
}

func (c *Client) fetchToken(ctx context.Context) (token, error) {
	body, err := json.Marshal(map[string]string{"client_id": c.options.ClientID, "client_secret": string(c.options.ClientSecret)})
	if err != nil {
		return token{}, err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	began := time.Now()
	if err := c.once(ctx, request{method: http.MethodPost, path: tokenPath, body: body}, "", &answer); err != nil {
		return token{}, err
	}
	if answer.AccessToken == "" {
		return token{}, &Error{Method: http.MethodPost, Path: tokenPath, Status: http.StatusCreated, Detail: "the answer has no access_token"}
	}
	lifetime := time.Duration(answer.ExpiresIn) * time.Second
	t := token{text: fastpubsub.Secret(answer.AccessToken), expires: began.Add(lifetime)}
	t.refresh = t.expires.Add(-min(lifetime/refreshShare, refreshUpTo))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = t
	return t, nil
}
