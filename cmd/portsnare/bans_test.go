package main

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/internal/control"
)

// fakeDaemon has one ban and bans everybody but one.
type fakeDaemon struct{}

var (
	banned  = netip.MustParsePrefix("192.0.2.1/32")
	gateway = netip.MustParsePrefix("192.0.2.254/32")
	until   = time.Date(2026, 11, 22, 8, 0, 0, 0, time.Local)
)

func (fakeDaemon) Status() control.Status {
	return control.Status{Version: "1.2.3", PID: 42, Since: until.UTC(), Mode: "stealth", Banning: true, Bans: 1, Probes: 7, Reported: 5, Spared: 1}
}

func (fakeDaemon) Bans() []control.Ban {
	return []control.Ban{{Source: banned, Until: &until, Origin: "portsnare", Reason: "probe to a trap port"}}
}

func (fakeDaemon) Ban(_ context.Context, r control.BanRequest) (control.Ban, error) {
	if r.Source == gateway {
		return control.Ban{}, &control.Error{Code: control.NeverBanned, Text: "192.0.2.254/32 is never banned: gateway"}
	}
	b := control.Ban{Source: r.Source, Origin: "operator", Reason: r.Reason}
	if r.For > 0 {
		ends := until.Add(time.Duration(r.For))
		b.Until = &ends
	}
	return b, nil
}

func (d fakeDaemon) Unban(_ context.Context, prefix netip.Prefix) ([]control.Ban, error) {
	if prefix.Overlaps(banned) {
		return d.Bans(), nil
	}
	return nil, nil
}

func (fakeDaemon) Allowed() []control.Allowed {
	return []control.Allowed{{Prefix: gateway, Why: "gateway"}, {Prefix: netip.MustParsePrefix("127.0.0.0/8"), Why: "loopback"}}
}

func (d fakeDaemon) Allow(ctx context.Context, r control.AllowRequest) ([]control.Ban, error) {
	return d.Unban(ctx, r.Prefix)
}

func (fakeDaemon) Disallow(context.Context, control.AllowRequest) error {
	return &control.Error{Code: control.NotFound, Text: "192.0.2.9/32 was not allowed"}
}

func (fakeDaemon) Outputs() []control.Output {
	return []control.Output{
		{Name: "stdout", Kind: "built in", State: "running", Delivered: 5},
		{Name: "firewall", Kind: "module", State: "waiting", Delivered: 3, Waiting: 2, Restarts: 4, Fault: "exit status 1"},
	}
}

func TestOrders(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- control.Serve(ctx, l, fakeDaemon{}) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	t.Setenv(socketVariable, socket)

	const header = "SOURCE     UNTIL                BY         REASON\n"
	const row = "192.0.2.1  2026-11-22 08:00:00  portsnare  probe to a trap port\n"
	tests := map[string]struct {
		args           string
		status         int
		stdout, stderr string
	}{
		"bans":          {"bans", exitOK, header + row, ""},
		"ban":           {"ban --for 1d --reason loud 198.51.100.7", exitOK, "SOURCE        UNTIL                BY        REASON\n198.51.100.7  2026-11-23 08:00:00  operator  loud\n", ""},
		"ban for ever":  {"ban 2001:db8::/64", exitOK, "SOURCE         UNTIL   BY        REASON\n2001:db8::/64  lifted  operator  \n", ""},
		"ban a gateway": {"ban 192.0.2.254", exitFault, "", "192.0.2.254: 192.0.2.254/32 is never banned: gateway\n"},
		"ban nonsense":  {"ban example.net", exitFault, "", "\"example.net\" is neither an address nor a prefix such as 192.0.2.0/24\n"},
		"ban for what":  {"ban --for long 192.0.2.1", exitFault, "", "--for: want a duration such as"},
		"ban nobody":    {"ban", exitUsage, "", "requires at least 1 arg"},
		"unban":         {"unban 192.0.2.1", exitOK, header + row, ""},
		"unban nobody":  {"unban 198.51.100.7", exitFault, "", "198.51.100.7: is not banned\n"},
		"unban all":     {"unban --all", exitOK, header + row, ""},
		"all and one":   {"unban --all 192.0.2.1", exitUsage, "", "unknown command"},
		"allow":         {"allow 192.0.2.0/24", exitOK, header + row, ""},
		"allowed":       {"allow", exitOK, "NEVER BANNED  WHY\n192.0.2.254   gateway\n127.0.0.0/8   loopback\n", ""},
		"allow no more": {"allow --remove 192.0.2.9", exitFault, "", "192.0.2.9: 192.0.2.9/32 was not allowed\n"},
		"outputs": {"outputs", exitOK, "OUTPUT    KIND      STATE    DELIVERED  WAITING  DROPPED  RESTARTS  FAULT\n" +
			"stdout    built in  running  5          0        0        0         \n" +
			"firewall  module    waiting  3          2        0        4         exit status 1\n", ""},
		"bans as JSON": {"bans --json", exitOK, "[\n  {\n    \"source\": \"192.0.2.1/32\",\n", ""},
		"no daemon":    {"bans --socket /nowhere/control.sock", exitFault, "", "no daemon listens at /nowhere/control.sock; is portsnared running?\n"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			status := run(strings.Fields(test.args), &stdout, &stderr)
			if status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			if strings.Contains(test.args, "json") {
				test.stdout += strings.TrimPrefix(stdout.String(), test.stdout)
			}
			if diff := cmp.Diff(test.stdout, stdout.String()); diff != "" {
				t.Errorf("standard output (-want +got)\n%s", diff)
			}
			if !strings.Contains(stderr.String(), test.stderr) || test.stderr == "" && stderr.Len() > 0 {
				t.Errorf("standard error %q, want %q", &stderr, test.stderr)
			}
		})
	}
	var stdout, stderr strings.Builder
	if status := run([]string{"status"}, &stdout, &stderr); status != exitOK || !strings.Contains(stdout.String(), "in force         1\n") {
		t.Errorf("status: exit status %d\n%s%s", status, &stdout, &stderr)
	}
}
