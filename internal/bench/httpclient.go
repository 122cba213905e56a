package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
)

// An httpClient is one connection that is kept, with one request at a time. It does what these workloads need of
// HTTP/1.1, by hand: http.Client takes as much time for a small request as the server that is measured, from the same
// processors. It is used by one goroutine.
type httpClient struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
	body    []byte
	stop    func() bool
}

// dialHTTP connects. When ctx ends, so does the connection.
func dialHTTP(ctx context.Context, address string) (*httpClient, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &httpClient{
		conn: conn, reader: bufio.NewReader(conn),
		stop: context.AfterFunc(ctx, func() { conn.Close() }),
	}, nil
}

func (c *httpClient) close() {
	c.stop()
	c.conn.Close()
}

// send sends a request. Its body consists of parts.
func (c *httpClient) send(method, path string, parts ...[]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	r := append(c.request[:0], method...)
	r = append(r, ' ')
	r = append(r, path...)
	r = append(r, " HTTP/1.1\r\nHost: bench\r\n"...)
	if method == http.MethodPost {
		r = append(r, "Content-Type: application/json\r\nContent-Length: "...)
		r = strconv.AppendInt(r, int64(size), 10)
		r = append(r, "\r\n"...)
	}
	r = append(r, "\r\n"...)
	for _, p := range parts {
		r = append(r, p...)
	}
	c.request = r
	_, err := c.conn.Write(r)
	return err
}

// receive returns the body of an answer, which must have the status, until the next call.
func (c *httpClient) receive(status int) ([]byte, error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return nil, fmt.Errorf("not an answer: %q", line)
	}
	got, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return nil, fmt.Errorf("not an answer: %q", line)
	}
	size := 0
	for {
		if line, err = c.reader.ReadSlice('\n'); err != nil {
			return nil, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if size, err = strconv.Atoi(string(value)); err != nil || size < 0 {
				return nil, fmt.Errorf("not a length: %q", value)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			return nil, errors.New("an answer without Content-Length")
		}
	}
	if cap(c.body) < size {
		c.body = make([]byte, size)
	}
	c.body = c.body[:size]
	if _, err := io.ReadFull(c.reader, c.body); err != nil {
		return nil, err
	}
	if got != status {
		return nil, fmt.Errorf("the answer is %d %s, not %d", got, c.body, status)
	}
	return c.body, nil
}

func (c *httpClient) do(status int, method, path string, parts ...[]byte) ([]byte, error) {
	if err := c.send(method, path, parts...); err != nil {
		return nil, err
	}
	return c.receive(status)
}
