// Command fastpubsub serves fastpubsub as a REST API and looks after its database.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

const description = `Publish/subscribe on the Postgres that you already have.

Create or upgrade the tables with "fastpubsub db-migrate", then start "fastpubsub server".
Every setting of the server is a flag and an environment variable; the flag wins.`

// commands are the subcommands. Each has its file, with its flags and a method Run(*process) error.
type commands struct {
	DBMigrate    dbMigrate      `cmd:"" name:"db-migrate" aliases:"db_migrate" help:"Create the tables, or bring them up to date."`
	Server       serverCommand  `cmd:"" help:"Serve the REST API until SIGINT or SIGTERM."`
	CleanupStuck cleanupStuck   `cmd:"" name:"cleanup_stuck_messages" aliases:"cleanup-stuck-messages" help:"End leases that have run out, in all subscriptions. For cron."`
	CleanupAcked cleanupAcked   `cmd:"" name:"cleanup_acked_messages" aliases:"cleanup-acked-messages" help:"Give the space of acked messages back. For cron."`
	DLQ          dlqCommand     `cmd:"" name:"dlq" help:"List, reprocess or purge dead letters."`
	SecretKey    newSecretKey   `cmd:"" name:"generate_secret_key" aliases:"generate-secret-key" help:"Print a key that signs access tokens."`
	CreateClient createClient   `cmd:"" name:"create_client" aliases:"create-client" help:"Create a client of the REST API, and print its id and its secret."`
	Doctor       doctorCommand  `cmd:"" help:"Say what is wrong with the database, or will be, and what to do about it."`
	Dev          devCommand     `cmd:"" help:"Serve the REST API on a PostgreSQL of its own, with nothing set up."`
	Bench        benchCommand   `cmd:"" help:"Measure, beside a floor of bare INSERTs."`
	Version      versionCommand `cmd:"" help:"Print the version."`
}

// A process is what a subcommand gets from the system. It has a context, since it lives as long as that does.
type process struct {
	ctx    context.Context // ends with the first SIGINT or SIGTERM
	stdout io.Writer
	stderr io.Writer
}

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2 // bad settings, too
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal kills
	unsetEmpty()
	os.Exit(run(&process{ctx, os.Stdout, os.Stderr}, os.Args[1:]))
}

// unsetEmpty makes variables that are set to nothing, as compose files do, the same as unset ones.
func unsetEmpty() {
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "FASTPUBSUB_") && value == "" {
			os.Unsetenv(name)
		}
	}
}

// run runs the subcommand that the arguments name and returns the exit code.
func run(p *process, args []string) (code int) {
	type exit int // what kong wants to exit with, having printed help
	defer func() {
		if v := recover(); v != nil {
			e, ok := v.(exit)
			if !ok {
				panic(v)
			}
			code = int(e)
		}
	}()
	parser, err := kong.New(&commands{},
		kong.Name("fastpubsub"),
		kong.Description(description),
		kong.Writers(p.stdout, p.stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 120}),
	)
	if err != nil {
		panic(err) // the tags of commands are wrong
	}
	command, err := parser.Parse(args)
	if err != nil {
		text := err.Error()
		if isURL(text) { // where none belongs
			text = "unexpected argument: a database URL belongs in FASTPUBSUB_DATABASE_URL"
		}
		fmt.Fprintf(p.stderr, "fastpubsub: %s; see fastpubsub --help\n", text)
		return exitUsage
	}
	err = command.Run(p)
	var bad badSettings
	switch {
	case errors.As(err, &bad):
		for _, line := range bad {
			fmt.Fprintf(p.stderr, "fastpubsub: %s\n", line)
		}
		return exitUsage
	case errors.Is(err, errFound):
		return exitFailure
	case err != nil:
		name, _, _ := strings.Cut(command.Command(), " <") // its arguments
		slog.New(slog.NewTextHandler(p.stderr, nil)).Error(name+" failed", "error", err)
		return exitFailure
	}
	return exitOK
}
