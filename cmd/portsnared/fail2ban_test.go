package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/internal/nettest"
)

// stockFail2Ban are the files of Debian's package that its jail for PortSentry
// consists of. What an administrator has changed next to them has no part.
var stockFail2Ban = []string{
	"fail2ban.conf", "jail.conf", "paths-common.conf", "paths-debian.conf",
	"filter.d/portsentry.conf", "action.d/nftables.conf",
}

// jailLocal is what docs/fail2ban.md tells an administrator to write, but for
// the place of the history.
const jailLocal = `[portsentry]
enabled = true
banaction = nftables[type=allports]
protocol = tcp,udp,icmp,icmpv6
logpath = %s
`

// A fail2Ban is a real Fail2Ban on a host.
type fail2Ban struct {
	host    *nettest.Host
	options []string // that name the server
}

// startFail2Ban starts Debian's Fail2Ban on a host, with its own jail for
// PortSentry, and waits until it reads history.
func startFail2Ban(t *testing.T, host *nettest.Host, history string) *fail2Ban {
	t.Helper()
	dir := t.TempDir()
	config := map[string][]byte{
		"fail2ban.local": []byte("[Definition]\ndbfile = None\n"),
		"jail.local":     fmt.Appendf(nil, jailLocal, history),
	}
	for _, name := range stockFail2Ban {
		text, err := os.ReadFile(filepath.Join("/etc/fail2ban", name))
		if err != nil {
			t.Fatalf("%v: apt-get install fail2ban", err)
		}
		config[name] = text
	}
	for name, text := range config {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := &fail2Ban{host: host, options: []string{"-c", dir, "-s", filepath.Join(dir, "socket"), "-p", filepath.Join(dir, "pid")}}
	server := host.Start(t, "fail2ban-server", slices.Concat(f.options, []string{"--logtarget", "STDOUT", "-f", "start"})...)
	server.Stdout.WaitLine(t, "Jail 'portsentry' started")
	return f
}

// banned returns the addresses that the jail keeps out, sorted.
func (f *fail2Ban) banned(t *testing.T) []string {
	t.Helper()
	return sorted(strings.Fields(f.host.Run(t, "fail2ban-client", slices.Concat(f.options, []string{"get", "portsentry", "banip"})...)))
}

// The jail that every Fail2Ban brings for PortSentry bans a source after one
// probe, over IPv4 and IPv6, and no ignored one.
func TestStockFail2BanBansWhoProbes(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	const ignored = "192.0.2.3"
	scanner.Run(t, "ip", "address", "add", ignored+"/24", "dev", scanner.Interface)
	dir := t.TempDir()
	ignore, history := filepath.Join(dir, "ignore"), filepath.Join(dir, "portsentry.history")
	if err := os.WriteFile(ignore, []byte(ignored+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := startDaemon(t, target, strings.Replace(liveConfig, "[detect]", fmt.Sprintf("[detect]\nignore = [%q]", ignore), 1)+
		fmt.Sprintf("[log]\nhistory = %q\nhistory_format = \"portsentry1\"\n", history))
	jail := startFail2Ban(t, target, history)

	syn := []string{"-sS", "-n", "-Pn", "--max-retries", "0", "-p", trapPort}
	scanner.Run(t, "nmap", append(syn, "-e", scanner.Interface, "-S", ignored, target.IPv4.String())...)
	scanner.Run(t, "nmap", append(syn, "-6", target.IPv6.String())...)
	scanner.Run(t, "nmap", append(syn, target.IPv4.String())...)

	want := sorted([]string{scanner.IPv4.String(), scanner.IPv6.String()})
	nettest.WaitFor(t, "a firewall that keeps both sources out", func() bool {
		rules := target.Run(t, "nft", "list", "ruleset")
		return strings.Contains(rules, "{ "+want[0]+" }") && strings.Contains(rules, "{ "+want[1]+" }")
	})
	if diff := cmp.Diff(want, jail.banned(t)); diff != "" {
		t.Errorf("banned by Fail2Ban (-want +got)\n%s", diff)
	}
	stopWithin(t, daemon, unhurried)
	if got := strings.Count(strings.Join(daemon.Stdout.Lines(), "\n"), "ignored: [true]"); got != 1 {
		t.Errorf("%d reports of the ignored source, want 1", got)
	}
}
