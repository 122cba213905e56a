// Package idrule says what can be the id of a topic or a subscription.
package idrule

import (
	"fmt"
	"unicode/utf8"
)

// Pattern is what an id matches, of MaxLength characters at most; "." and ".." are none all the same, as parts of a path.
const (
	Pattern   = `^[a-zA-Z0-9._-]+$`
	MaxLength = 128
)

// Matches says whether an id matches Pattern. It is done in each call, and a regexp takes thirty times as long.
func Matches(id string) bool {
	for _, c := range []byte(id) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return id != ""
}

// Check returns what is wrong with an id: a problem's type, which is empty if nothing is, and message.
func Check(id string) (kind, msg string) {
	switch n := utf8.RuneCountInString(id); {
	case n == 0:
		return "string_too_short", "must have at least 1 character"
	case n > MaxLength:
		return "string_too_long", fmt.Sprintf("must have at most %d characters, not %d", MaxLength, n)
	case !Matches(id):
		return "string_pattern_mismatch", "must match " + Pattern
	case id == "." || id == "..":
		return "value_error", `must be neither "." nor ".."`
	}
	return "", ""
}
