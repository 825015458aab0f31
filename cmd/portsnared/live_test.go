package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/nettest"
)

// Two trap ports, a port nobody listed, and a trap port with a service behind it.
const (
	trapPort, otherTrapPort = "11", "1080"
	unlistedPort            = "12"
	servicePort             = "143"
)

const liveConfig = `
mode = "stealth"
interfaces = ["all"]
[detect]
tcp_ports = "11,143,1080"
udp_ports = "11,143,1080"
`

// startDaemon starts portsnared on a host and waits until it is active.
func startDaemon(t *testing.T, host *nettest.Host, config string, args ...string) *nettest.Process {
	t.Helper()
	p := host.Start(t, "env", daemonCommand(t, config, args...)...)
	p.Stderr.WaitLine(t, "portsnare is active")
	return p
}

// daemonCommand returns the arguments for env that start portsnared.
func daemonCommand(t *testing.T, config string, args ...string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "portsnare.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A program built for the race detector sleeps a second at its end, unless told.
	return append([]string{asProgram + "=1", "GORACE=atexit_sleep_ms=0", self, "-c", file}, args...)
}

// scanLine is the line for one probe that leads to nothing but a report.
func scanLine(source netip.Addr, proto, port, kind string) string {
	options := "not set"
	if source.Is6() || kind == "Connect" {
		options = "unknown"
	}
	return fmt.Sprintf("Scan from: [%v] (%v) protocol: [%s] port: [%s] type: [%s] IP opts: [%s] "+
		"ignored: [false] triggered: [true] noblock: [true] blocked: [false]", source, source, proto, port, kind, options)
}

// stopWithin stops a daemon and fails the test if that takes longer than limit.
func stopWithin(t *testing.T, p *nettest.Process, limit time.Duration) {
	t.Helper()
	began := time.Now()
	if err := p.Stop(t); err != nil {
		t.Errorf("portsnared ended with %v, want status 0", err)
	}
	if took := time.Since(began); took > limit {
		t.Errorf("portsnared took %v to stop, want at most %v", took, limit)
	}
}

// unhurried is a limit for tests that run in parallel on a busy machine, where
// the kernel takes seconds to tear down many network namespaces at once.
const unhurried = 20 * time.Second

// Not in parallel, so that the time is the daemon's own.
func TestStopTakesUnderASecond(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	daemon := startDaemon(t, target, liveConfig)
	probe(t, scanner, target)
	daemon.Stdout.WaitLine(t, "Scan from:")
	stopWithin(t, daemon, time.Second)
}

func sorted(lines []string) []string { return slices.Sorted(slices.Values(lines)) }

func TestNmapScansAreReportedLineByLine(t *testing.T) {
	scans := map[string]struct{ flag, proto, kind string }{
		"connect": {"-sT", "TCP", "TCP SYN/Normal scan"},
		"SYN":     {"-sS", "TCP", "TCP SYN/Normal scan"},
		"FIN":     {"-sF", "TCP", "TCP FIN scan"},
		"NULL":    {"-sN", "TCP", "TCP NULL scan"},
		"XMAS":    {"-sX", "TCP", "TCP XMAS scan"},
		"UDP":     {"-sU", "UDP", "UDP"},
	}
	for name, scan := range scans {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(name+" "+family, func(t *testing.T) {
				t.Parallel()
				scanner, target := nettest.NewPair(t)
				service, err := strconv.ParseUint(servicePort, 10, 16)
				if err != nil {
					t.Fatal(err)
				}
				target.Listen(t, "tcp", uint16(service))
				target.Listen(t, "udp", uint16(service))
				source, args := scanner.IPv4, []string{target.IPv4.String()}
				if family == "IPv6" {
					source, args = scanner.IPv6, []string{"-6", target.IPv6.String()}
				}
				daemon := startDaemon(t, target, liveConfig)
				ports := strings.Join([]string{trapPort, unlistedPort, servicePort, otherTrapPort}, ",")
				// One probe for each port: no second try where a service keeps silent.
				scanner.Run(t, "nmap", append([]string{scan.flag, "-n", "-Pn", "--max-retries", "0", "-p", ports}, args...)...)
				stopWithin(t, daemon, unhurried)
				want := sorted([]string{
					scanLine(source, scan.proto, trapPort, scan.kind),
					scanLine(source, scan.proto, otherTrapPort, scan.kind),
				})
				if diff := cmp.Diff(want, sorted(daemon.Stdout.Lines())); diff != "" {
					t.Errorf("nmap %s: lines on standard output (-want +got)\n%s", scan.flag, diff)
				}
			})
		}
	}
}

