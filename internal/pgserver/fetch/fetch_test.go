package fetch_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fastpubsub/fastpubsub/internal/pgserver/fetch"
)

var allPrograms = []string{"bin/postgres", "bin/initdb", "bin/pg_ctl", "share/postgres.bki"}

// TestMain deletes the log files that the download library leaves in the folder for temporary ones.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fetch-test-")
	if err != nil {
		panic(err)
	}
	os.Setenv("TMPDIR", dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// jar makes an archive as the repository has them: a zip file with a .txz inside. Its programs do
// nothing.
func jar(t *testing.T, names []string) []byte {
	t.Helper()
	xz, err := exec.LookPath("xz")
	if err != nil {
		t.Skip("NOT TESTED: making an archive needs the xz command")
	}
	var tarball bytes.Buffer
	tw := tar.NewWriter(&tarball)
	for _, name := range names {
		script := "#!/bin/sh\n"
		header := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(script)), Typeflag: tar.TypeReg}
		if err := tw.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(tw, script)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	// The library's reader knows the older of the checks.
	cmd := exec.CommandContext(t.Context(), xz, "--stdout", "--check=crc32")
	cmd.Stdin = &tarball
	compressed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	zw := zip.NewWriter(&out)
	w, err := zw.Create("postgres.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(compressed); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// repository serves body for every archive, with the given checksum, and counts the downloads.
func repository(t *testing.T, body []byte, sum string) (url string, downloads *atomic.Int32) {
	t.Helper()
	downloads = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".sha256") {
			fmt.Fprint(w, sum)
			return
		}
		downloads.Add(1)
		w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s.URL, downloads
}

// listing is what lies in dir, two levels deep.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	for _, pattern := range []string{"*", "*/*"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			name, _ := filepath.Rel(dir, path)
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func TestFetch(t *testing.T) {
	t.Parallel()
	body := jar(t, allPrograms)
	url, downloads := repository(t, body, fmt.Sprintf("%x", sha256.Sum256(body)))
	dir := filepath.Join(t.TempDir(), "made", "cache")

	for range 2 { // the second time from the cache
		bin, err := fetch.From(t.Context(), dir, url)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"postgres", "initdb", "pg_ctl"} {
			info, err := os.Stat(filepath.Join(bin, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode()&0o111 == 0 {
				t.Errorf("%s is not executable: %v", name, info.Mode())
			}
		}
		home := filepath.Base(filepath.Dir(bin))
		if got, want := listing(t, dir), home+" "+home+"/bin "+home+"/share"; got != want {
			t.Errorf("the cache holds %q, want %q", got, want)
		}
	}
	if n := downloads.Load(); n != 1 {
		t.Errorf("%d downloads, want 1", n)
	}
}

func TestFetchFails(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		body func(t *testing.T) []byte
		sum  string // empty: the right one
		want string
	}{
		{"NotAnArchive", func(*testing.T) []byte { return []byte("<html>") }, "", "zip"},
		{"WrongChecksum", func(t *testing.T) []byte { return jar(t, allPrograms) }, "0123", "checksums do not match"},
		{"Incomplete", func(t *testing.T) []byte { return jar(t, allPrograms[:2]) }, "", "incomplete"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			body := test.body(t)
			sum := test.sum
			if sum == "" {
				sum = fmt.Sprintf("%x", sha256.Sum256(body))
			}
			url, _ := repository(t, body, sum)
			mustFail(t, t.Context(), url, test.want)
		})
	}
	t.Run("NotFound", func(t *testing.T) {
		t.Parallel()
		s := httptest.NewServer(http.NotFoundHandler())
		t.Cleanup(s.Close)
		mustFail(t, t.Context(), s.URL, "no version found")
	})
	t.Run("NoServer", func(t *testing.T) {
		t.Parallel()
		s := httptest.NewServer(nil)
		s.Close()
		mustFail(t, t.Context(), s.URL, "unable to connect")
	})
}

func mustFail(t *testing.T, ctx context.Context, url, want string) {
	t.Helper()
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bin, err := fetch.From(ctx, dir, url)
	if err == nil {
		t.Fatalf("Fetch returned %s", bin)
	}
	for _, text := range []string{want, "install PostgreSQL", "FASTPUBSUB_POSTGRES_BIN", "fastpubsub server"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not contain %q", err, text)
		}
	}
	if got := listing(t, dir); got != "precious" {
		t.Errorf("the cache holds %q, want what was there before", got)
	}
}

func TestFetchCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	released := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		cancel()
		<-released
	}))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(released) })
	// Not t.TempDir: the download still writes to it when the test ends.
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fetch.From(ctx, dir, s.URL); !errors.Is(err, context.Canceled) {
		t.Errorf("not Canceled: %v", err)
	}
}
