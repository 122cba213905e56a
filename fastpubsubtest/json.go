package fastpubsubtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// decode reads JSON that was checked, and keeps numbers as they are.
func decode(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

func encode(v any) string {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(text.String(), "\n")
}

// difference says where got is not what is wanted, but for further keys of objects; nothing if there is no difference.
func difference(path string, want, got any) string {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok {
			break
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			at := strings.TrimPrefix(path+"."+key, ".")
			value, ok := got[key]
			if !ok {
				return fmt.Sprintf("%s is missing, want %s", at, encode(want[key]))
			}
			if reason := difference(at, want[key], value); reason != "" {
				return reason
			}
		}
		return ""
	case []any:
		got, ok := got.([]any)
		if !ok {
			break
		}
		if len(got) != len(want) {
			return fmt.Sprintf("%s has %d elements, want %d", path, len(got), len(want))
		}
		for i := range want {
			if reason := difference(path+"["+strconv.Itoa(i)+"]", want[i], got[i]); reason != "" {
				return reason
			}
		}
		return ""
	case json.Number:
		if got, ok := got.(json.Number); ok && sameNumber(want, got) {
			return ""
		}
	default: // string, bool, nil
		if want == got {
			return ""
		}
	}
	return fmt.Sprintf("%s is %s, want %s", path, encode(got), encode(want))
}

// sameNumber compares by value. Payloads have no exponents that would make a Rat large.
func sameNumber(a, b json.Number) bool {
	if a == b {
		return true
	}
	x, ok := new(big.Rat).SetString(a.String())
	if !ok {
		return false
	}
	y, ok := new(big.Rat).SetString(b.String())
	return ok && x.Cmp(y) == 0
}
