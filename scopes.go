package fastpubsub

import (
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Scopes is what a client may do in the REST API. Each is "*", which is everything, or RESOURCE:ACTION, or
// RESOURCE:ACTION:ID for one object alone:
//
//	topics           create, read, delete, publish
//	subscriptions    create, read, delete, consume
//	clients          create, read, update, delete
//
// To read is to get and to list; a list needs the scope without an id. To consume is also to ack, nack and extend, and to list
// and reprocess dead letters. There is no scope to create one object: it has no id before.
type Scopes []string

var scopeActions = map[string][]string{
	"topics":        {"create", "read", "delete", "publish"},
	"subscriptions": {"create", "read", "delete", "consume"},
	"clients":       {"create", "read", "update", "delete"},
}

// maxScopesBytes is about the headers of proxies, which are often limited to 8 KiB: a token has the scopes in base64.
const maxScopesBytes = 4_096

// ParseScopes reads scopes with white space between them, and leaves out those that come twice. It returns an InvalidError with
// all that are wrong, for none at all, and for more than 4,096 bytes.
func ParseScopes(text string) (Scopes, error) {
	var p problems
	scopes := checkScopes(&p, strings.Fields(text))
	return scopes, p.err()
}

// checkScopes returns scopes as they are stored.
func checkScopes(p *problems, all []string) Scopes {
	const field = "scopes"
	bytes := max(len(all)-1, 0) // the spaces between them
	for _, scope := range all {
		bytes += len(scope)
	}
	switch {
	case len(all) == 0:
		p.add(field, "string_too_short", "must have at least 1 scope")
		return nil
	case bytes > maxScopesBytes:
		p.add(field, "string_too_long", "must have at most %d bytes, not %d", maxScopesBytes, bytes)
		return nil
	}
	var scopes Scopes
	for _, scope := range all {
		normal, msg := checkScope(scope)
		switch {
		case msg != "":
			p.add(field, "value_error", "%q: %s", scope, msg)
		case !slices.Contains(scopes, normal):
			scopes = append(scopes, normal)
		}
	}
	return scopes
}

// checkScope returns a scope as it is stored, or what is wrong with it.
func checkScope(scope string) (normal, msg string) {
	if scope == "*" {
		return scope, ""
	}
	parts := strings.SplitN(scope, ":", 3)
	actions, ok := scopeActions[parts[0]]
	switch {
	case !ok && strings.HasPrefix(scope, "*"):
		return "", "* stands alone"
	case !ok:
		return "", "must be *, or begin with topics:, subscriptions: or clients:"
	case len(parts) == 1 || !slices.Contains(actions, parts[1]):
		return "", "the actions of " + parts[0] + " are " + strings.Join(actions, ", ")
	case len(parts) == 2:
		return scope, ""
	case parts[1] == "create":
		return "", "there is no scope to create one object, which has no id before"
	}
	id := parts[2]
	if parts[0] == "clients" {
		u, ok := parseUUID(id)
		if !ok {
			return "", "the id of a client is a UUID"
		}
		return parts[0] + ":" + parts[1] + ":" + u.String(), ""
	}
	var p problems
	if checkID(&p, "", id); len(p) > 0 {
		return "", "the id " + p[0].Msg
	}
	return scope, ""
}

// parseUUID reads a UUID in any of its forms.
func parseUUID(s string) (uuid.UUID, bool) {
	if uuid.Validate(s) != nil { // Parse does not look at what is around the digits
		return uuid.UUID{}, false
	}
	u, err := uuid.Parse(s)
	return u, err == nil
}

// String is the scopes with a space between them.
func (s Scopes) String() string { return strings.Join(s, " ") }

// Has reports whether a scope is among these, or something that covers it: "topics:publish" covers "topics:publish:orders",
// and "*" covers all.
func (s Scopes) Has(scope string) bool {
	if slices.Contains(s, scope) || slices.Contains(s, "*") {
		return true
	}
	parts := strings.SplitN(scope, ":", 3)
	return len(parts) == 3 && slices.Contains(s, scope[:len(scope)-len(parts[2])-1])
}

// Missing returns those of wanted that these do not have.
func (s Scopes) Missing(wanted Scopes) Scopes {
	var missing Scopes
	for _, scope := range wanted {
		if !s.Has(scope) {
			missing = append(missing, scope)
		}
	}
	return missing
}
