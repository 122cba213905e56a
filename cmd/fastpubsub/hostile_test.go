package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// testPatience bounds what is waited for in a test that fails.
const testPatience = time.Minute

// short timeouts, for clients that run into them. The others do not depend on them.
var short = timeouts{header: 200 * time.Millisecond, read: 400 * time.Millisecond, write: time.Minute, idle: 200 * time.Millisecond}

// listen serves an API as the server does.
func listen(t *testing.T, api http.Handler, limits timeouts, log io.Writer) (address string) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.Config = newServer(t.Context(), api, slog.New(slog.NewTextHandler(log, nil)), limits)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func newAPI(t *testing.T, config httpapi.Config, log io.Writer) (http.Handler, *fastpubsub.Broker, *storetest.DB) {
	t.Helper()
	broker, db := subscribed(t, fastpubsub.SubscriptionSettings{})
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	return httpapi.New(broker, config), broker, db
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testPatience)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// statuses sends bytes, and no more, and returns the status of each answer until the server closes the connection.
func statuses(t *testing.T, address, request string) (all []int) {
	t.Helper()
	conn := dial(t, address)
	go conn.Write([]byte(request)) // the server may answer, and close, before it has read everything
	reader := bufio.NewReader(conn)
	for {
		method := http.MethodGet
		if strings.HasPrefix(request, "HEAD ") {
			method = http.MethodHead
		}
		answer, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("the server does not close the connection: %v", err)
			}
			return all
		}
		all = append(all, answer.StatusCode)
		if answer.StatusCode == http.StatusContinue {
			continue
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return all
		}
	}
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}

