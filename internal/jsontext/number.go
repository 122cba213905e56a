package jsontext

import (
	"bytes"
	"cmp"
	"strconv"
	"strings"
)

// AppendNumber appends the one spelling that all JSON numbers of the same value share: the digits from the first to the
// last that is not 0, without a point, and the exponent unless it is 0: 1.50 and 15e-1 are both 15e-1, 0.0 and -0 are 0.
// The comparison is that of decimal digits, exact at any size.
//
// It reports false, and appends nothing, if text is not a JSON number, or has a value that no number within the limits of
// [CheckObject] has.
func AppendNumber(buf, text []byte) ([]byte, bool) {
	mantissaEnd, end, exp, err := scanNumber(text, 0)
	if err != nil || end < len(text) {
		return buf, false
	}
	mantissa := text[:mantissaEnd]
	negative := mantissa[0] == '-'
	if negative {
		mantissa = mantissa[1:]
	}
	if point := bytes.IndexByte(mantissa, '.'); point >= 0 {
		exp -= len(mantissa) - point - 1
	}
	mantissa = bytes.TrimLeft(mantissa, "0.")
	if len(mantissa) == 0 {
		return append(buf, '0'), true
	}
	// The zeros cut off on the right raise the exponent; the point among them does not.
	digits := bytes.TrimRight(mantissa, "0.")
	exp += bytes.Count(mantissa[len(digits):], []byte{'0'})
	whole, fraction, _ := bytes.Cut(digits, []byte{'.'})
	if len(whole)+len(fraction) > MaxNumberLen || max(exp, -exp) > MaxExponent+MaxNumberLen {
		return buf, false
	}
	if negative {
		buf = append(buf, '-')
	}
	buf = append(buf, whole...)
	buf = append(buf, fraction...)
	if exp != 0 {
		buf = append(buf, 'e')
		buf = strconv.AppendInt(buf, int64(exp), 10)
	}
	return buf, true
}

// CompareNumbers returns -1, 0 or 1, as a is less than, equal to or greater than b, both spelled as AppendNumber does.
func CompareNumbers(a, b string) int {
	aSign, aDigits, aExp := parts(a)
	bSign, bDigits, bExp := parts(b)
	if aSign != bSign || aSign == 0 {
		return cmp.Compare(aSign, bSign)
	}
	// First where the leading digit stands, then the digits from there; neither ends in a 0.
	return aSign * cmp.Or(cmp.Compare(len(aDigits)+aExp, len(bDigits)+bExp), strings.Compare(aDigits, bDigits))
}

func parts(number string) (sign int, digits string, exp int) {
	if number == "0" {
		return 0, "", 0
	}
	digits, exponent, _ := strings.Cut(number, "e")
	exp, _ = strconv.Atoi(exponent) // 0 if there is none
	if unsigned, negative := strings.CutPrefix(digits, "-"); negative {
		return -1, unsigned, exp
	}
	return 1, digits, exp
}
