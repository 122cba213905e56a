package doctor

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// WriteText writes the report for people: a line for each finding, its remedy below, and what it adds up to.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	var counts [len(severityWords)]int
	for _, f := range r.Findings {
		counts[f.Severity]++
		fmt.Fprintf(&b, "%-8s %-14s %s\n", f.Severity, f.Check, oneLine(f.Summary))
		if f.Remedy != "" {
			fmt.Fprintf(&b, "%-8s %-14s -> %s\n", "", "", oneLine(f.Remedy))
		}
	}
	var parts []string
	for severity := Error; severity > OK; severity-- {
		if n := counts[severity]; n > 0 {
			parts = append(parts, count(n)+" "+plural(severityWords[severity], n))
		}
	}
	if len(parts) == 0 {
		parts = []string{"nothing to mend"}
	}
	fmt.Fprintf(&b, "\n%s (schema %s, %.1f s)\n", strings.Join(parts, ", "), r.Schema, r.TookSeconds)
	_, err := io.WriteString(w, b.String())
	return err
}

var severityWords = [...]string{"ok", "notice", "warning", "error"}

func plural(word string, n int) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// oneLine keeps what comes from the server, such as names, from breaking lines or moving the cursor.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// count writes a number with commas between thousands.
func count[N int | int32 | int64](n N) string {
	digits := strconv.FormatInt(int64(n), 10)
	sign := ""
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	var b strings.Builder
	for i, digit := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	return sign + b.String()
}

// counted is count with a noun.
func counted[N int | int32 | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return count(n) + " " + noun + "s"
}

// isAre, hasHave and waitsWait are counted with a verb.
func isAre[N int | int64](n N, noun string) string     { return verb(n, noun, "is", "are") }
func hasHave[N int | int64](n N, noun string) string   { return verb(n, noun, "has", "have") }
func waitsWait[N int | int64](n N, noun string) string { return verb(n, noun, "waits", "wait") }

func verb[N int | int64](n N, noun, one, many string) string {
	if n != 1 {
		one = many
	}
	return counted(n, noun) + " " + one
}

// size writes bytes in the largest unit of which there is one.
func size(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, unit := float64(bytes), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 || value >= 100 {
		return fmt.Sprintf("%.0f %s", value, units[unit])
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

// span writes a duration in one unit.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(d.Abs())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.2g ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.2g s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

// seconds makes a duration of what the database returns.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// literal quotes text for SQL that is shown.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
