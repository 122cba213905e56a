package testdb

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"
)

// The image, and how long a container may live if nobody stops it.
const (
	dockerImage    = "postgres:17-alpine"
	dockerLifetime = time.Hour
)

// startContainer runs the server in Docker, by its program: the Go libraries for it would be in every test that uses this
// package.
func startContainer(ctx context.Context) (address string, stop func() error, err error) {
	if _, err := exec.LookPath("docker"); err != nil {
		return "", nil, err
	}
	ping, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := runDocker(ping, "", "version", "--format", "{{.Server.Version}}"); err != nil {
		return "", nil, fmt.Errorf("no engine answers: %w", err)
	}
	host, publish := "127.0.0.1", "127.0.0.1::5432"
	if remote, err := url.Parse(os.Getenv("DOCKER_HOST")); err == nil && remote.Scheme == "tcp" {
		host, publish = remote.Hostname(), "5432"
	}
	name := "fastpubsub-test-" + strings.ToLower(rand.Text())
	password := rand.Text()
	args := []string{
		"run", "--detach", "--rm", "--name", name, "--publish", publish,
		"--env", "POSTGRES_USER=fastpubsub", "--env", "POSTGRES_PASSWORD", // the value is in the program's own environment
		"--env", "POSTGRES_INITDB_ARGS=--encoding=UTF8 --locale=C",
		"--entrypoint", "timeout", dockerImage, fmt.Sprint(int(dockerLifetime.Seconds())), "docker-entrypoint.sh", "postgres",
	}
	for name, value := range serverSettings {
		args = append(args, "-c", name+"="+value)
	}
	stop = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), CloseTimeout)
		defer cancel()
		_, err := runDocker(ctx, "", "rm", "--force", "--volumes", name)
		return err
	}
	if _, err := runDocker(ctx, password, args...); err != nil {
		return "", nil, errors.Join(err, stop()) // it may have been made
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	ports, err := runDocker(ctx, "", "port", name, "5432/tcp")
	if err != nil {
		return "", nil, err
	}
	first, _, _ := strings.Cut(ports, "\n") // there may be one of IPv6, too
	_, port, err := net.SplitHostPort(first)
	if err != nil {
		return "", nil, fmt.Errorf("docker port: %w", err)
	}
	at := url.URL{
		Scheme: "postgres", User: url.UserPassword("fastpubsub", password),
		Host: net.JoinHostPort(host, port), Path: "/fastpubsub", RawQuery: "sslmode=disable",
	}
	return at.String(), stop, WaitReady(ctx, at.String())
}

// runDocker returns what the program prints, without the last line's end.
func runDocker(ctx context.Context, password string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "POSTGRES_PASSWORD="+password)
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, bytes.TrimSpace(errs.Bytes()))
	}
	return strings.TrimSpace(out.String()), nil
}
