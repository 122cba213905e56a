package pgserver

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrInUse means that another process has the data folder open, or that a server is running on it. The error that
// wraps it names the server's process and port where they are known.
var ErrInUse = errors.New("in use")

const (
	markerName = ".fastpubsub-postgres"
	tempPrefix = "fastpubsub-postgres-"

	keptText      = "PostgreSQL data of fastpubsub.\n"
	temporaryText = "Temporary PostgreSQL data of fastpubsub, deleted once nobody uses it.\n"
)

// folder is a directory that this package made. It holds
//
//	.fastpubsub-postgres  the marker: says that the folder is ours, and is locked while a process uses it
//	password              the superuser's, mode 0600
//	data                  the database cluster; data.new until initdb has finished
//	server.log            what the running server says; server.log.old is the one before
//
// As root all of it stays root's, except data and the password, so that the server's account cannot plant links for
// root to follow.
type folder struct {
	path      string
	temporary bool
	lock      *os.File // the marker; the lock goes with the process, however that ends
}

func (f *folder) data() string     { return filepath.Join(f.path, "data") }
func (f *folder) password() string { return filepath.Join(f.path, "password") }
func (f *folder) log() string      { return filepath.Join(f.path, "server.log") }

// openFolder takes path, making it if need be. It refuses a folder that holds anything and lacks the marker.
func openFolder(path string, a *account) (*folder, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(path, markerName)); errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		if len(entries) > 0 {
			return nil, fmt.Errorf("%s holds files (%s) that fastpubsub did not make: name a new or an empty folder",
				path, entries[0].Name())
		}
	}
	f := &folder{path: path}
	if err := f.claim(keptText, a); err != nil {
		return nil, err
	}
	return f, nil
}

// makeTemporary makes a folder that remove deletes.
func makeTemporary(a *account) (*folder, error) {
	path, err := os.MkdirTemp("", tempPrefix)
	if err != nil {
		return nil, err
	}
	f := &folder{path: path, temporary: true}
	if err := f.claim(temporaryText, a); err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	return f, nil
}

// claim locks the marker, writing it if it is new, and lets the server's account into the folder.
func (f *folder) claim(text string, a *account) error {
	marker, err := os.OpenFile(filepath.Join(f.path, markerName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	// A sweep may hold the lock of a new temporary folder for a moment, so wait for that one.
	ok, err := lockFile(marker, f.temporary)
	if err == nil && !ok {
		err = f.inUse()
	}
	if err == nil {
		var was []byte
		if was, err = io.ReadAll(marker); err == nil && len(was) == 0 {
			_, err = marker.WriteString(text)
		}
	}
	if err == nil && a != nil {
		err = os.Chmod(f.path, 0o711)
	}
	if err != nil {
		marker.Close()
		return err
	}
	f.lock = marker
	return nil
}

// release gives the folder up: a temporary one is deleted.
func (f *folder) release() error {
	var err error
	if f.temporary {
		err = os.RemoveAll(f.path)
	}
	return errors.Join(err, f.lock.Close())
}

// sweepTemporary deletes the temporary folders of processes that could not do so themselves, because they were killed.
// It leaves what it cannot judge, or cannot delete, where it is.
func sweepTemporary() {
	paths, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPrefix+"*")) // the only error is a bad pattern
	for _, path := range paths {
		if info, err := os.Lstat(path); err == nil && info.IsDir() && ownedByUs(info) {
			sweep(&folder{path: path})
		}
	}
}

func sweep(f *folder) {
	marker, err := os.OpenFile(filepath.Join(f.path, markerName), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer marker.Close()
	if ok, err := lockFile(marker, false); err != nil || !ok {
		return
	}
	text, err := io.ReadAll(marker)
	if err != nil || string(text) != temporaryText {
		return
	}
	if _, _, running := f.postmaster(); !running {
		_ = os.RemoveAll(f.path)
	}
}

// postmaster returns the process id and port of the server that is running on the folder, if there is one. A
// postmaster.pid that a crash left behind does not count.
func (f *folder) postmaster() (pid, port int, running bool) {
	text, err := os.ReadFile(filepath.Join(f.data(), "postmaster.pid"))
	if err != nil {
		return 0, 0, false
	}
	lines := strings.Split(string(text), "\n") // process, data directory, start time, port ...
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 0 {
		return 0, 0, false
	}
	if len(lines) > 3 {
		port, _ = strconv.Atoi(strings.TrimSpace(lines[3]))
	}
	return pid, port, runsIn(pid, f.data())
}

// inUse is the error for a folder that belongs to somebody else at the moment.
func (f *folder) inUse() error {
	if pid, port, running := f.postmaster(); running {
		return fmt.Errorf("%s is %w: a PostgreSQL server (process %d) runs on it, port %d", f.path, ErrInUse, pid, port)
	}
	return fmt.Errorf("%s is %w by another fastpubsub process", f.path, ErrInUse)
}

// major returns the PostgreSQL major of the data; 0 if there is none yet.
func (f *folder) major() (int, error) {
	text, err := os.ReadFile(filepath.Join(f.data(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(f.data()); err == nil {
			return 0, fmt.Errorf("%s is damaged: it has no PG_VERSION", f.data())
		}
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// initialise makes the password and an empty directory for initdb, lets fill run on it, and puts the result in its
// place. What an earlier attempt left half done goes.
func (f *folder) initialise(a *account, fill func(dir string) error) error {
	dir := f.data() + ".new"
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := f.writePassword(a); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if a != nil {
		if err := os.Lchown(dir, a.uid, a.gid); err != nil {
			return err
		}
	}
	if err := fill(dir); err != nil {
		return err
	}
	return os.Rename(dir, f.data())
}

func (f *folder) writePassword(a *account) error {
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails
	// A new file, not the old one overwritten: the old one belongs to the server's account.
	if err := os.Remove(f.password()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(f.password(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(hex.EncodeToString(secret))
	if err == nil && a != nil {
		err = file.Chown(a.uid, a.gid)
	}
	if err == nil {
		err = file.Sync() // data without its password would be lost
	}
	return errors.Join(err, file.Close())
}

func (f *folder) readPassword() (string, error) {
	text, err := os.ReadFile(f.password())
	return strings.TrimSpace(string(text)), err
}

// logTail returns the end of the server's log, whole lines of at most 4 KiB together.
func (f *folder) logTail() string {
	text, err := os.ReadFile(f.log())
	if err != nil {
		return err.Error()
	}
	const most = 4096
	if len(text) > most {
		text = text[len(text)-most:]
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			text = text[i+1:]
		}
	}
	return strings.TrimSpace(string(text))
}
