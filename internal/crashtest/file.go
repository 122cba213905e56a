package crashtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// A File is a ledger that processes share. Each entry is a line of JSON, written by one call, so that what was added before
// comes first, whoever added it.
type File struct{ f *os.File }

// OpenFile opens a ledger, making it if there is none.
func OpenFile(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &File{f}, nil
}

// Add is a [Recorder]. A line that was cut off when its writer was killed stays alone.
func (f *File) Add(e Entry) error {
	e.At = time.Now().UnixMilli()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = f.f.Write(fmt.Appendf(nil, "\n%s\n", line))
	return err
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// A Reader reads a ledger file, also while others write to it.
type Reader struct {
	f    *os.File
	r    *bufio.Reader
	part []byte // of a line, at the end
}

// OpenReader begins to read a ledger file.
func OpenReader(path string) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &Reader{f: f, r: bufio.NewReaderSize(f, 1<<20)}, nil
}

// Each calls do with each entry that was added since the last call.
func (r *Reader) Each(do func(Entry)) error {
	for {
		line, err := r.r.ReadBytes('\n')
		r.part = append(r.part, line...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e Entry
		if json.Unmarshal(bytes.TrimSpace(r.part), &e) == nil { // empty, or its writer was killed, else
			do(e)
		}
		r.part = r.part[:0]
	}
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }

// ReadFile returns the entries of a ledger file.
func ReadFile(path string) (entries []Entry, err error) {
	r, err := OpenReader(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	err = r.Each(func(e Entry) { entries = append(entries, e) })
	return entries, err
}