// nmap -f cuts the header so that no fragment shows both port and flags.
func TestFragmentedScansAreReportedByTheirFlags(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	daemon := startDaemon(t, target, liveConfig)
	var want []string
	for flag, kind := range map[string]string{
		"-sS": "TCP SYN/Normal scan", "-sF": "TCP FIN scan", "-sN": "TCP NULL scan", "-sX": "TCP XMAS scan",
	} {
		for _, fragments := range []string{"-f", "-ff"} { // of 8 and of 16 bytes
			scanner.Run(t, "nmap", fragments, flag, "-n", "-Pn", "--max-retries", "0", "-p", trapPort+","+unlistedPort, target.IPv4.String())
			want = append(want, scanLine(scanner.IPv4, "TCP", trapPort, kind))
		}
	}
	scanner.Run(t, "nmap", "-f", "-sA", "-n", "-Pn", "--max-retries", "0", "-p", trapPort, target.IPv4.String())
	stopWithin(t, daemon, unhurried)
	if diff := cmp.Diff(sorted(want), sorted(daemon.Stdout.Lines())); diff != "" {
		t.Errorf("fragmented scans: lines (-want +got)\n%s", diff)
	}
}

// probe sends one SYN from scanner to a trap port of target.
func probe(t *testing.T, scanner, target *nettest.Host) {
	t.Helper()
	scanner.Run(t, "nmap", "-sS", "-n", "-Pn", "--max-retries", "0", "-p", trapPort, target.IPv4.String())
}

