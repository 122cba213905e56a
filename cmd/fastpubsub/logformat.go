package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"
)

const defaultLogFormat = "asctime=%(asctime)s level=%(levelname)s pathname=%(pathname)s line=%(lineno)s message=%(message)s"

// newLogHandler returns a handler that writes to w: as JSON, as slog's text, or by a format string like those of Python's
// logging, "%(asctime)s %(message)s". What a record has besides follows as key=value.
func newLogHandler(w io.Writer, format string, level slog.Leveler) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: level}
	switch strings.ToLower(format) {
	case "json":
		return slog.NewJSONHandler(w, options), nil
	case "text":
		return slog.NewTextHandler(w, options), nil
	}
	pieces, err := parseLogFormat(format)
	if err != nil {
		return nil, err
	}
	sink := &logSink{w: w, pieces: pieces}
	attributes := slog.NewTextHandler(&sink.line, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
				return slog.Attr{} // the format has it
			}
			return a
		},
	})
	return &formatHandler{sink, attributes}, nil
}

// A logPiece is text, or a field and the verb that it is printed with.
type logPiece struct {
	text  string
	verb  string // of package fmt
	field func(r *slog.Record) any
}

// logConversion is one field: its name, then flags, width and precision, then what it is printed as.
var logConversion = regexp.MustCompile(`^%\(([A-Za-z]+)\)([-+ 0#]*[0-9]*(?:\.[0-9]+)?)([sdf])`)

// parseLogFormat refuses what would print nonsense later.
func parseLogFormat(format string) ([]logPiece, error) {
	var pieces []logPiece
	var text strings.Builder
	for rest := format; rest != ""; {
		switch m := logConversion.FindStringSubmatch(rest); {
		case strings.HasPrefix(rest, "%%"):
			text.WriteByte('%')
			rest = rest[2:]
		case m != nil:
			field, ok := logFields[m[1]]
			if !ok {
				return nil, fmt.Errorf("there is no field %%(%s)", m[1])
			}
			if _, isText := field(&slog.Record{}).(string); isText && m[3] != "s" {
				return nil, fmt.Errorf("%%(%s) is text, so it ends with s, not %s", m[1], m[3])
			}
			pieces = append(pieces, logPiece{text: text.String(), verb: "%" + m[2] + m[3], field: field})
			text.Reset()
			rest = rest[len(m[0]):]
		case rest[0] == '%':
			return nil, fmt.Errorf("%% must begin a field like %%(message)s, or be doubled, at %q", rest[:min(len(rest), 20)])
		default:
			text.WriteByte(rest[0])
			rest = rest[1:]
		}
	}
	if len(pieces) == 0 {
		return nil, errors.New("must be json, text, or have a field like %(message)s")
	}
	return append(pieces, logPiece{text: text.String()}), nil
}

// logFields are those of Python's log records. What a goroutine has none of is what Python has for a main thread.
var logFields = map[string]func(r *slog.Record) any{
	"asctime":         func(r *slog.Record) any { return r.Time.Format("2006-01-02 15:04:05,000") },
	"created":         func(r *slog.Record) any { return float64(r.Time.UnixMicro()) / 1e6 },
	"msecs":           func(r *slog.Record) any { return float64(r.Time.Nanosecond() / int(time.Millisecond)) },
	"relativeCreated": func(r *slog.Record) any { return float64(r.Time.Sub(startedAt).Microseconds()) / 1e3 },
	"levelname":       func(r *slog.Record) any { return levelName(r.Level) },
	"levelno":         func(r *slog.Record) any { return levelNumber(r.Level) },
	"message":         func(r *slog.Record) any { return oneLine.Replace(r.Message) },
	"name":            func(*slog.Record) any { return "fastpubsub" },
	"pathname":        func(r *slog.Record) any { return source(r).File },
	"filename":        func(r *slog.Record) any { return filepath.Base(source(r).File) },
	"module":          func(r *slog.Record) any { return strings.TrimSuffix(filepath.Base(source(r).File), ".go") },
	"lineno":          func(r *slog.Record) any { return source(r).Line },
	"funcName":        func(r *slog.Record) any { return functionName(source(r).Function) },
	"process":         func(*slog.Record) any { return os.Getpid() },
	"processName":     func(*slog.Record) any { return "MainProcess" },
	"thread":          func(*slog.Record) any { return 0 },
	"threadName":      func(*slog.Record) any { return "MainThread" },
	"taskName":        func(*slog.Record) any { return "None" },
}

var (
	startedAt = time.Now()
	oneLine   = strings.NewReplacer("\n", `\n`, "\r", `\r`)
)

func levelName(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "ERROR"
	case level >= slog.LevelWarn:
		return "WARNING"
	case level >= slog.LevelInfo:
		return "INFO"
	}
	return "DEBUG"
}

func levelNumber(level slog.Level) int {
	return map[string]int{"ERROR": 40, "WARNING": 30, "INFO": 20, "DEBUG": 10}[levelName(level)]
}

// source is where a record was made.
func source(r *slog.Record) runtime.Frame {
	frame, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
	return frame
}

// functionName takes the package's path off.
func functionName(function string) string {
	function = function[strings.LastIndexByte(function, '/')+1:]
	_, name, _ := strings.Cut(function, ".")
	return name
}

// A logSink is what handlers with different attributes share.
type logSink struct {
	w      io.Writer
	pieces []logPiece

	mu   sync.Mutex   // protects line and w
	line bytes.Buffer // the handlers' attributes go to its end
}

// A formatHandler writes records by a format string, and then their attributes.
type formatHandler struct {
	*logSink
	attributes slog.Handler // writes nothing else
}

func (h *formatHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.attributes.Enabled(ctx, level)
}

func (h *formatHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &formatHandler{h.logSink, h.attributes.WithAttrs(attrs)}
}

func (h *formatHandler) WithGroup(name string) slog.Handler {
	return &formatHandler{h.logSink, h.attributes.WithGroup(name)}
}

// Handle implements [slog.Handler]. A record is one line, written at once.
func (h *formatHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.Reset()
	for _, p := range h.pieces {
		h.line.WriteString(p.text)
		if p.field != nil {
			fmt.Fprintf(&h.line, p.verb, fitting(p.verb, p.field(&r)))
		}
	}
	h.line.WriteByte(' ')
	length := h.line.Len()
	if err := h.attributes.Handle(ctx, r); err != nil {
		return err
	}
	if h.line.Len() == length+1 { // no attributes: only the end of the line
		h.line.Truncate(length - 1)
		h.line.WriteByte('\n')
	}
	_, err := h.w.Write(h.line.Bytes())
	return err
}

// fitting gives a number the type that a verb is for.
func fitting(verb string, value any) any {
	switch verb[len(verb)-1] {
	case 'd':
		if f, ok := value.(float64); ok {
			return int64(f)
		}
	case 'f':
		if n, ok := value.(int); ok {
			return float64(n)
		}
	case 's':
		return fmt.Sprint(value)
	}
	return value
}
