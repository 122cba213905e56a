// Package pgserver finds PostgreSQL server binaries on this machine and runs a server of its own on them: a throw-away
// one for tests, or one that keeps its data in a folder.
//
// A server listens on 127.0.0.1 only and asks for a random password. On Linux it does not outlive the process that
// started it, even if that is killed; elsewhere a server orphaned like that has to be stopped by hand. PostgreSQL
// refuses to run as root, so root starts it as another account: the one that FASTPUBSUB_POSTGRES_USER names, else
// postgres, else nobody. Windows is not supported.
package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	superuser = "fastpubsub"
	database  = "fastpubsub"

	startTimeout = 30 * time.Second // where the caller's context sets no deadline
	stopTimeout  = 30 * time.Second // for an orderly shutdown, before a harder one
	killTimeout  = 10 * time.Second
)

// Options say which server to start. The zero value is a throw-away server on a free port.
type Options struct {
	// Bin is the directory of the server binaries. Default: what Find finds; of the right version, if Dir holds data.
	Bin string
	// Dir is the folder for the data and all that belongs to it. It is made if missing, and refused if it holds
	// anything that this package did not put there. Default: a temporary folder, which Stop deletes.
	Dir string
	// Port is the TCP port. Default: a free one.
	Port int
	// Settings are PostgreSQL parameters such as {"max_connections": "400"}. They win over what Durable says, but not
	// over Port and the address.
	Settings map[string]string
	// Durable makes commits survive a crash of the machine. Without it fsync and full_page_writes are off, which is
	// for data that nobody will miss.
	Durable bool
}

// A Server is a PostgreSQL server that this process started. Its methods are safe for concurrent use.
type Server struct {
	bin      string
	port     int
	password string
	settings map[string]string
	account  *account
	folder   *folder

	current atomic.Pointer[process]

	mu      sync.Mutex // serialises Stop, Kill and Restart; protects stopped
	stopped bool
}

// Start starts a server, making its data first if they do not exist, and returns when it takes connections. Ctx covers
// the start only; without a deadline that may take 30 seconds.
//
// If it fails, nothing keeps running and a temporary folder is deleted; the error holds the end of the server's log.
// It is ErrNoBinaries if Bin is empty and none are installed, and ErrInUse if a server runs on Dir already.
func Start(ctx context.Context, opt Options) (*Server, error) {
	if err := supported(); err != nil {
		return nil, err
	}
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	a, err := serverAccount()
	if err != nil {
		return nil, err
	}
	var f *folder
	if opt.Dir == "" {
		sweepTemporary()
		f, err = makeTemporary(a)
	} else {
		f, err = openFolder(opt.Dir, a)
	}
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	s, err := startIn(ctx, f, a, opt)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start PostgreSQL: %w", err), f.release())
	}
	return s, nil
}

func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, startTimeout)
}