func TestEveryOutputGetsTheProbe(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	dir := t.TempDir()
	history, events := filepath.Join(dir, "new", "history.log"), filepath.Join(dir, "events.jsonl")
	daemon := startDaemon(t, target, liveConfig+fmt.Sprintf("[log]\nhistory = %q\n[events]\njson = %q\n", history, events))
	probe(t, scanner, target)
	line := daemon.Stdout.WaitLine(t, "Scan from:")
	stopWithin(t, daemon, unhurried)

	if want := scanLine(scanner.IPv4, "TCP", trapPort, "TCP SYN/Normal scan"); line != want {
		t.Errorf("standard output has %q, want %q", line, want)
	}
	record := read(t, history)
	if stamp, rest, _ := strings.Cut(record, " "); rest != line+"\n" || len(stamp) != len("2026-11-22T07:44:33.659+0000") {
		t.Errorf("history has %q, want a stamp of 28 bytes, a blank and the line", record)
	}
	var actions []string
	for text := range strings.Lines(read(t, events)) {
		var event struct {
			Event  struct{ Action string }
			Source struct{ IP string }
		}
		if err := json.Unmarshal([]byte(text), &event); err != nil {
			t.Fatalf("event %q: %v", text, err)
		}
		actions = append(actions, event.Event.Action+event.Source.IP)
	}
	want := []string{"daemon-started", "scan-detected" + scanner.IPv4.String(), "daemon-stopped"}
	if diff := cmp.Diff(want, actions); diff != "" {
		t.Errorf("events: (-want +got)\n%s", diff)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestHistoryFollowsRotation(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	history := filepath.Join(t.TempDir(), "history.log")
	daemon := startDaemon(t, target, liveConfig+fmt.Sprintf("[log]\nstdout = false\nhistory = %q\n", history))
	recorded := func() bool { text, err := os.ReadFile(history); return err == nil && len(text) > 0 }
	probe(t, scanner, target)
	nettest.WaitFor(t, "a record in the history", recorded)
	if err := os.Rename(history, history+".1"); err != nil {
		t.Fatal(err)
	}
	probe(t, scanner, target)
	nettest.WaitFor(t, "a record in the new history", recorded)
	stopWithin(t, daemon, unhurried)
	for _, file := range []string{history, history + ".1"} {
		if got := strings.Count(read(t, file), "\n"); got != 1 {
			t.Errorf("%s has %d records, want 1", file, got)
		}
	}
}

func TestFullDiskAndAbsentSyslogDoNotStopDetection(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	disk, makeRoom := fullDisk(t)
	history := filepath.Join(disk, "history.log")
	daemon := startDaemon(t, target, liveConfig+fmt.Sprintf("[log]\nhistory = %q\nsyslog = true\n", history))
	for range 3 {
		probe(t, scanner, target)
	}
	daemon.Stderr.WaitLine(t, "no space left on device")
	nettest.WaitFor(t, "three reports on standard output", func() bool { return len(daemon.Stdout.Lines()) == 3 })
	makeRoom()
	nettest.WaitFor(t, "three records in the history", func() bool {
		text, err := os.ReadFile(history)
		return err == nil && strings.Count(string(text), "\n") == 3
	})
	stopWithin(t, daemon, unhurried)
	log := daemon.Stderr.String()
	if got := strings.Count(log, "no space left on device"); got != 1 {
		t.Errorf("the full disk was logged %d times, want once:\n%s", got, log)
	}
	if got := strings.Count(log, "connect: no such file or directory\" output=syslog"); got != 1 {
		t.Errorf("the absent syslog was logged %d times, want once:\n%s", got, log)
	}
}

// fullDisk mounts a small file system without room for another byte.
func fullDisk(t *testing.T) (dir string, makeRoom func()) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling a small disk: %v, want %v", err, unix.ENOSPC)
	}
	return dir, func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReloadTakesNewPortsAndRefusesABadFile(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	command := daemonCommand(t, strings.ReplaceAll(liveConfig, "11,", ""))
	config := command[slices.Index(command, "-c")+1]
	daemon := target.Start(t, "env", command...)
	daemon.Stderr.WaitLine(t, "portsnare is active")

	probe(t, scanner, target) // not listed yet
	change := func(text, logged string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		daemon.Signal(t, syscall.SIGHUP)
		daemon.Stderr.WaitLine(t, logged)
	}
	change(liveConfig, "configuration reloaded")
	probe(t, scanner, target)
	daemon.Stdout.WaitLine(t, "port: [11]")
	change("[detect]\ntcp_ports = \"90-80\"\n", "start is above end")
	probe(t, scanner, target)
	nettest.WaitFor(t, "a second report", func() bool { return len(daemon.Stdout.Lines()) == 2 })
	stopWithin(t, daemon, unhurried)
	if got := len(daemon.Stdout.Lines()); got != 2 {
		t.Errorf("%d reports, want 2: none before the reload, one after each", got)
	}
}

// Bans are opened at the start alone, so a reload leaves them as they are: also
// the words for what the policy asks for.
func TestReloadKeepsBans(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	command := daemonCommand(t, liveConfig)
	config := command[slices.Index(command, "-c")+1]
	daemon := target.Start(t, "env", command...)
	daemon.Stderr.WaitLine(t, "portsnare is active")
	banning := liveConfig + "[ban]\nevidence = \"classic\"\ntcp = \"ban\"\n[output.runcmd.settings]\nroute = \"true $TARGET$\"\n"
	if err := os.WriteFile(config, []byte(banning), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon.Signal(t, syscall.SIGHUP)
	daemon.Stderr.WaitLine(t, "bans take effect at the next start")
	daemon.Stderr.WaitLine(t, "configuration reloaded")
	probe(t, scanner, target)
	daemon.Stdout.WaitLine(t, scanLine(scanner.IPv4, "TCP", trapPort, "TCP SYN/Normal scan"))
	stopWithin(t, daemon, unhurried)
}

// An edit of an ignore file takes effect by itself, in trap mode too.
func TestChangedIgnoreFilesAreReadAgain(t *testing.T) {
	for _, mode := range []string{"stealth", "trap"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			scanner, target := nettest.NewPair(t)
			file := filepath.Join(t.TempDir(), "ignore")
			write := func(text string) {
				t.Helper()
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			connect := func() {
				t.Helper()
				scanner.Run(t, "nmap", "-sT", "-n", "-Pn", "--max-retries", "0", "-p", trapPort, target.IPv4.String())
			}
			write("# nobody\n")
			daemon := startDaemon(t, target, fmt.Sprintf("mode = %q\n[detect]\ntcp_ports = \"11\"\nignore = [%q]\n", mode, file))
			connect()
			daemon.Stdout.WaitLine(t, "ignored: [false]")
			write(scanner.IPv4.String() + "\n")
			daemon.Stderr.WaitLine(t, "ignore files read again")
			connect()
			daemon.Stdout.WaitLine(t, "ignored: [true]")
			write("no address\n")
			daemon.Stderr.WaitLine(t, "ignore files not read again")
			connect()
			nettest.WaitFor(t, "a third report", func() bool { return len(daemon.Stdout.Lines()) == 3 })
			if got := daemon.Stdout.Lines()[2]; !strings.Contains(got, "ignored: [true]") {
				t.Errorf("after a faulty edit the source is not ignored any more: %s", got)
			}
			stopWithin(t, daemon, unhurried)
		})
	}
}

func TestStartFailsWithARemedy(t *testing.T) {
	t.Parallel()
	_, target := nettest.NewPair(t)
	tests := map[string]struct {
		command []string // before the name of the program
		args    []string
		want    []string
	}{
		"no such interface": {[]string{"env", asProgram + "=1"}, []string{"-i", "eth9"}, []string{"eth9", "lo", "eth0"}},
		"no privileges": {
			[]string{"setpriv", "--bounding-set=-all", "--inh-caps=-all", "env", asProgram + "=1"},
			nil,
			[]string{"root", "CAP_NET_RAW"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			args := slices.Concat(test.command[1:], []string{self}, test.args)
			daemon := target.Start(t, test.command[0], args...)
			err = daemon.Wait(t)
			if err == nil || err.Error() != "exit status 1" {
				t.Errorf("portsnared ended with %v, want exit status 1", err)
			}
			for _, want := range test.want {
				if !strings.Contains(daemon.Stderr.String(), want) {
					t.Errorf("standard error does not name %q: %s", want, daemon.Stderr)
				}
			}
		})
	}
}
