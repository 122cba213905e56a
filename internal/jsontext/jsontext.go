// Package jsontext checks and reads JSON text in place, without building values.
//
// [CheckObject] decides what may be published. It is at least as strict as the jsonb type of PostgreSQL 14 to 18 in a
// UTF8 database, so that whatever it accepts casts there without an error. The other functions read text that CheckObject
// has accepted; given anything else they return nonsense, but do not panic or loop.
package jsontext

import (
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// Limits of what [CheckObject] accepts.
const (
	// MaxSize is the size of the whole text in bytes. It keeps every part far below the 2^28 bytes and 2^24 elements of
	// a jsonb container: the smallest element, "1,", takes 2 bytes of text and at most 12 of jsonb.
	MaxSize = 16 << 20

	// MaxDepth is how deep objects and arrays nest; the outermost object is depth 1.
	MaxDepth = 128

	// MaxNumberLen is the length of a number in bytes, with sign, point and exponent.
	MaxNumberLen = 1000

	// MaxExponent is the largest exponent, positive or negative, that may be written after a number. With MaxNumberLen it
	// stays below the 131,072 digits before and the 16,383 digits after the point of PostgreSQL's numeric.
	MaxExponent = 10_000
)

// A Kind tells what an [Error] is about.
type Kind uint8

const (
	// Malformed text is not JSON in UTF-8.
	Malformed Kind = iota + 1
	// NotObject text does not start as an object.
	NotObject
	// OverLimit text is JSON up to there, but exceeds one of the limits or has \u0000 or a lone surrogate in a string,
	// none of which jsonb takes.
	OverLimit
)

// Error is what [CheckObject] returns. It never has a part of the text in it.
type Error struct {
	Kind   Kind
	Rule   string // what is wrong, with the limit: "depth over 128"
	Offset int    // bytes before the first byte that breaks the rule, or before the number or the escape that does
}

func (e *Error) Error() string {
	return e.Rule + " at offset " + strconv.Itoa(e.Offset)
}

// CheckObject returns nil if text is exactly one JSON object, within the limits of this package and with no white space
// but JSON's own around it. Duplicate keys are allowed, and so are numbers that no float64 holds.
//
// Every error is an [*Error]. CheckObject allocates nothing but that.
func CheckObject(text []byte) error {
	if err := checkObject(text); err != nil {
		return err
	}
	return nil
}

func checkObject(b []byte) *Error {
	if len(b) > MaxSize {
		return overLimit("size over "+strconv.Itoa(MaxSize)+" bytes", MaxSize)
	}
	i := skipSpace(b, 0)
	if i >= len(b) {
		return unexpected(b, i)
	}
	if b[i] != '{' {
		return &Error{NotObject, "not an object", i}
	}

	var err *Error
	var closers [MaxDepth]byte // of the open objects and arrays
	var closer byte            // the innermost
	depth := 0
	for {
		// A value starts here.
		if i >= len(b) {
			return unexpected(b, i)
		}
		switch c := b[i]; c {
		case '"':
			if i, err = checkString(b, i+1); err != nil {
				return err
			}
		case '{', '[':
			if depth >= MaxDepth {
				return overLimit("depth over "+strconv.Itoa(MaxDepth), i)
			}
			closer = c + 2
			closers[depth] = closer
			depth++
			i = skipSpace(b, i+1)
			if i >= len(b) || b[i] != closer {
				if closer == '}' {
					if i, err = checkKey(b, i); err != nil {
						return err
					}
				}
				continue
			}
		case 't':
			if !hasWord(b, i, "true") {
				return badWord(b, i, "true")
			}
			i += len("true")
		case 'f':
			if !hasWord(b, i, "false") {
				return badWord(b, i, "false")
			}
			i += len("false")
		case 'n':
			if !hasWord(b, i, "null") {
				return badWord(b, i, "null")
			}
			i += len("null")
		default:
			if i, err = checkNumber(b, i); err != nil {
				return err
			}
		}

		// A value has ended; so may those around it.
		for {
			i = skipSpace(b, i)
			if i >= len(b) {
				return unexpected(b, i)
			}
			if b[i] == ',' {
				i = skipSpace(b, i+1)
				if closer == '}' {
					if i, err = checkKey(b, i); err != nil {
						return err
					}
				}
				break
			}
			if b[i] != closer {
				return unexpected(b, i)
			}
			i++
			depth--
			if depth == 0 {
				if i = skipSpace(b, i); i < len(b) {
					return &Error{Malformed, "text after the object", i}
				}
				return nil
			}
			closer = closers[depth-1]
		}
	}
}

// checkKey takes b[i:] to start with a key and returns where its value starts.
func checkKey(b []byte, i int) (int, *Error) {
	if i >= len(b) || b[i] != '"' {
		return i, unexpected(b, i)
	}
	i, err := checkString(b, i+1)
	if err != nil {
		return i, err
	}
	i = skipSpace(b, i)
	if i >= len(b) || b[i] != ':' {
		return i, unexpected(b, i)
	}
	return skipSpace(b, i+1), nil
}

// checkString takes b[i:] to be the inside of a string and returns where the text goes on after it.
func checkString(b []byte, i int) (int, *Error) {
	for {
		i = skipPlain(b, i)
		if i >= len(b) {
			return i, unexpected(b, i)
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1, nil
		case c == '\\':
			n, err := checkEscape(b, i)
			if err != nil {
				return i, err
			}
			i += n
		case c < ' ':
			return i, &Error{Malformed, "control character in a string", i}
		default:
			for i < len(b) && b[i] >= utf8.RuneSelf {
				n := runeLen(b[i:])
				if n == 0 {
					return i, &Error{Malformed, "invalid UTF-8", i}
				}
				i += n
			}
		}
	}
}

// skipPlain returns the index of the first byte from i on that needs a look inside a string: a quote, a backslash, a
// control character, or one that is not ASCII.
func skipPlain(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for len(b)-i >= 8 {
		// Each term sets the high bit of the bytes it is after. A borrow can set more of them, but only above the first.
		w := binary.LittleEndian.Uint64(b[i:])
		quote, backslash := w^(ones*'"'), w^(ones*'\\')
		found := ((quote-ones)&^quote | (backslash-ones)&^backslash | (w-ones*' ')&^w | w) & highs
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
		i += 8
	}
	for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= ' ' && b[i] < utf8.RuneSelf {
		i++
	}
	return i
}

// runeLen returns the length of the character that is not ASCII at the start of b, or 0 if it is not valid UTF-8.
func runeLen(b []byte) int {
	continues := func(i int) bool { return b[i]&0xC0 == 0x80 }
	switch c := b[0]; {
	case c < 0xC2:
		return 0
	case c < 0xE0:
		if len(b) >= 2 && continues(1) {
			return 2
		}
	case c < 0xF0:
		// No overlong forms below E0 A0, no surrogates above ED 9F.
		if len(b) >= 3 && continues(1) && continues(2) &&
			(c != 0xE0 || b[1] >= 0xA0) && (c != 0xED || b[1] < 0xA0) {
			return 3
		}
	case c < 0xF5:
		// No overlong forms below F0 90, nothing beyond U+10FFFF, which is F4 8F BF BF.
		if len(b) >= 4 && continues(1) && continues(2) && continues(3) &&
			(c != 0xF0 || b[1] >= 0x90) && (c != 0xF4 || b[1] < 0x90) {
			return 4
		}
	}
	return 0
}

// checkEscape returns the length of the escape sequence at b[i]; the two halves of a surrogate pair are one.
func checkEscape(b []byte, i int) (int, *Error) {
	if i+1 >= len(b) {
		return 0, unexpected(b, i+1)
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, nil
	case 'u':
	default:
		return 0, &Error{Malformed, "unknown escape", i}
	}
	switch r := hex4(b, i+2); {
	case r < 0:
		return 0, &Error{Malformed, "incomplete \\u escape", i}
	case r == 0:
		return 0, overLimit("\\u0000", i)
	case r < 0xD800 || r > 0xDFFF:
		return 6, nil
	case r < 0xDC00 && len(b)-i >= 12 && b[i+6] == '\\' && b[i+7] == 'u':
		if low := hex4(b, i+8); low >= 0xDC00 && low <= 0xDFFF {
			return 12, nil
		}
	}
	return 0, overLimit("lone surrogate", i)
}

// hex4 returns the value of the four hexadecimal digits at b[i:], or -1 if there are none.
func hex4(b []byte, i int) rune {
	if len(b)-i < 4 {
		return -1
	}
	var r rune
	for _, c := range b[i : i+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// checkNumber takes b[i:] to start with a number and returns where it ends.
func checkNumber(b []byte, i int) (int, *Error) {
	_, end, exp, err := scanNumber(b, i)
	switch {
	case err != nil:
		return i, err
	case end-i > MaxNumberLen:
		return i, overLimit("number over "+strconv.Itoa(MaxNumberLen)+" characters", i)
	case exp > MaxExponent || exp < -MaxExponent:
		return i, overLimit("exponent over "+strconv.Itoa(MaxExponent), i)
	}
	return end, nil
}

// scanNumber takes b[i:] to start with a number of any size. It returns where the part before the exponent ends, where
// the number ends, and the exponent, of which it gives up counting at a billion.
func scanNumber(b []byte, i int) (mantissaEnd, end, exp int, err *Error) {
	if i < len(b) && b[i] == '-' {
		i++
	}
	switch {
	case i >= len(b) || !isDigit(b[i]):
		return 0, 0, 0, unexpected(b, i)
	case b[i] == '0':
		i++
	default:
		i = skipDigits(b, i)
	}
	if i < len(b) && b[i] == '.' {
		i++
		if i >= len(b) || !isDigit(b[i]) {
			return 0, 0, 0, unexpected(b, i)
		}
		i = skipDigits(b, i)
	}
	mantissaEnd = i
	if i >= len(b) || b[i]|0x20 != 'e' {
		return mantissaEnd, i, 0, nil
	}
	i++
	sign := 1
	if i < len(b) && (b[i] == '+' || b[i] == '-') {
		if b[i] == '-' {
			sign = -1
		}
		i++
	}
	if i >= len(b) || !isDigit(b[i]) {
		return 0, 0, 0, unexpected(b, i)
	}
	for ; i < len(b) && isDigit(b[i]); i++ {
		exp = min(exp*10+int(b[i]-'0'), 1_000_000_000)
	}
	return mantissaEnd, i, sign * exp, nil
}

func skipDigits(b []byte, i int) int {
	for i < len(b) && isDigit(b[i]) {
		i++
	}
	return i
}

func isDigit(c byte) bool { return c-'0' <= 9 }

func skipSpace(b []byte, i int) int {
	for i < len(b) && b[i] <= ' ' && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

func hasWord(b []byte, i int, word string) bool {
	return len(b)-i >= len(word) && string(b[i:i+len(word)]) == word
}

// badWord tells where b[i:] stops being word.
func badWord(b []byte, i int, word string) *Error {
	for k := 0; k < len(word) && i < len(b) && b[i] == word[k]; k++ {
		i++
	}
	return unexpected(b, i)
}

func unexpected(b []byte, i int) *Error {
	if i >= len(b) {
		return &Error{Malformed, "unexpected end", len(b)}
	}
	return &Error{Malformed, "unexpected character", i}
}

func overLimit(rule string, offset int) *Error {
	return &Error{OverLimit, rule, offset}
}