// startIn starts a server in a folder that is ours.
func startIn(ctx context.Context, f *folder, a *account, opt Options) (*Server, error) {
	if _, _, running := f.postmaster(); running {
		return nil, f.inUse()
	}
	major, err := f.major()
	if err != nil {
		return nil, err
	}
	bin, err := chooseBin(opt.Bin, f, major)
	if err != nil {
		return nil, err
	}
	if err := a.canRun(ctx, filepath.Join(bin, "postgres"), f.path); err != nil {
		return nil, err
	}

	s := &Server{bin: bin, port: opt.Port, account: a, folder: f, settings: map[string]string{"unix_socket_directories": ""}}
	if !opt.Durable {
		s.settings["fsync"] = "off"
		s.settings["full_page_writes"] = "off"
	}
	maps.Copy(s.settings, opt.Settings)
	if major == 0 {
		err := f.initialise(a, func(dir string) error { return s.initdb(ctx, dir, opt.Durable) })
		if err != nil {
			return nil, err
		}
	}
	if s.password, err = f.readPassword(); err != nil {
		return nil, err
	}

	if s.port == 0 {
		if s.port, err = FreePort(); err != nil {
			return nil, err
		}
	}
	if err := s.launch(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// chooseBin returns where the binaries are for data of this major; 0 is a new folder.
func chooseBin(bin string, f *folder, major int) (string, error) {
	if bin == "" {
		var err error
		if bin, err = find(major); err != nil {
			if major != 0 {
				err = fmt.Errorf("%s holds data of PostgreSQL %d: %w", f.path, major, err)
			}
			return "", err
		}
	}
	v, err := examine(bin)
	if err != nil {
		return "", fmt.Errorf("%s: %w", bin, err)
	}
	if major != 0 && v.major != major {
		return "", fmt.Errorf("%s holds data of PostgreSQL %d, but %s is %v: set %s to PostgreSQL %d, or use a new folder",
			f.path, major, bin, v, binEnv, major)
	}
	return filepath.Abs(bin)
}

// FreePort picks a port below those that systems give to outgoing connections, so that no client takes it while the
// server restarts.
func FreePort() (int, error) {
	var err error
	for range 100 {
		port := 15000 + rand.IntN(17000)
		if err = checkPort(port); err == nil {
			return port, nil
		}
	}
	return 0, err
}

func checkPort(port int) error {
	l, err := net.Listen("tcp4", address(port))
	if err != nil {
		return fmt.Errorf("port %d is not free: %w", port, err)
	}
	return l.Close()
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (s *Server) initdb(ctx context.Context, dir string, durable bool) error {
	args := []string{
		"-D", dir, "-U", superuser, "--pwfile", s.folder.password(), "--auth", "scram-sha-256",
		"--encoding", "UTF8", "--locale", "C", "--no-instructions",
	}
	if !durable {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "initdb"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killTimeout
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := s.account.spawn(cmd, s.folder.path)
	if err == nil {
		<-p.done
		err = p.err
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// errExited means that the server ended where it should have been running.
var errExited = errors.New("the server exited")

// launch starts the postmaster and waits until it takes connections. If it fails, nothing keeps running. Processes of a postmaster
// that was killed may go on for a while, and keep the next from starting: it is tried again until they are gone.
func (s *Server) launch(ctx context.Context) error {
	for deadline := time.Now().Add(stopTimeout); ; {
		err := s.launchOnce(ctx)
		if !inUse(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// inUse says whether a postmaster did not start because of processes that another has left.
func inUse(err error) bool {
	return errors.Is(err, errExited) && (strings.Contains(err.Error(), "pre-existing shared memory block") ||
		strings.Contains(err.Error(), `lock file "postmaster.pid" already exists`))
}

func (s *Server) launchOnce(ctx context.Context) error {
	if err := checkPort(s.port); err != nil {
		return err // else our first connection would reach whoever has it
	}
	if err := os.Rename(s.folder.log(), s.folder.log()+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(s.folder.log(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the server has its own descriptor
	args := []string{"-D", s.folder.data()}
	for _, name := range slices.Sorted(maps.Keys(s.settings)) {
		args = append(args, "-c", name+"="+s.settings[name])
	}
	args = append(args, "-c", "listen_addresses=127.0.0.1", "-c", "port="+strconv.Itoa(s.port))
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), args...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := s.account.spawn(cmd, s.folder.path)
	if err != nil {
		return err
	}
	s.current.Store(p)
	if err := s.waitReady(ctx, p); err != nil {
		if err := s.end(p, syscall.SIGQUIT); err != nil {
			return err
		}
		return fmt.Errorf("%w\n%s", err, s.folder.logTail())
	}
	return nil
}

// waitReady waits for the first connection and makes the database if it is missing.
func (s *Server) waitReady(ctx context.Context, p *process) error {
	attempt, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // whoever else took the port may leave our connection without an answer
		select {
		case <-p.done:
			cancel()
		case <-attempt.Done():
		}
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.makeDatabase(attempt)
		if err == nil {
			return nil
		}
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code != "57P03" { // cannot_connect_now: starting
			return err
		}
		select {
		case <-p.done:
			return fmt.Errorf("%w: %v", errExited, p.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (%w)", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (s *Server) makeDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, "CREATE DATABASE "+database)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == "42P04" || pgErr.Code == "25006") {
		return nil // duplicate_database, or read_only_sql_transaction: a standby has what its primary has
	}
	return err
}

// URL returns the address of the server's database, with the superuser's name and password.
func (s *Server) URL() string { return s.url(database) }

func (s *Server) url(database string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", superuser, s.password, address(s.port), database)
}

// Port returns the TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Bin returns the directory of the server binaries.
func (s *Server) Bin() string { return s.bin }

// DataDir returns PostgreSQL's data directory, which lies in Options.Dir.
func (s *Server) DataDir() string { return s.folder.data() }

// LogFile returns the file that the server logs to. Each start begins a new one and keeps the last, with .old added.
func (s *Server) LogFile() string { return s.folder.log() }

// Done returns a channel that is closed when the server has ended, for whatever reason. Restart makes a new one.
func (s *Server) Done() <-chan struct{} { return s.current.Load().done }

// Err returns nil while the server runs and after Stop or Kill, else why it ended, with the end of its log.
func (s *Server) Err() error {
	p := s.current.Load()
	select {
	case <-p.done:
	default:
		return nil
	}
	if p.ending.Load() {
		return nil
	}
	return fmt.Errorf("%w: %v\n%s", errExited, p.cmd.ProcessState, s.folder.logTail())
}

// Stop ends the server, waits for it, and deletes a temporary folder. Clients are disconnected. A server that has not
// shut down after 30 seconds is stopped without a checkpoint, and killed after 10 more. Further calls do nothing.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	s.stopped = true
	sig := syscall.SIGINT // "fast": disconnect, checkpoint
	if s.folder.temporary {
		sig = syscall.SIGQUIT // "immediate": the data go anyway
	}
	return errors.Join(s.end(s.current.Load(), sig), s.folder.release())
}

// Kill ends the server and all its processes with SIGKILL, as a crash of the machine would (but what the operating
// system holds in memory is not lost), and waits until they are gone. Restart brings the server back.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kill(s.current.Load())
}

// Restart starts the server again, on the same folder and port, after Kill or after it ended by itself. A server that
// runs is shut down first. Ctx is as in Start. If it fails, the server does not run, and Restart may be called again;
// after Stop it always fails.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errors.New("restart PostgreSQL: the server was stopped")
	}
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	if err := s.end(s.current.Load(), syscall.SIGINT); err != nil {
		return fmt.Errorf("restart PostgreSQL: %w", err)
	}
	if err := s.launch(ctx); err != nil {
		return fmt.Errorf("restart PostgreSQL: %w", err)
	}
	return nil
}

// end asks the server to shut down, and makes it if it takes too long.
func (s *Server) end(p *process, sig os.Signal) error {
	for _, step := range []struct {
		sig  os.Signal
		wait time.Duration
	}{{sig, stopTimeout}, {syscall.SIGQUIT, killTimeout}} {
		p.signal(step.sig)
		select {
		case <-p.done:
			return nil
		case <-time.After(step.wait):
		}
	}
	return s.kill(p)
}

func (s *Server) kill(p *process) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	// Stopped, the postmaster starts no further process while its children are looked up and killed.
	p.signal(sigStop)
	all, err := processes()
	if err != nil {
		p.signal(syscall.SIGKILL)
		<-p.done
		return fmt.Errorf("list the server's processes: %w", err)
	}
	var children []int
	for _, c := range all {
		if c.parent == p.cmd.Process.Pid {
			children = append(children, c.pid)
			_ = killPID(c.pid)
		}
	}
	p.signal(syscall.SIGKILL)
	<-p.done

	deadline := time.Now().Add(killTimeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for anyAlive(children) {
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of the server survive SIGKILL: %v", children)
		}
		<-tick.C
	}
	return nil
}

func anyAlive(pids []int) bool {
	all, err := processes()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(all, func(p processInfo) bool { return !p.zombie && slices.Contains(pids, p.pid) })
}

// childEnv is our environment without what would change how PostgreSQL's programs behave; their messages are English.
func childEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C")
}
