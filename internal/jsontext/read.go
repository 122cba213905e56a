package jsontext

import (
	"bytes"
	"iter"
	"unicode/utf16"
	"unicode/utf8"
)

// Members yields the members of an object in the order of the text, duplicates included. The key is what stands between
// its quotes, for [Unquote]; the value is its text, without white space around it. Both are parts of object.
func Members(object []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		i := skipSpace(object, 0) + 1
		for {
			i = skipSpace(object, i)
			if i >= len(object) || object[i] != '"' {
				return
			}
			end := skipString(object, i)
			key := object[i+1 : max(end-1, i+1)]
			i = skipSpace(object, skipSpace(object, end)+1)
			if i >= len(object) {
				return
			}
			end = skipValue(object, i)
			if !yield(key, object[i:end]) {
				return
			}
			i = skipSpace(object, end) + 1
		}
	}
}

// Elements yields the text of each element of an array, without white space around it, as parts of array.
func Elements(array []byte) iter.Seq[[]byte] {
	return func(yield func(value []byte) bool) {
		i := skipSpace(array, 0) + 1
		for {
			i = skipSpace(array, i)
			if i >= len(array) || array[i] == ']' {
				return
			}
			end := skipValue(array, i)
			if !yield(array[i:end]) {
				return
			}
			i = skipSpace(array, end) + 1
		}
	}
}

// skipValue returns where the value that starts at b[i] ends.
func skipValue(b []byte, i int) int {
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		for depth := 0; i < len(b); {
			switch b[i] {
			case '"':
				i = skipString(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			i++
			if depth == 0 {
				return i
			}
		}
		return len(b)
	default:
		for i < len(b) && b[i] > ' ' && b[i] != ',' && b[i] != '}' && b[i] != ']' {
			i++
		}
		return i
	}
}

// skipString returns where the string whose opening quote is b[i] ends, after its closing quote.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			break
		}
		start := i
		i += n
		// The quote closes the string unless an odd number of backslashes stands before it.
		k := i
		for k > start && b[k-1] == '\\' {
			k--
		}
		if (i-k)%2 == 0 {
			return i + 1
		}
	}
	return len(b)
}

// Unquote returns the characters that raw, the inside of a string, stands for. Without escapes in it that is raw itself;
// otherwise they are appended to buf, which may be nil.
func Unquote(buf, raw []byte) []byte {
	n := bytes.IndexByte(raw, '\\')
	if n < 0 {
		return raw
	}
	for n >= 0 && n+1 < len(raw) {
		buf = append(buf, raw[:n]...)
		c := raw[n+1]
		raw = raw[n+2:]
		switch c {
		case 'b':
			buf = append(buf, '\b')
		case 'f':
			buf = append(buf, '\f')
		case 'n':
			buf = append(buf, '\n')
		case 'r':
			buf = append(buf, '\r')
		case 't':
			buf = append(buf, '\t')
		case 'u':
			r := hex4(raw, 0)
			raw = raw[min(4, len(raw)):]
			if utf16.IsSurrogate(r) {
				r = utf16.DecodeRune(r, hex4(raw, 2))
				raw = raw[min(6, len(raw)):]
			}
			buf = utf8.AppendRune(buf, r)
		default: // a quote, a backslash, a slash
			buf = append(buf, c)
		}
		n = bytes.IndexByte(raw, '\\')
	}
	return append(buf, raw...)
}

// AppendQuote appends text as a JSON string with as few escapes as JSON allows. It is a string of SQL's jsonpath as well.
func AppendQuote[T []byte | string](buf []byte, text T) []byte {
	const hex = "0123456789abcdef"
	buf = append(buf, '"')
	for i := range len(text) {
		switch c := text[i]; c {
		case '"', '\\':
			buf = append(buf, '\\', c)
		case '\b':
			buf = append(buf, '\\', 'b')
		case '\f':
			buf = append(buf, '\\', 'f')
		case '\n':
			buf = append(buf, '\\', 'n')
		case '\r':
			buf = append(buf, '\\', 'r')
		case '\t':
			buf = append(buf, '\\', 't')
		default:
			if c < ' ' {
				buf = append(buf, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xF])
			} else {
				buf = append(buf, c)
			}
		}
	}
	return append(buf, '"')
}
