package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/fastpubsub/fastpubsub/store"
)

type versionCommand struct{}

// Run implements the subcommand.
func (versionCommand) Run(p *process) error {
	version := "(unknown)"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	_, err := fmt.Fprintf(p.stdout, "fastpubsub %s, schema %d, %s\n", version, store.Version, runtime.Version())
	return err
}