// TestHostileRequests sends what no client in its right mind would. Nothing of it is an error of the server.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	api, _, _ := newAPI(t, httpapi.Config{MaxBodyBytes: 1 << 20}, &log)
	limits := short
	limits.header, limits.read = testPatience, testPatience // these clients are as fast as the machine
	address := listen(t, api, limits, &log)
	const (
		end   = " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
		post  = "POST /topics/t/messages HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
		alive = "GET /liveness HTTP/1.1\r\nHost: h\r\n"
	)
	body := func(text string) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", post, len(text), text) }
	for _, test := range []struct {
		reason, request string
		want            []int
	}{
		{"parent in the path", "GET /topics/../liveness" + end, []int{404}},
		{"parent as id", "GET /topics/.." + end, []int{404}},
		{"escaped parent", "GET /topics/%2e%2e/messages" + end, []int{405}},
		{"two slashes", "GET //liveness" + end, []int{404}},
		{"empty id", "POST /topics//messages" + end, []int{422}},
		{"slash at the end", "GET /liveness/" + end, []int{404}},
		{"escaped slash", "GET /topics/a%2Fb" + end, []int{404}},
		{"escaped slash, lower case", "GET /topics/a%2fb" + end, []int{404}},
		{"NUL in the path", "GET /topics/%00" + end, []int{404}},
		{"raw NUL in the path", "GET /topics/\x00" + end, []int{400}},
		{"invalid UTF-8", "GET /topics/%ff%fe" + end, []int{404}},
		{"raw invalid UTF-8", "GET /topics/\xff" + end, []int{404}},
		{"broken escape", "GET /topics/%zz" + end, []int{400}},
		{"semicolons in the query", "GET /topics?limit=1;offset=2" + end, []int{422}},
		{"a long path", "GET /topics/" + strings.Repeat("x", 20_000) + end, []int{404}},
		{"a path that is too long", "GET /topics/" + strings.Repeat("x", 100_000) + end, []int{431}},
		{"a long query", "GET /topics?limit=" + strings.Repeat("9", 20_000) + end, []int{422}},
		{"absolute address", "GET http://elsewhere/liveness" + end, []int{200}},
		{"no slash", "GET liveness" + end, []int{400}},
		{"asterisk", "GET *" + end, []int{405}},
		{"options of all", "OPTIONS *" + end, []int{200}},
		{"trace", "TRACE /liveness" + end, []int{405}},
		{"connect", "CONNECT elsewhere:443" + end, []int{404}},
		{"connect to a path", "CONNECT /liveness" + end, []int{405}},
		{"patch", "PATCH /topics/t" + end, []int{405}},
		{"lower case", "get /liveness" + end, []int{405}},
		{"a method with a space", "G T /liveness" + end, []int{400}},
		{"head of consume", "HEAD /subscriptions/s/messages?consumer_id=w" + end, []int{405}},
		{"head", "HEAD /topics/t" + end, []int{200}},
		{"HTTP/1.0", "GET /liveness HTTP/1.0\r\n\r\n", []int{200}},
		{"HTTP/1.0 that is kept", "GET /liveness HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /liveness HTTP/1.0\r\n\r\n", []int{200, 200}},
		{"HTTP/0.9", "GET /liveness\r\n\r\n", []int{400}},
		{"HTTP/2 at once", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{405}},
		{"HTTP/9.9", "GET /liveness HTTP/9.9\r\nHost: h\r\n\r\n", []int{505}},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}},
		{"nothing", "\r\n\r\n", []int{400}},
		{"no Host", "GET /liveness HTTP/1.1\r\n\r\n", []int{400}},
		{"two Hosts", "GET /liveness HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", []int{400}},
		{"Host with a space", "GET /liveness HTTP/1.1\r\nHost: a b\r\n\r\n", []int{400}},
		{"space before a colon", alive + "Content-Length : 5\r\n\r\n", []int{400}},
		{"NUL in a header", alive + "X: a\x00b\r\n\r\n", []int{400}},
		{"no colon", alive + "nonsense\r\n\r\n", []int{400}},
		{"headers that are too long", alive + "X: " + strings.Repeat("x", 200_000) + "\r\n\r\n", []int{431}},
		{"very many headers", alive + strings.Repeat("X: y\r\n", 50_000) + "\r\n", []int{431}},
		{"pipelined", alive + "\r\n" + alive + "\r\nGET /nowhere" + end, []int{200, 200, 404}},
		{"pipelined after a body", "POST /topics/t/messages HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n[{}]GET /nowhere" + end, []int{204, 404}},
		{"pipelined after a body that nobody reads", "POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n[{}]GET /liveness" + end, []int{404, 200}},

		{"two lengths", post + "Content-Length: 4\r\nContent-Length: 5\r\n\r\n[{}]", []int{400}},
		{"two equal lengths", post + "Content-Length: 4\r\nContent-Length: 4\r\n\r\n[{}]", []int{204}},
		{"lengths in a list", post + "Content-Length: 4, 4\r\n\r\n[{}]", []int{400}},
		{"negative length", post + "Content-Length: -4\r\n\r\n[{}]", []int{400}},
		{"signed length", post + "Content-Length: +4\r\n\r\n[{}]", []int{400}},
		{"hexadecimal length", post + "Content-Length: 0x4\r\n\r\n[{}]", []int{400}},
		{"length beyond an integer", post + "Content-Length: 99999999999999999999\r\n\r\n[{}]", []int{400}},
		{"length beyond the limit", post + "Content-Length: 1048577\r\n\r\n[{}]", []int{413}},
		{"enormous length", post + "Content-Length: 1000000000000\r\n\r\n[{}]", []int{413}},
		{"chunked", post + "Transfer-Encoding: chunked\r\n\r\n4\r\n[{}]\r\n0\r\n\r\n", []int{204}},
		{"chunked without end", post + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("10000\r\n"+strings.Repeat(" ", 0x10000)+"\r\n", 20), []int{413}},
		{"chunks without size", post + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n[{}]\r\n0\r\n\r\n", []int{400}},
		{"enormous chunk", post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n[{}]", []int{400}},
		{"other encoding", post + "Transfer-Encoding: gzip\r\n\r\n[{}]", []int{501}},
		{"chunked twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{501}},
		{"hidden chunked", post + "Transfer-Encoding: xchunked\r\n\r\n[{}]", []int{501}},
		{"compressed body", post + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n[{}]", []int{415}},
		{"form", post + "Content-Type: text/plain\r\nContent-Length: 4\r\n\r\n[{}]", []int{415}},
		{"broken type", post + "Content-Type: ;;;\r\nContent-Length: 4\r\n\r\n[{}]", []int{415}},
		{"waits to continue", post + "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n[{}]", []int{100, 204}},
		{"waits to continue, too large", post + "Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", []int{413}},
		{"expects what is not known", post + "Expect: miracles\r\nContent-Length: 4\r\n\r\n[{}]", []int{417}},

		{"no body", body(""), []int{422}},
		{"white space", body("\n\n  \t"), []int{422}},
		{"not JSON", body("[{]"), []int{422}},
		{"cut off", body(`[{"a":`), []int{422}},
		{"invalid UTF-8 in JSON", body("[{\"a\":\"\xff\"}]"), []int{422}},
		{"NUL", body("[\x00]"), []int{422}},
		{"byte order mark", body("\ufeff[{}]"), []int{422}},
		{"NaN", body(`[{"a":NaN}]`), []int{422}},
		{"two values", body("[{}][{}]"), []int{422}},
		{"deep lists", body(strings.Repeat("[", 500_000)), []int{422}},
		{"deep objects", body("[" + strings.Repeat(`{"a":`, 150_000)), []int{422}},
		{"deep and closed", body("[{\"a\":" + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}]"), []int{422}},
		{"an endless number", body(`[{"a":` + strings.Repeat("9", 1_000_000) + "}]"), []int{422}},
		{"very many elements", body("[" + strings.Repeat("{},", 300_000) + "{}]"), []int{422}},
		{"very many commas", body("[" + strings.Repeat(",", 1_000_000) + "]"), []int{422}},
		{"very many members", body(`{"messages":1` + strings.Repeat(`,"a":1`, 100_000) + "}"), []int{422}},
		{"only quotes", body("[" + strings.Repeat(`"`, 1_000_001) + "]"), []int{422}},
		{"only backslashes", body(`["` + strings.Repeat(`\`, 1_000_000)), []int{422}},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(test.want, statuses(t, address, test.request)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
	t.Cleanup(func() {
		for _, word := range []string{"panic", "level=ERROR"} {
			if strings.Contains(log.String(), word) {
				t.Errorf("the log has %q: %s", word, &log)
			}
		}
	})
}

// What is both chunked and has a length may be read in two ways. It must not make a request of what another reads as a body.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	api, _, _ := newAPI(t, httpapi.Config{}, io.Discard)
	address := listen(t, api, serverTimeouts, io.Discard)
	const hidden = "0\r\n\r\nDELETE /topics/t HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
	for _, headers := range []string{
		fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", len(hidden)),
		fmt.Sprintf("Transfer-Encoding: chunked\r\nContent-Length: %d\r\n", len(hidden)),
		fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding:\tchunked\r\n", len(hidden)),
		fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: CHUNKED\r\n", len(hidden)),
	} {
		got := statuses(t, address, "POST /topics/t/messages HTTP/1.1\r\nHost: h\r\n"+headers+"\r\n"+hidden)
		if len(got) != 1 {
			t.Errorf("%q: answers %v, want one", headers, got)
		}
	}
	if answer, err := get(t.Context(), "http://"+address+"/topics/t"); err != nil || answer[:3] != "200" {
		t.Errorf("the topic: %s, %v", answer, err)
	}
}

// TestSlowRequests has clients that send a byte now and then, and never come to an end.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	api, _, _ := newAPI(t, httpapi.Config{}, io.Discard)
	address := listen(t, api, short, io.Discard)
	for _, test := range []struct {
		reason, start, again string
		want                 string // what the answer begins with; nothing for none
	}{
		{"first line", "GET /li", "v", ""},
		{"headers", "GET /liveness HTTP/1.1\r\nHost: h\r\n", "X: y\r\n", ""},
		{"body", "POST /topics/t/messages HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n[", " ", "HTTP/1.1 408 "},
		{"chunks", "POST /topics/t/messages HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n", "1\r\n \r\n", "HTTP/1.1 408 "},
		{"body that nobody reads", "POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n[", " ", "HTTP/1.1 404 "},
		{"second request", "GET /liveness HTTP/1.1\r\nHost: h\r\n\r\nGET", " ", "HTTP/1.1 200 "},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, address)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for next := test.start; ; next = test.again {
					if _, err := conn.Write([]byte(next)); err != nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			}()
			got, err := io.ReadAll(conn)
			if isTimeout(err) {
				t.Fatalf("the server keeps the connection, and says %q", got)
			}
			conn.Close()
			<-ended
			if test.want == "" && len(got) > 0 && !bytes.HasPrefix(got, []byte("HTTP/1.1 4")) || !bytes.HasPrefix(got, []byte(test.want)) {
				t.Errorf("answer %q, want %q", got, test.want)
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		if got := statuses(t, address, "GET /liveness HTTP/1.1\r\nHost: h\r\n\r\n"); !slices.Equal(got, []int{200}) {
			t.Errorf("answers %v, want one of 200", got)
		}
	})
}
