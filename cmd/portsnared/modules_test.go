package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portsnare/portsnare/internal/control"
	"github.com/portsnare/portsnare/internal/nettest"
)

// A fortress is a host whose daemon bans with the firewall module, another that
// scans it, and the client that controls the daemon.
type fortress struct {
	scanner, target *nettest.Host
	client          *control.Client
	dir, config     string
	daemon          *nettest.Process
}

// newFortress does not start the daemon yet.
func newFortress(t *testing.T, ban string) *fortress {
	t.Helper()
	f := new(fortress)
	f.scanner, f.target = nettest.NewPair(t)
	f.dir = t.TempDir()
	if err := installModules(); err != nil {
		t.Fatal(err)
	}
	f.client = control.NewClient(filepath.Join(f.dir, "control.sock"))
	f.config = fmt.Sprintf(`
state = %q
control = %q
output_dirs = [%q]
[detect]
tcp_ports = "11"
[ban]
evidence = "classic"
tcp = "ban"
%s
[output.firewall]
`, filepath.Join(f.dir, "state.db"), filepath.Join(f.dir, "control.sock"), moduleDir, ban)
	return f
}

// moduleDir is where nobody else can write, above it neither.
const moduleDir = "/run/modules"

// installModules copies this program, which is all modules, only once: it is large.
var installModules = sync.OnceValue(func() error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.Mkdir(moduleDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(moduleDir, "firewall"), program, 0o755)
})

// start starts the daemon and waits for its module.
func (f *fortress) start(t *testing.T) {
	t.Helper()
	f.daemon = startDaemon(t, f.target, f.config)
	f.daemon.Stderr.WaitLine(t, "output module runs")
}

// pings reports whether the scanner reaches the target.
func (f *fortress) pings(t *testing.T) bool {
	t.Helper()
	return f.scanner.Command(t.Context(), "ping", "-c", "1", "-W", "1", f.target.IPv4.String()).Run() == nil
}

func (f *fortress) wantPings(t *testing.T, want bool, when string) {
	t.Helper()
	if got := f.pings(t); got != want {
		t.Errorf("%s: the scanner reaches the target: %v, want %v", when, got, want)
	}
}

func (f *fortress) bans(t *testing.T) []control.Ban {
	t.Helper()
	bans, err := f.client.Bans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return bans
}

// What the daemon says of bans is what the kernel does, from the first probe over
// the operator's orders, a kill and a restart to the end of the ban.
func TestBansAreReal(t *testing.T) {
	t.Parallel()
	f := newFortress(t, `for = "1h"`)
	f.start(t)
	f.wantPings(t, true, "before the scan")
	probe(t, f.scanner, f.target)
	f.daemon.Stdout.WaitLine(t, "noblock: [false] blocked: [true]")
	f.wantPings(t, false, "after the scan")
	bans := f.bans(t)
	if len(bans) != 1 || bans[0].Source.Addr() != f.scanner.IPv4 || bans[0].Origin != "portsnare" || time.Until(*bans[0].Until) > time.Hour {
		t.Errorf("bans are %+v, want the scanner for an hour", bans)
	}

	nettest.WaitFor(t, "the ban on the disk", func() bool { // a kill leaves nobody the time
		info, err := os.Stat(filepath.Join(f.dir, "state.db"))
		return err == nil && time.Since(info.ModTime()) > 2*saveInterval
	})
	f.daemon.Signal(t, syscall.SIGKILL)
	if err := f.daemon.Wait(t); err == nil {
		t.Error("the daemon survived a kill")
	}
	f.start(t)
	if again := f.bans(t); len(again) != 1 || !again[0].Until.Round(time.Second).Equal(bans[0].Until.Round(time.Second)) {
		t.Errorf("after a kill bans are %+v, want %+v", again, bans)
	}
	f.wantPings(t, false, "after a kill")

	stopWithin(t, f.daemon, unhurried)
	f.wantPings(t, true, "with no daemon")
	f.start(t)
	f.wantPings(t, false, "after a restart")

	lifted, err := f.client.Unban(t.Context(), bans[0].Source)
	if err != nil || len(lifted) != 1 {
		t.Errorf("Unban = %v, %v", lifted, err)
	}
	f.wantPings(t, true, "after an unban")
	if _, err := f.client.Ban(t.Context(), control.BanRequest{Source: bans[0].Source, For: control.Duration(time.Minute), Reason: "by hand"}); err != nil {
		t.Error(err)
	}
	f.wantPings(t, false, "after a ban by hand")
	if _, err := f.client.Ban(t.Context(), control.BanRequest{Source: bans[0].Source, Reason: "a\x1b[31m"}); err == nil || !strings.Contains(err.Error(), "one line") {
		t.Errorf("a reason that colours the terminal: %v", err)
	}
	if _, err := f.client.Allow(t.Context(), control.AllowRequest{Prefix: bans[0].Source}); err != nil {
		t.Error(err)
	}
	f.wantPings(t, true, "after an allow")
	probe(t, f.scanner, f.target)
	nettest.WaitFor(t, "a second report", func() bool { return strings.Contains(f.daemon.Stdout.String(), "blocked: [false]") })
	f.wantPings(t, true, "an allowed source")
	if _, err := f.client.Ban(t.Context(), control.BanRequest{Source: bans[0].Source}); err == nil || !strings.Contains(err.Error(), "allow list") {
		t.Errorf("ban of an allowed source: %v", err)
	}

	nettest.WaitFor(t, "a firewall module that has taken all events", func() bool {
		outputs, err := f.client.Outputs(t.Context())
		return err == nil && len(outputs) == 2 && outputs[1].Name == "firewall" && outputs[1].State == "running" && outputs[1].Waiting == 0
	})
	stopWithin(t, f.daemon, unhurried)
	if tables := f.target.Run(t, "nft", "list", "tables"); tables != "" {
		t.Errorf("the firewall still has %s", tables)
	}
}

// A dry run says whom it would ban, and bans nobody.
func TestDryRun(t *testing.T) {
	t.Parallel()
	f := newFortress(t, `for = "1h"`)
	f.config += "[events]\njson = \"" + filepath.Join(f.dir, "events.jsonl") + "\"\n"
	f.daemon = startDaemon(t, f.target, f.config, "--dry-run")
	f.daemon.Stderr.WaitLine(t, "output module runs")
	probe(t, f.scanner, f.target)
	f.daemon.Stdout.WaitLine(t, "noblock: [false] blocked: [false]")
	f.wantPings(t, true, "in a dry run")
	if bans := f.bans(t); len(bans) != 1 || !strings.HasPrefix(bans[0].Reason, "dry run, not in force") {
		t.Errorf("bans are %+v, want one that says it is not in force", bans)
	}
	stopWithin(t, f.daemon, unhurried)
	events, err := os.ReadFile(filepath.Join(f.dir, "events.jsonl"))
	if err != nil || !strings.Contains(string(events), "dry run: "+f.scanner.IPv4.String()+"/32 would be banned until ") {
		t.Errorf("events do not tell: %s (%v)", events, err)
	}
	f.start(t)
	if bans := f.bans(t); len(bans) > 0 {
		t.Errorf("a dry run has left bans: %+v", bans)
	}
	stopWithin(t, f.daemon, unhurried)
}
