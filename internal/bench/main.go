// Bench measures how many distinct sources a port-scan detector reports when
// each sends one SYN probe, at rising rates, and what that costs.
//
// It builds two throw-away hosts, joined by a veth pair: one sends probes from
// forged sources, the other runs the detector. Everything lives in namespaces
// of the process (network, mounts, process ids), so the kernel removes all of
// it when the process ends, in whatever way. It needs root, sends nothing to
// any real network, and stops by itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(1)
}

// options is what the command line asks for.
type options struct {
	daemon  string
	rates   rateList
	sources int
	time    time.Duration
	bans    int
	json    bool
}

// maxSources bounds the probes of one rate, and with it the history file, which
// is held in memory.
const maxSources = 10_000_000

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := &options{rates: rateList{1_000, 10_000, 100_000, unpaced}}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "Usage: go run ./internal/bench [flags], as root\n\n"+
			"Measures how many forged sources a detector reports at rising rates, and what that costs.\n\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&o.daemon, "daemon", "bin/portsnared", "the `PATH` of the detector to measure")
	flags.Var(&o.rates, "rates", "probes per second, a comma-separated `LIST`; max is as fast as possible")
	flags.IntVar(&o.sources, "sources", 2_500_000, "at most `N` distinct sources at each rate, one probe each")
	flags.DurationVar(&o.time, "time", 10*time.Second, "send for about this `DURATION` at each rate")
	flags.IntVar(&o.bans, "bans", 500, "measure the reaction to `N` sources; 0: not at all")
	flags.BoolVar(&o.json, "json", false, "print JSON instead of a table")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.sources < 1 || o.sources > maxSources {
		return nil, fmt.Errorf("--sources %d: not between 1 and %d", o.sources, maxSources)
	}
	if o.bans < 0 || o.bans > maxBans {
		return nil, fmt.Errorf("--bans %d: not between 0 and %d", o.bans, maxBans)
	}
	if o.time <= 0 || o.time > time.Hour {
		return nil, fmt.Errorf("--time %v: not between 0 and an hour", o.time)
	}
	path, err := filepath.Abs(o.daemon)
	if err != nil {
		return nil, fmt.Errorf("--daemon: %w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("--daemon: %w (make build makes bin/portsnared)", err)
	}
	o.daemon = path
	return o, nil
}

// unpaced is the rate that stands for as fast as possible.
const unpaced = 0

// rateList is a list of probes per second on the command line.
type rateList []int

// String returns the list as it is written on the command line.
func (l *rateList) String() string {
	words := make([]string, 0, len(*l))
	for _, r := range *l {
		words = append(words, rateName(r))
	}
	return strings.Join(words, ",")
}

// Set replaces the list with the one in s.
func (l *rateList) Set(s string) error {
	*l = nil
	for word := range strings.SplitSeq(s, ",") {
		if word == "max" {
			*l = append(*l, unpaced)
			continue
		}
		r, err := strconv.Atoi(word)
		if err != nil || r < 1 || r > 1_000_000_000 {
			return fmt.Errorf("rate %q: not a number of probes per second, nor max", word)
		}
		*l = append(*l, r)
	}
	return nil
}

func rateName(rate int) string {
	if rate == unpaced {
		return "max"
	}
	return strconv.Itoa(rate)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args[1:], stderr)
	if err != nil {
		return err
	}
	if !isInside(args[0]) {
		return reexec(ctx, args[1:], stdout, stderr)
	}
	rep, err := measureAll(ctx, o, stderr)
	if err != nil {
		return err
	}
	if o.json {
		return rep.writeJSON(stdout)
	}
	return rep.writeTable(stdout)
}

// measureAll measures the daemon at each rate, in a fresh process each time.
func measureAll(ctx context.Context, o *options, stderr io.Writer) (*report, error) {
	if err := hideRun(); err != nil {
		return nil, err
	}
	c, err := chooseCores()
	if err != nil {
		return nil, err
	}
	w, err := newWire()
	if err != nil {
		return nil, err
	}
	defer w.close()

	b := &bench{daemon: o.daemon, limit: o.time, cores: c, wire: w}
	rep := newReport(c)
	if o.bans > 0 {
		for _, others := range []int{0, 10_000} {
			fmt.Fprintf(stderr, "bench: reaction to %d sources while %d others probe each second\n", o.bans, others)
			r, err := b.react(ctx, o.bans, others)
			if err != nil {
				return nil, fmt.Errorf("reaction: %w", err)
			}
			rep.Reactions = append(rep.Reactions, r)
		}
	}
	if err := w.filterForged(true); err != nil {
		return nil, err
	}
	for _, rate := range o.rates {
		n := o.sources
		if rate != unpaced {
			n = min(n, max(1, int(float64(rate)*o.time.Seconds())))
		}
		fmt.Fprintf(stderr, "bench: rate %s, at most %d sources\n", rateName(rate), n)
		m, err := b.measure(ctx, rate, n)
		if err != nil {
			return nil, fmt.Errorf("rate %s: %w", rateName(rate), err)
		}
		if m.Received < uint64(m.Sent) {
			fmt.Fprintf(stderr, "bench: only %d of %d probes arrived\n", m.Received, m.Sent)
		}
		rep.Rates = append(rep.Rates, m)
	}
	return rep, nil
}
