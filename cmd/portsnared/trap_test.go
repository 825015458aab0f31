package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/internal/nettest"
)

const trapConfigText = `
mode = "trap"
[detect]
tcp_ports = "11,143,1080"
udp_ports = "11,143,1080"
[trap]
banner = "Go away."
`

// listenOn opens a service on a port given as text.
func listenOn(t *testing.T, host *nettest.Host, network, port string) {
	t.Helper()
	var n uint16
	if _, err := fmt.Sscan(port, &n); err != nil {
		t.Fatal(err)
	}
	host.Listen(t, network, n)
}

func TestTrapModeReportsConnections(t *testing.T) {
	for name, scan := range map[string]struct{ flag, proto string }{
		"connect": {"-sT", "TCP"},
		"UDP":     {"-sU", "UDP"},
	} {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(name+" "+family, func(t *testing.T) {
				t.Parallel()
				scanner, target := nettest.NewPair(t)
				listenOn(t, target, strings.ToLower(scan.proto), servicePort)
				source, args := scanner.IPv4, []string{target.IPv4.String()}
				if family == "IPv6" {
					source, args = scanner.IPv6, []string{"-6", target.IPv6.String()}
				}
				daemon := startDaemon(t, target, trapConfigText)
				ports := strings.Join([]string{trapPort, unlistedPort, servicePort, otherTrapPort}, ",")
				scanner.Run(t, "nmap", append([]string{scan.flag, "-n", "-Pn", "--max-retries", "0", "-p", ports}, args...)...)
				nettest.WaitFor(t, "two reports", func() bool { return len(daemon.Stdout.Lines()) >= 2 })
				stopWithin(t, daemon, unhurried)
				want := sorted([]string{
					scanLine(source, scan.proto, trapPort, "Connect"),
					scanLine(source, scan.proto, otherTrapPort, "Connect"),
				})
				if diff := cmp.Diff(want, sorted(daemon.Stdout.Lines())); diff != "" {
					t.Errorf("nmap %s: lines on standard output (-want +got)\n%s", scan.flag, diff)
				}
				if log := daemon.Stderr.String(); !strings.Contains(log, "ports=143 proto="+scan.proto) {
					t.Errorf("no warning that a service has %s port 143:\n%s", scan.proto, log)
				}
			})
		}
	}
}

func TestHalfOpenScansAreInvisibleToTraps(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	daemon := startDaemon(t, target, trapConfigText)
	probe(t, scanner, target)
	stopWithin(t, daemon, unhurried)
	if got := daemon.Stdout.Lines(); len(got) != 0 {
		t.Errorf("reports %q, want none", got)
	}
}

// readBanner returns what a trap sends to who connects and keeps silent.
func readBanner(t *testing.T, scanner *nettest.Host, to netip.AddrPort) string {
	t.Helper()
	var conn net.Conn
	var err error
	scanner.Do(t, func() { conn, err = net.Dial("tcp", to.String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	banner, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(banner)
}

func TestBannerIsNotForIgnoredSources(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ ignore, want string }{
		"reported": {"", "Go away."},
		"ignored":  {"192.0.2.1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			scanner, target := nettest.NewPair(t)
			list := filepath.Join(t.TempDir(), "ignore")
			if err := os.WriteFile(list, []byte(tt.ignore+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			config := strings.Replace(trapConfigText, "[trap]", fmt.Sprintf("ignore = [%q]\n[trap]", list), 1)
			daemon := startDaemon(t, target, config)
			if got := readBanner(t, scanner, netip.AddrPortFrom(target.IPv4, 11)); got != tt.want {
				t.Errorf("banner %q, want %q", got, tt.want)
			}
			daemon.Stdout.WaitLine(t, "type: [Connect]")
			stopWithin(t, daemon, unhurried)
		})
	}
}

// In mode both each probe is reported once: by the trap where it holds the
// port, with a socket of its own or with one for all, and off the interface
// elsewhere.
func TestBothModesReportOnce(t *testing.T) {
	for name, trapped := range map[string]string{"a socket each": "11", "redirected": "1-1079,1081-65535"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scanner, target := nettest.NewPair(t)
			config := fmt.Sprintf(`
mode = "both"
[detect]
tcp_ports = "11,1080"
[trap]
tcp_ports = %q
`, trapped)
			daemon := startDaemon(t, target, config)
			scanner.Run(t, "nmap", "-sT", "-n", "-Pn", "--max-retries", "0", "-p", "11,1080", target.IPv4.String())
			nettest.WaitFor(t, "two reports", func() bool { return len(daemon.Stdout.Lines()) >= 2 })
			stopWithin(t, daemon, unhurried)
			want := sorted([]string{
				scanLine(scanner.IPv4, "TCP", trapPort, "Connect"),
				scanLine(scanner.IPv4, "TCP", otherTrapPort, "TCP SYN/Normal scan"),
			})
			if diff := cmp.Diff(want, sorted(daemon.Stdout.Lines())); diff != "" {
				t.Errorf("lines on standard output (-want +got)\n%s", diff)
			}
		})
	}
}

func TestReloadKeepsTraps(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	command := daemonCommand(t, trapConfigText)
	config := command[slices.Index(command, "-c")+1]
	daemon := target.Start(t, "env", command...)
	daemon.Stderr.WaitLine(t, "portsnare is active")
	for _, change := range []struct{ old, text, logged string }{
		{`"trap"`, `"stealth"`, "takes a restart"},
		{"Go away.", "Come in.", "take effect at the next start"},
	} {
		text := strings.Replace(trapConfigText, change.old, change.text, 1)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		daemon.Signal(t, syscall.SIGHUP)
		daemon.Stderr.WaitLine(t, change.logged)
		if got := readBanner(t, scanner, netip.AddrPortFrom(target.IPv4, 11)); got != "Go away." {
			t.Errorf("after a change to %s: banner %q, want the old one", change.text, got)
		}
	}
	stopWithin(t, daemon, unhurried)
}

func TestTrapModeWithoutPrivileges(t *testing.T) {
	t.Parallel()
	_, target := nettest.NewPair(t)
	command := append([]string{"--bounding-set=-all", "--inh-caps=-all", "env"}, daemonCommand(t, trapConfigText)...)
	daemon := target.Start(t, "setpriv", command...)
	if err := daemon.Wait(t); err == nil || err.Error() != "exit status 1" {
		t.Errorf("portsnared ended with %v, want exit status 1", err)
	}
	if got := daemon.Stderr.String(); !strings.Contains(got, "TCP port 11: ") || !strings.Contains(got, "CAP_NET_BIND_SERVICE") {
		t.Errorf("standard error names no remedy: %s", got)
	}
}
