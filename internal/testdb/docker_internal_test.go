package testdb

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// These make the test binary a docker program: one whose only container is a server that runs already.
const (
	fakeServer = "TESTDB_FAKE_DOCKER_SERVER" // its address
	fakeLog    = "TESTDB_FAKE_DOCKER_LOG"    // a file for what it was asked
	fakeFails  = "TESTDB_FAKE_DOCKER_FAILS"  // which command fails
)

func TestMain(m *testing.M) {
	if os.Getenv(fakeServer) == "" {
		os.Exit(m.Run())
	}
	if err := fakeDocker(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func fakeDocker(args []string) error {
	log, err := os.OpenFile(os.Getenv(fakeLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintln(log, strings.Join(args, " "))
	if args[0] == os.Getenv(fakeFails) {
		return fmt.Errorf("%s does not work today", args[0])
	}
	config, err := pgx.ParseConfig(os.Getenv(fakeServer))
	if err != nil {
		return err
	}
	switch args[0] {
	case "port":
		fmt.Printf("0.0.0.0:%d\n[::]:%d\n", config.Port, config.Port)
	case "run":
		if !slices.Contains(args, "POSTGRES_USER="+config.User) {
			return fmt.Errorf("another user is wanted: %q", args)
		}
		if config.Port == 1 { // there is none, in tests that do not get that far
			return nil
		}
		conn, err := pgx.ConnectConfig(context.Background(), config)
		if err != nil {
			return err
		}
		defer conn.Close(context.Background())
		_, err = conn.Exec(context.Background(), "ALTER ROLE "+config.User+" PASSWORD '"+os.Getenv("POSTGRES_PASSWORD")+"'")
		return err
	}
	return nil
}

// install puts the fake into PATH, and returns its log. It is for tests that are not parallel.
func install(t *testing.T, server string) (log func() string) {
	t.Helper()
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "docker")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv("DOCKER_HOST", "")
	t.Setenv(fakeServer, server)
	t.Setenv(fakeLog, filepath.Join(dir, "log"))
	return func() string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

func TestStartContainer(t *testing.T) {
	srv, err := pgserver.Start(t.Context(), pgserver.Options{})
	if err != nil {
		t.Skipf("NOT TESTED: a server to stand for the one in the container: %v", err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			t.Error(err)
		}
	})
	log := install(t, srv.URL())
	address, stop, err := startContainer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	if err := stop(); err != nil {
		t.Error(err)
	}
	said := log()
	for _, text := range []string{"\nrun --detach --rm --name fastpubsub-test-", " --publish 127.0.0.1::5432 ",
		" --entrypoint timeout postgres:17-alpine 3600 docker-entrypoint.sh postgres -c ", " fsync=off", "\nport fastpubsub-test-", "\nrm --force --volumes fastpubsub-test-"} {
		if !strings.Contains(said, text) {
			t.Errorf("docker was not asked %q, but\n%s", text, said)
		}
	}
	if strings.Contains(said, config.Password) {
		t.Error("the password is on a command line")
	}
}

func TestStartContainerRemote(t *testing.T) {
	log := install(t, "postgres://fastpubsub@127.0.0.1:1/fastpubsub")
	t.Setenv("DOCKER_HOST", "tcp://docker.invalid:2376")
	t.Setenv(fakeFails, "port")
	if _, _, err := startContainer(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if said := log(); !strings.Contains(said, " --publish 5432 ") {
		t.Errorf("docker was asked\n%s", said)
	}
}

func TestStartContainerFails(t *testing.T) {
	for _, tc := range []struct {
		command string
		removed bool
	}{{"version", false}, {"run", true}, {"port", true}} {
		t.Run(tc.command, func(t *testing.T) {
			log := install(t, "postgres://fastpubsub@127.0.0.1:1/fastpubsub")
			t.Setenv(fakeFails, tc.command)
			_, _, err := startContainer(t.Context())
			if want := tc.command + " does not work today"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("the error is %v, want %q", err, want)
			}
			if removed := strings.Contains(log(), "rm --force"); removed != tc.removed {
				t.Errorf("it is %v that the container was removed:\n%s", removed, log())
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, _, err := startContainer(t.Context()); err == nil || !strings.Contains(err.Error(), `"docker": executable file not found`) {
			t.Errorf("the error is %v", err)
		}
	})
}
