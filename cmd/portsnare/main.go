// Command portsnare is the administrator's tool for the portsnared daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/portsnare/portsnare/internal/version"
)

// The exit statuses.
const (
	exitOK    = 0
	exitFault = 1 // what was asked for did not succeed
	exitUsage = 2 // it is not clear what was asked for
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run carries out one command line and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)

	// Cobra checks flags and arguments before it calls this.
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }

	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFault
	case understood:
		fmt.Fprintln(stderr, err)
		return exitFault
	}
	fmt.Fprintf(stderr, "portsnare: %v\nTry \"%s --help\".\n", err, cmd.CommandPath())
	return exitUsage
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "portsnare",
		Short:         "Administer Portsnare, the port-scan detector",
		Version:       version.String(),
		Args:          cobra.NoArgs,
		RunE:          showHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newConfig())
	return root
}

// showHelp is what a command does that only groups others. Without it, Cobra
// would take a misspelt subcommand for a call for help.
func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }
