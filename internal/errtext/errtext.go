// Package errtext has the rule for the texts of errors that are kept with messages, for the library and the client of its REST API.
package errtext

import (
	"strings"
	"unicode/utf8"
)

// MaxBytes is how much of a text is kept.
const MaxBytes = 8_192

// Keep returns what is kept of a text: its beginning, with U+FFFD in place of what cannot be stored.
func Keep(s string) string {
	if len(s) > MaxBytes {
		end := MaxBytes
		for end > MaxBytes-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
