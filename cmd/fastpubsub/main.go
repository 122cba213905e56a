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

Create or upgrade the tables with "fastpubsub db-migrate", then start "fastpubsub server". To try it, with nothing set up:
"fastpubsub dev".`

// helpEnd follows all help.
const helpEnd = `
A setting is a flag and a variable: --api-port is FASTPUBSUB_API_PORT. The flag
wins over the environment, and that over the file .env in the working directory.
`

// commands are the subcommands. Each has its file, with its flags and a method Run(*process) error.
type commands struct {
	Server      serverCommand `cmd:"" group:"serve" help:"Serve the REST API until SIGINT or SIGTERM."`
	DBMigrate   dbMigrate     `cmd:"" group:"serve" name:"db-migrate" aliases:"db_migrate" help:"Create the tables, or bring them up to date."`
	Dev         devCommand    `cmd:"" group:"serve" help:"Serve the REST API on a PostgreSQL of its own, with nothing set up."`
	Healthcheck healthcheck   `cmd:"" group:"serve" help:"Ask a server on this machine whether it is ready. For containers."`

	Publish publishCommand `cmd:"" group:"messages" help:"Publish messages to a topic, from arguments or stdin."`
	Tail    tailCommand    `cmd:"" group:"messages" help:"Print the messages of a topic or subscription as they come, one JSON object a line."`
	DLQ     dlqCommand     `cmd:"" group:"messages" name:"dlq" help:"List, reprocess or purge dead letters."`

	CleanupStuck cleanupStuck  `cmd:"" group:"database" name:"cleanup_stuck_messages" aliases:"cleanup-stuck-messages" help:"End leases that have run out, in all subscriptions. For cron."`
	CleanupAcked cleanupAcked  `cmd:"" group:"database" name:"cleanup_acked_messages" aliases:"cleanup-acked-messages" help:"Give the space of acked messages back. For cron."`
	Repair       repairCommand `cmd:"" group:"database" help:"Make messages deliverable that were copied from another database, after a restore."`
	Doctor       doctorCommand `cmd:"" group:"database" help:"Say what is wrong with the database, or will be, and what to do about it."`
	Import       importCommand `cmd:"" group:"database" help:"Take everything over from the database of the Python server."`
	Bench        benchCommand  `cmd:"" group:"database" help:"Measure, beside a floor of bare INSERTs."`

	BenchFloor benchFloorCommand `cmd:"" hidden:"" help:"Serve bare INSERTs, for bench."`

	SecretKey    newSecretKey `cmd:"" group:"clients" name:"generate_secret_key" aliases:"generate-secret-key" help:"Print a key that signs access tokens."`
	CreateClient createClient `cmd:"" group:"clients" name:"create_client" aliases:"create-client" help:"Create a client of the REST API, and print its id and its secret."`

	Version versionCommand `cmd:"" group:"serve" help:"Print the version."`
}

// commandGroups are the headings over commands.
var commandGroups = kong.Groups{
	"serve":    "Serving",
	"messages": "Messages",
	"database": "The database",
	"clients":  "Clients of the REST API",
}

// A process is what a subcommand gets from the system. It has a context, since it lives as long as that does.
type process struct {
	ctx    context.Context // ends with the first SIGINT or SIGTERM
	stdin  io.Reader
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
	p := &process{ctx, os.Stdin, os.Stdout, os.Stderr}
	if err := loadDotEnv(); err != nil {
		os.Exit(p.fail(err, dotEnvName, nil))
	}
	os.Exit(run(p, os.Args[1:]))
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

// printHelp is kong's help, and what is true of all commands.
func printHelp(options kong.HelpOptions, ctx *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, ctx); err != nil {
		return err
	}
	_, err := io.WriteString(ctx.Stdout, helpEnd)
	return err
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
		kong.ValueFormatter(func(value *kong.Value) string { return value.Help }), // helpEnd says what the variables are
		kong.Help(printHelp),
		commandGroups,
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
	name, _, _ := strings.Cut(command.Command(), " <") // its arguments
	return p.fail(command.Run(p), name, failureHandler(p, command))
}

// fail says why a command failed, if it did, and returns the exit code.
func (p *process) fail(err error, command string, handler slog.Handler) int {
	var bad badSettings
	switch {
	case errors.As(err, &bad):
		for _, line := range bad {
			fmt.Fprintf(p.stderr, "fastpubsub: %s\n", line)
		}
		return exitUsage
	case errors.Is(err, errFound):
		return exitFailure
	case err != nil && handler == nil:
		fmt.Fprintf(p.stderr, "fastpubsub: %s: %s\n", command, oneLine.Replace(err.Error()))
		return exitFailure
	case err != nil:
		slog.New(handler).Error(command+" failed", "error", err)
		return exitFailure
	}
	return exitOK
}

// failureHandler logs the end of a command as that logs; it is nil for one that does not, and speaks to a person.
func failureHandler(p *process, command *kong.Context) slog.Handler {
	for _, flag := range command.Flags() {
		if flag.Name != "log-formatter" {
			continue
		}
		handler, err := newLogHandler(p.stderr, flag.Target.String(), slog.LevelInfo)
		if err != nil { // it was refused
			return nil
		}
		return handler
	}
	return nil
}
