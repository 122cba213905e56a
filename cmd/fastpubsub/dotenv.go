package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	dotEnvName     = ".env"
	maxDotEnvBytes = 1 << 20
)

// loadDotEnv sets those variables of ours that the file .env in the working directory has, and the environment lacks. It is
// no error if there is no such file, or if something else has that name.
func loadDotEnv() error {
	var bad badSettings
	info, err := os.Stat(dotEnvName)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	text, err := readDotEnv()
	if err != nil {
		bad.add(dotEnvName, "%v", err)
		return bad
	}
	for _, v := range parseDotEnv(&bad, text) {
		if _, ok := os.LookupEnv(v.name); !ok && v.value != "" {
			os.Setenv(v.name, v.value)
		}
	}
	return bad.err()
}

func readDotEnv() (string, error) {
	file, err := os.Open(dotEnvName)
	if err != nil {
		return "", errors.New("cannot be read: " + errors.Unwrap(err).Error())
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxDotEnvBytes+1))
	switch {
	case err != nil:
		return "", errors.New("cannot be read: " + err.Error())
	case len(text) > maxDotEnvBytes:
		return "", fmt.Errorf("must have at most %d bytes", maxDotEnvBytes)
	case !utf8.Valid(text):
		return "", errors.New("must be UTF-8")
	}
	return string(text), nil
}

// A variable is one of the environment.
type variable struct{ name, value string }

var dotEnvLine = regexp.MustCompile(`^\s*(?:export\s+)?(FASTPUBSUB_[A-Z0-9_]+)\s*=\s*(.*?)\s*$`)

// parseDotEnv returns the variables of ours that a file sets; of one that is there twice the last counts. All other lines are
// somebody else's, and passed over.
//
// A value ends with the line, or before a # that follows white space. In single quotes nothing else has a meaning; in
// double quotes \n, \t, \" and \\ have the usual one. There is no interpolation: a $ is a $.
func parseDotEnv(b *badSettings, text string) []variable {
	var all []variable
	text = strings.TrimPrefix(text, "\ufeff")
	number := 0
	for line := range strings.SplitSeq(text, "\n") {
		number++
		m := dotEnvLine.FindStringSubmatch(strings.TrimSuffix(line, "\r"))
		if m == nil {
			continue
		}
		value, err := dotEnvValue(m[2])
		if err != nil {
			b.add(m[1], "line %d of %s: %v", number, dotEnvName, err)
			continue
		}
		all = append(all, variable{m[1], value})
	}
	last := make(map[string]int, len(all))
	for i, v := range all {
		last[v.name] = i
	}
	kept := all[:0]
	for i, v := range all {
		if last[v.name] == i {
			kept = append(kept, v)
		}
	}
	return kept
}

// dotEnvValue reads what follows the equals sign. Its errors do not repeat it.
func dotEnvValue(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	quote := text[0]
	if quote != '"' && quote != '\'' {
		for i := range len(text) {
			if text[i] == '#' && (i == 0 || text[i-1] == ' ' || text[i-1] == '\t') {
				text = text[:i]
				break
			}
		}
		return strings.TrimRight(text, " \t"), nil
	}
	var value strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == quote:
			if rest := strings.TrimLeft(text[i+1:], " \t"); rest != "" && rest[0] != '#' {
				return "", errors.New("there is something behind the closing quote")
			}
			return value.String(), nil
		case c == '\\' && quote == '"' && i+1 < len(text):
			i++
			switch text[i] {
			case 'n':
				value.WriteByte('\n')
			case 't':
				value.WriteByte('\t')
			case '"', '\\':
				value.WriteByte(text[i])
			default: // not ours to judge
				value.WriteByte('\\')
				value.WriteByte(text[i])
			}
		default:
			value.WriteByte(c)
		}
	}
	return "", errors.New("the quote is not closed")
}
