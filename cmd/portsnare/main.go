// Command portsnare is the administrator's tool for the portsnared daemon.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

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
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run carries out one command line and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)

	// Cobra checks flags and arguments before it calls this.
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }

	cmd, err := root.ExecuteC()
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
	root.AddCommand(newAllow(), newBan(), newBans(), newBlocked(), newConfig(), newOutputs(), newStatus(), newUnban())

	// Cobra's own commands take anything for a call for help.
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "completion":
			cmd.RunE = showHelp
		case "help":
			cmd.Args = helpTopic
		}
	}
	return root
}

// showHelp is what a command does that only groups others. Without it, Cobra
// would take a misspelt subcommand for a call for help.
func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// helpTopic returns an error unless args name a command.
func helpTopic(cmd *cobra.Command, args []string) error {
	if _, rest, err := cmd.Root().Find(args); err != nil || len(rest) > 0 {
		return fmt.Errorf("unknown help topic %q", strings.Join(args, " "))
	}
	return nil
}
