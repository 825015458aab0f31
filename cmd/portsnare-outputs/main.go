// Command portsnare-outputs holds the output modules that come with Portsnare.
// The name that it is started by says which of them it is.
package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs/firewall"
	"github.com/portsnare/portsnare/outputs/hostsdeny"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/runcmd"
)

// modules are all that are in here. A module is made only once it is chosen.
var modules = map[string]func() outputapi.Module{
	"firewall":  func() outputapi.Module { return new(firewall.Module) },
	"hostsdeny": func() outputapi.Module { return new(hostsdeny.Module) },
	"runcmd":    func() outputapi.Module { return new(runcmd.Module) },
}

func names() []string { return slices.Sorted(maps.Keys(modules)) }

// Exit statuses.
const (
	exitOK    = 0
	exitUsage = 2
)

func main() {
	name, args := choose(os.Args)
	newModule, ok := modules[name]
	if !ok {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	m := newModule()
	if byHand(args) {
		os.Exit(explain(m.Info(), args, os.Stdout, os.Stderr))
	}
	os.Args = append([]string{name}, args...)
	outputapi.Serve(m)
}

// choose returns the name of the module that the program is to be, and the
// arguments that are left for it: the name it was started by, else its first
// argument.
func choose(args []string) (name string, rest []string) {
	if len(args) == 0 {
		return "", nil
	}
	if name = filepath.Base(args[0]); modules[name] != nil || len(args) == 1 {
		return name, args[1:]
	}
	return args[1], args[2:]
}

// byHand reports whether a person started a module, and not to have it describe
// itself.
func byHand(args []string) bool {
	started := os.Getenv(outputapi.Handshake.MagicCookieKey) == outputapi.Handshake.MagicCookieValue
	return !started && !slices.Equal(args, []string{"--describe"})
}

// explain tells what a module is for, and returns the exit status.
func explain(module outputapi.Info, args []string, stdout, stderr io.Writer) int {
	w, status := stderr, exitUsage
	if slices.Equal(args, []string{"--help"}) {
		w, status = stdout, exitOK
	}
	fmt.Fprintf(w, `%[1]s %[2]s is an output module of Portsnare: %[3]s

Portsnare starts it, and by itself it does nothing. To use it, add a block to
/etc/portsnare/portsnare.toml,

  [output.%[1]s]

and then run:

  portsnare config check

With --describe it prints as JSON what it is and needs.
`, module.Name, module.Version, module.Summary)
	return status
}

// options are the command line where it names no module.
type options struct {
	list, version, help bool
}

func newFlags(o *options) *pflag.FlagSet {
	flags := pflag.NewFlagSet("portsnare-outputs", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {} // run prints faults and help itself
	flags.BoolVarP(&o.list, "list", "l", false, "print the names of the modules, one a line, and end")
	flags.BoolVarP(&o.version, "version", "V", false, "print the version and end")
	flags.BoolVarP(&o.help, "help", "h", false, "print this help and end")
	return flags
}

// run is what the program does by its own name.
func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := newFlags(&o)
	err := flags.Parse(args)
	switch {
	case err != nil:
	case flags.NArg() > 0:
		err = fmt.Errorf("there is no module %q; there are %s", flags.Arg(0), strings.Join(names(), ", "))
	case o.help:
		fmt.Fprintf(stdout, help, strings.Join(names(), ", "), flags.FlagUsages())
		return exitOK
	case o.version:
		fmt.Fprintln(stdout, "portsnare-outputs", version.String())
		return exitOK
	case o.list:
		fmt.Fprintln(stdout, strings.Join(names(), "\n"))
		return exitOK
	default:
		fmt.Fprintf(stderr, help, strings.Join(names(), ", "), flags.FlagUsages())
		return exitUsage
	}
	fmt.Fprintf(stderr, "portsnare-outputs: %v\nTry portsnare-outputs --help.\n", err)
	return exitUsage
}

const help = `portsnare-outputs holds the output modules that come with Portsnare: %s.
Portsnare starts it, by the name of the module that a block of its configuration
names; there is no need to start it by hand.

Usage:
  portsnare-outputs MODULE            as one of them
  portsnare-outputs MODULE --describe   say as JSON what it is and needs
  portsnare-outputs --list

A link to it with the name of a module is that module.

Options:
%s`
