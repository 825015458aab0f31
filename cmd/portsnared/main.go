// Command portsnared is the detector daemon: it watches a host's interfaces
// for probes to trap ports and reports them, or replays a capture file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/parsers/conf"
)

// Exit statuses.
const (
	exitOK    = 0
	exitFault = 1 // configuration, privileges, interfaces, input
	exitUsage = 2
)

func main() {
	os.Exit(run(os.Args[0], os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command line.
type options struct {
	config     string
	interfaces []string
	replay     string
	replays    bool // replay was given, even if empty
	local      string
	json       bool
	dryRun     bool
	debug      bool
	version    bool
	help       bool
}

func newFlags(o *options) *pflag.FlagSet {
	flags := pflag.NewFlagSet("portsnared", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {} // run prints faults and help itself
	flags.StringVarP(&o.config, "config", "c", "", "read the configuration from `FILE`: native if it ends in .toml, else PortSentry's")
	flags.StringArrayVarP(&o.interfaces, "interface", "i", nil, "watch `NAME`, instead of what the configuration says; may be repeated;\n\"all\" and \"all-but-loopback\" stand for many")
	flags.StringVarP(&o.replay, "replay", "r", "", "report what is in the capture `FILE` (pcap or pcapng, - for standard input) and end")
	flags.StringVar(&o.local, "local", "", "with -r: the `ADDRESS`es of the captured host, separated by commas\n(default: worked out from the capture)")
	flags.BoolVar(&o.dryRun, "dry-run", false, "ban nobody, and say whom the configuration would have banned")
	flags.BoolVar(&o.json, "json", false, "print events as JSON instead of PortSentry lines")
	flags.BoolVarP(&o.debug, "debug", "d", false, "log more")
	flags.String("personality", "", "as the first argument: take the place of `PROGRAM`, portsentry, whose\narguments follow; so does a link of that name")
	flags.BoolVarP(&o.version, "version", "V", false, "print the version and end")
	flags.BoolVarP(&o.help, "help", "h", false, "print this help and end")
	return flags
}

const helpHead = `portsnared watches this host for port scans and reports every probe of a trap
port: one line as PortSentry prints it, and a JSON event if asked for. It acts
against scanners only if the configuration says so.

Usage:
  portsnared [-c FILE] [-i NAME]...        watch (needs root or CAP_NET_RAW)
  portsnared -r FILE [--local ADDRESS,...] [-c FILE] [--json]
                                           replay a capture, as any user
  portsnared --personality portsentry [ARGUMENT]...
                                           take the place of PortSentry

Without -c it watches all interfaces for probes of a built-in list of ports.

Options:
`

const helpTail = `
Signals: SIGHUP reads the configuration again, SIGTERM and SIGINT end the
daemon in order, a second one at once.

Exit status: 0 in order, 1 something failed, 2 wrong usage.

Examples:
  portsnared -c /etc/portsnare/portsnare.toml
  tcpdump -c 1000 -i eth0 -w - | portsnared -r - --local 192.0.2.2
`

// run is main without the process.
func run(program string, args []string, stdout, stderr io.Writer) int {
	theirs, ours, err := asPortSentry(program, args)
	if err != nil {
		fmt.Fprintf(stderr, "portsnared: %v\nTry portsnared --help.\n", err)
		return exitUsage
	}
	if ours {
		return runPortSentry(theirs, stdout, stderr)
	}
	return runPortsnare(args, stdout, stderr)
}

// runPortsnare runs as Portsnare.
func runPortsnare(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := newFlags(&o)
	err := flags.Parse(args)
	switch {
	case err != nil:
	case o.help:
		fmt.Fprint(stdout, helpHead, flags.FlagUsages(), helpTail)
		return exitOK
	case o.version:
		fmt.Fprintln(stdout, "portsnared", version.String())
		return exitOK
	default:
		err = o.check(flags)
	}
	if err != nil {
		fmt.Fprintf(stderr, "portsnared: %v\nTry portsnared --help.\n", err)
		return exitUsage
	}

	log := newLog(stderr, o.debug)
	act := watch
	if o.replays {
		act = replay
	}
	err = act(o, log, stdout)
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) { // a faulty file has a line for each fault
			fmt.Fprintln(stderr, "portsnared:", strings.TrimSuffix(line, "\n"))
		}
		return exitFault
	}
	return exitOK
}

// check refuses what does not go together, and the empty values that an unset
// variable in a script leaves: they must not mean the default.
func (o *options) check(flags *pflag.FlagSet) error {
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	for _, name := range []string{"config", "replay", "local"} {
		if flag := flags.Lookup(name); flag.Changed && flag.Value.String() == "" {
			return fmt.Errorf("--%s is empty", name)
		}
	}
	if flags.Changed("personality") {
		return errors.New("--personality goes first")
	}
	o.replays = flags.Changed("replay")
	switch {
	case o.dryRun && o.replays:
		return errors.New("--dry-run does not go with --replay, which bans nobody")
	case flags.Changed("local") && !o.replays:
		return errors.New("--local goes with --replay")
	case flags.Changed("interface") && o.replays:
		return errors.New("--interface does not go with --replay")
	}
	if err := conf.CheckInterfaces(o.interfaces); err != nil {
		return fmt.Errorf("--interface: %w", err)
	}
	_, err := parseAddrs(o.local)
	return err
}

func newLog(stderr io.Writer, debug bool) *logrus.Entry {
	log := logrus.New()
	log.SetOutput(stderr)
	log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	if debug {
		log.SetLevel(logrus.DebugLevel)
	}
	return logrus.NewEntry(log)
}

// loadConfig reads the configuration that the options name, or the embedded
// one, and logs its warnings.
func loadConfig(o options, log *logrus.Entry) (conf.Config, error) {
	if o.config == "" {
		return withOptions(conf.Default(), o), nil
	}
	cfg, warnings, err := conf.Load(o.config)
	logWarnings(log, warnings)
	return withOptions(cfg, o), err
}

// withOptions lets the command line win over the file.
func withOptions(cfg conf.Config, o options) conf.Config {
	if len(o.interfaces) > 0 {
		cfg.Interfaces = o.interfaces
	}
	if o.dryRun {
		cfg.Ban.DryRun = true
	}
	if o.json {
		cfg.Log.NoStdout = true
		cfg.Events.JSON = "-"
	}
	return cfg
}

func logWarnings(log *logrus.Entry, warnings []conf.Warning) {
	for _, w := range warnings {
		entry := log.WithField("file", w.File)
		if w.Line > 0 {
			entry = entry.WithField("line", w.Line)
		}
		if w.Key != "" {
			entry = entry.WithField("key", w.Key)
		}
		entry.Warn(w.Text)
	}
}
