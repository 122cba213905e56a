package httpapi_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// browserTimeout is for a test with a browser, which takes some seconds on a machine with nothing else to do.
const browserTimeout = time.Minute

// A browser is one tab, and what it complained about.
type browser struct {
	mu       sync.Mutex // protects all below
	problems []string
	foreign  []string // requests to anywhere but the server
}

func (b *browser) add(list *[]string, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*list = append(*list, text)
}

// check fails the test for what the browser complained about: errors of scripts, what the policy did not let it load or run,
// answers that were errors, and requests to other hosts.
func (b *browser) check(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.problems {
		t.Errorf("the browser's console: %s", text)
	}
	for _, address := range b.foreign {
		t.Errorf("the page asked for %s", address)
	}
}

// newBrowser starts Chromium for pages of a server. The test is skipped where there is none, unless that is not allowed.
func newBrowser(t *testing.T, server string) (context.Context, *browser) {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		const reason = "no Chromium on this machine: apt-get install chromium"
		if os.Getenv("FASTPUBSUB_TEST_REQUIRE_CHROMIUM") == "1" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.WindowSize(1280, 2000), chromedp.Flag("disable-gpu", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it refuses to run as root with one
	}
	ctx, cancel := context.WithTimeout(t.Context(), browserTimeout)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(stop)
	ctx, closeTab := chromedp.NewContext(ctx)
	t.Cleanup(closeTab)

	b := &browser{}
	err := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			text := e.ExceptionDetails.Text
			if e.ExceptionDetails.Exception != nil {
				text += " " + e.ExceptionDetails.Exception.Description
			}
			b.add(&b.problems, text)
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
				var text strings.Builder
				for _, argument := range e.Args {
					text.Write(argument.Value)
					text.WriteString(argument.Description)
				}
				b.add(&b.problems, text.String())
			}
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
				b.add(&b.problems, e.Entry.Text+" "+e.Entry.URL)
			}
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(e.Request.URL); err != nil || u.Scheme != "data" && u.Scheme != "blob" && "http://"+u.Host != server {
				b.add(&b.foreign, e.Request.URL)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	err = chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, logErr := cdp.Call(ctx, tab, log.Enable, cdp.Empty{})
		_, networkErr := cdp.Call(ctx, tab, network.Enable, network.EnableParams{})
		return errors.Join(logErr, networkErr)
	}))
	if err != nil {
		t.Fatal(err)
	}
	return ctx, b
}

// servePrefixed is a server whose API is under a prefix.
func servePrefixed(t *testing.T, prefix string, config httpapi.Config) (*fastpubsub.Broker, string) {
	t.Helper()
	db := storetest.New(t)
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Tokens: fastpubsub.TokenSettings{Key: testKey}})
	if err != nil {
		t.Fatal(err)
	}
	config.Logger = silent
	mux := http.NewServeMux()
	mux.Handle(prefix+"/", http.StripPrefix(prefix, httpapi.New(broker, config)))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return broker, server.URL
}

// The pages work, at the root of a server and below a prefix: nothing but the server is asked, nothing is complained about,
// and a message that Swagger UI publishes is there to consume.
func TestPagesInBrowser(t *testing.T) {
	for _, prefix := range []string{"", "/deep/down"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			broker, server := servePrefixed(t, prefix, httpapi.Config{})
			t.Run("Swagger UI", func(t *testing.T) { testSwaggerUI(t, broker, server, prefix) })
			t.Run("ReDoc", func(t *testing.T) { testReDoc(t, server, prefix) })
		})
	}
}

func testSwaggerUI(t *testing.T, broker *fastpubsub.Broker, server, prefix string) {
	// The example's topic, which the page fills in.
	if _, err := broker.CreateTopic(t.Context(), "user-events"); err != nil {
		t.Fatal(err)
	}
	sub := fastpubsub.Subscription{ID: "s", TopicID: "user-events"}
	if _, err := broker.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	ctx, b := newBrowser(t, server)
	const operation = "#operations-Topics-publishMessages"
	err := chromedp.Do(ctx,
		chromedp.Navigate(server+prefix+"/docs"),
		chromedp.WaitVisible(operation),
		chromedp.Click(operation+" .opblock-summary-control"),
		chromedp.Click(operation+" .try-out__btn"),
		chromedp.WaitVisible(operation+" .execute"),
		chromedp.Click(operation+" .execute"),
		chromedp.WaitVisible(operation+" .live-responses-table .response-col_status"),
	)
	var status string
	if err == nil {
		status, err = chromedp.Run(ctx, chromedp.Text(operation+" .live-responses-table tbody .response-col_status"))
	}
	if err != nil {
		b.check(t)
		t.Fatal(err)
	}
	if !strings.HasPrefix(status, "204") && !strings.HasPrefix(status, "201") {
		t.Errorf("the answer to what was tried is %q", status)
	}
	msgs, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if len(msgs) != 2 || !strings.Contains(string(msgs[0].Payload), "user.created") {
		t.Errorf("published were %+v, not the two messages of the example", msgs)
	}
	b.check(t)
}

// A client that has a secret logs in with the page's button, and what it then tries is allowed.
func TestAuthorizeInBrowser(t *testing.T) {
	broker, server := servePrefixed(t, "/deep", httpapi.Config{Authenticate: true})
	c, secret, err := broker.CreateClient(t.Context(), fastpubsub.NewClient{Name: "n", Scopes: fastpubsub.Scopes{"topics:read"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, b := newBrowser(t, server)
	const operation = "#operations-Topics-listTopics"
	const form = ".modal-ux .auth-container:first-child "
	err = chromedp.Do(ctx,
		chromedp.Navigate(server+"/deep/docs"),
		chromedp.Click(".auth-wrapper .btn.authorize"),
		chromedp.WaitVisible("#client_id_clientCredentials, #client_id"),
		chromedp.SendKeys("#client_id_clientCredentials, #client_id", c.ID.String()),
		chromedp.SendKeys("#client_secret_clientCredentials, #client_secret", string(secret)),
		chromedp.Click(form+"button.authorize"),
		chromedp.WaitVisible(form+".auth-btn-wrapper .btn-done"),
		chromedp.WaitNotPresent(form+"#client_secret"),
		chromedp.Click(form+".btn-done"),
		chromedp.Click(operation+" .opblock-summary-control"),
		chromedp.Click(operation+" .try-out__btn"),
		chromedp.Click(operation+" .execute"),
		chromedp.WaitVisible(operation+" .live-responses-table .response-col_status"),
	)
	var status string
	if err == nil {
		status, err = chromedp.Run(ctx, chromedp.Text(operation+" .live-responses-table tbody .response-col_status"))
	}
	if err != nil {
		b.check(t)
		t.Fatal(err)
	}
	if !strings.HasPrefix(status, "200") {
		t.Errorf("the answer to what was tried is %q", status)
	}
	b.check(t)
}

func testReDoc(t *testing.T, server, prefix string) {
	ctx, b := newBrowser(t, server)
	var text string
	err := chromedp.Do(ctx,
		chromedp.Navigate(server+prefix+"/redoc"),
		chromedp.WaitVisible(`[id="tag/Topics/operation/publishMessages"]`),
	)
	if err == nil {
		text, err = chromedp.Run(ctx, chromedp.Text("#page"))
	}
	if err != nil {
		b.check(t)
		t.Fatal(err)
	}
	for _, want := range []string{"fastpubsub", "Publish messages", "List dead letters"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	b.check(t)
}
